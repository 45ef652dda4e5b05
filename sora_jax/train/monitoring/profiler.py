"""Profiles of some steps, for xprof and TensorBoard, and a table of the operations that took the time."""

import collections
import pathlib
import tempfile
from collections.abc import Iterable

import jax
import rich.console
import rich.table

from sora_jax.core.storage import atomic_write, copy_file, explain_os_errors, in_bucket, remove_folder

REQUEST = "profile"  # a file of this name in the workdir requests a profile of the next steps
REQUEST_STEPS = 5
TABLE_ROWS = 20


class Profiler:
    """Traces steps of the first process: those of `train.profile`, and the next few when a file requests it."""

    def __init__(self, workdir: pathlib.Path, span: str, every: int, console: rich.console.Console):
        """
        Args:
          span: "FIRST:LAST" steps, or "".
          every: interval, in steps, of looking for the request; on a network disk a look is slow.
        """
        self.workdir, self.every, self.console = workdir, every, console
        self.span = tuple(map(int, span.split(":"))) if span else (0, -1)
        self.folder: pathlib.Path | None = None  # of the running trace

    def before(self, step: int):
        """Start the trace, if this is its first step."""
        if jax.process_index() or self.folder:
            return
        asked = self.workdir / REQUEST
        if step % self.every == 0 and asked.exists():
            asked.unlink()
            self.span = (step, step + REQUEST_STEPS - 1)
        if self.span[0] <= step <= self.span[1]:
            self.span = (step, self.span[1])
            self.folder = self.workdir / "profiles" / f"{step}-{self.span[1]}"
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # tracing Python doubles the time
            with explain_os_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            # The profiler writes to disks alone.
            self.traced = pathlib.Path(tempfile.mkdtemp()) if in_bucket(self.folder) else self.folder
            jax.profiler.start_trace(self.traced, profiler_options=options)

    def after(self, step: int, state, *, last: bool):
        """Stop the trace, if this was its last step, and print its table."""
        if not self.folder or (step < self.span[1] and not last):
            return
        jax.block_until_ready(state)
        folder, self.folder = self.folder, None
        jax.profiler.stop_trace()
        file = max(self.traced.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        steps = step - self.span[0] + 1
        table = top_operations(jax.profiler.ProfileData.from_file(str(file)), steps)
        self.console.print(table)
        if in_bucket(folder):
            for path in self.traced.rglob("*.*"):
                copy_file(path, folder / path.relative_to(self.traced).as_posix())
            remove_folder(self.traced)
        with atomic_write(folder / "operations.txt") as temporary, temporary.open("w") as text:
            rich.console.Console(file=text, width=120).print(table)
        self.console.print(f"profile of steps {self.span[0]} to {step}: {folder}", highlight=False)

    def close(self):
        """Stop a trace that an error interrupted."""
        if self.folder:
            jax.profiler.stop_trace()


def top_operations(profile, steps: int) -> rich.table.Table:
    """A table of the operations with the most time of their own, without nested operations.

    Args:
      profile: a jax.profiler.ProfileData.
      steps: number of steps in it.
    """
    own: dict[str, float] = collections.defaultdict(float)
    counts, busy, span = collections.Counter(), 0.0, 0.0
    devices = collections.defaultdict(list)
    for device, events in operations(profile):
        devices[device] += events
        for name, nanoseconds in own_times(events):
            own[name] += nanoseconds
            counts[name] += 1
    for events in devices.values():
        busy += covered(events)
        span += max(end for _, end, _ in events) - min(start for start, _, _ in events)
    total, each = sum(own.values()), 1e6 * steps * max(len(devices), 1)
    share = f", busy {busy / span:.0%} of the time" if span else ""
    table = rich.table.Table(
        title=f"{len(devices)} devices{share}; {total / each:,.2f} ms of operations a step", title_justify="left"
    )
    table.add_column("operation", overflow="fold")
    for name in ("times a step", "own ms a step", "share"):
        table.add_column(name, justify="right")
    for name, nanoseconds in sorted(own.items(), key=lambda item: -item[1])[:TABLE_ROWS]:
        times = counts[name] / steps / len(devices)
        table.add_row(name, f"{times:,.4g}", f"{nanoseconds / each:,.3f}", f"{nanoseconds / total:.1%}")
    return table


def operations(profile) -> Iterable[tuple[str, list[tuple[float, float, str]]]]:
    """(device, [(start, end, name), ...]) of each line of a profile; operations of one line may be nested.

    An accelerator has a plane of its own, with one line of operations (TPU) or a line for each stream (GPU). On a
    CPU, operations lie among the other events of a thread, and XLA marks them by `hlo_op`.
    """
    planes = list(profile.planes)
    accelerators = [plane for plane in planes if plane.name.startswith(("/device:TPU", "/device:GPU"))]
    for plane in accelerators or [plane for plane in planes if plane.name.startswith("/host:CPU")]:
        for line in plane.lines:
            if accelerators and line.name != "XLA Ops" and not line.name.startswith("Stream"):
                continue
            of = collections.defaultdict(list)
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op", "" if not accelerators else event.name.split(" = ")[0].lstrip("%"))
                if name:
                    device = plane.name if accelerators else f"CPU {stats.get('device_ordinal', 0)}"
                    of[device].append((event.start_ns, event.start_ns + event.duration_ns, name))
            yield from of.items()


def own_times(events: list[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """(name, nanoseconds without nested events) of each event."""
    found: list[tuple[str, float]] = []
    open_: list[list] = []  # [end, name, own time] of the events around the current one

    def close(until: float):
        while open_ and open_[-1][0] <= until:
            _, name, own = open_.pop()
            found.append((name, own))

    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        close(start)
        if open_:
            open_[-1][2] -= min(end, open_[-1][0]) - start
        open_.append([end, name, end - start])
    close(float("inf"))
    return found


def covered(events: list[tuple[float, float, str]]) -> float:
    """Nanoseconds covered by at least one event."""
    total, until = 0.0, float("-inf")
    for start, end, _ in sorted(events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
