"""The checkpoints of a run: Orbax writes them in the background, and a later start resumes from them."""

import errno
import functools
import logging
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import struct

from sora_jax import compat
from sora_jax.checkpoint.checksums import named_leaves
from sora_jax.checkpoint.kept_steps import RequestedSteps
from sora_jax.checkpoint.meta import CONVERTED, MODELS, check_leaves, check_models, load_meta, make_meta
from sora_jax.checkpoint.model_folder import WEIGHTS
from sora_jax.checkpoint.orbax_errors import BrokenCheckpoint, reason_unwritable
from sora_jax.checkpoint.renamed import has_one_norm, with_norm
from sora_jax.checkpoint.restore import read_state, verify
from sora_jax.checkpoint.workdir import BROKEN, CHECKPOINTS, COMMIT, RELEASED, orbax_path, steps_in
from sora_jax.cluster.agreement import raise_on_all_hosts, run_on_first_host
from sora_jax.config.schema import Settings
from sora_jax.core.buckets import bucket_reason
from sora_jax.core.errors import InputError
from sora_jax.core.storage import USER_ERRORS, as_path, explain_os_errors, in_bucket, move_folder

# Bytes from which each replica of an array writes a part of it. Slicing a smaller array takes longer than writing
# it: in the first save each slice is a program to compile.
MIN_REPLICA_BYTES = 2**20


@functools.cache
def _register_array_handler():
    """Have Orbax write arrays as above; it warns of the handler that this one replaces."""
    handler = ocp.type_handlers.ArrayHandler(
        array_metadata_store=compat.array_metadata_store(), min_slice_bytes_for_replica_parallel=MIN_REPLICA_BYTES
    )
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    finally:
        absl.setLevel(level)


@struct.dataclass
class Weights:
    """The state of a checkpoint without a run: converted weights. step: 0; ema: float32 nested dict."""

    step: jax.Array
    ema: dict


class Checkpoints:
    """The checkpoints of a workdir, for the run that writes them.

    A context manager; it waits at its end until the last checkpoint is written.

    Args:
      keep: number of last checkpoints to keep.
      keep_every: also keep the steps that are multiples of it; 0: none.
    """

    def __init__(self, workdir: pathlib.Path, keep: int, keep_every: int = 0):
        _register_array_handler()
        manager = ocp.checkpoint_managers
        self._requested = RequestedSteps(as_path(workdir))
        kept = [manager.LatestN(keep), self._requested]
        kept += [manager.EveryNSteps(keep_every)] if keep_every else []
        commit_file = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=manager.AnyPreservationPolicy(kept),
            save_decision_policy=manager.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=True,
            # A folder in a bucket can't be renamed; for gs:// this is Orbax's default.
            atomicity_options=commit_file if in_bucket(workdir) else None,
        )
        self.folder = as_path(workdir).resolve() / CHECKPOINTS
        if (self.folder.parent / RELEASED / WEIGHTS).is_file():
            raise InputError(
                f"{workdir}: holds a model and no run; take another --workdir, with "
                f"--config.train.init_from={workdir}"
            )
        self._bytes = 0  # of the last state that was to be saved
        with explain_os_errors(self.folder):
            self.manager = ocp.CheckpointManager(
                orbax_path(self.folder), item_names=("state", "meta"), options=options
            )
        # A failed write is one exception here; Orbax and asyncio also log a traceback for each of its tasks.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(is_not_of_a_write)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self._checked(self.manager.wait_until_finished)
        finally:
            self._checked(self.manager.close)

    def latest(self) -> int | None:
        """The newest complete step; None before the first.

        Raises: InputError if all steps were set aside as broken.
        """
        # Not the manager's: it takes a bucket that does not answer for an empty one.
        latest = max(steps_in(self.folder), default=None)
        if latest is None and (aside := sorted(path.name for path in self.folder.glob(f"*{BROKEN}*"))):
            raise InputError(
                f"{self.folder}: holds no step that can be used, only {', '.join(aside)}; put a copy there, or "
                f"take another --workdir to begin anew"
            )
        return latest

    def save(self, state, settings: Settings, data_hash: str):
        """Start to write the state in the background; it may be donated to the next step at once.

        Raises: InputError if this save, or the one before it, can't be written.
        """
        step = int(state.step)
        if step == self.manager.latest_step():
            return
        self._requested.read()
        self._bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        meta = make_meta(state, settings, data_hash)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._checked(lambda: self.manager.save(step, args=args))

    def restore(self, abstract_state, settings: Settings) -> tuple:
        """The newest intact state, in the shardings of `abstract_state`.

        Newer broken ones are set aside: kept for inspection and never chosen again. If no step is intact, nothing
        is moved.

        Returns: (state, hash of the data it was trained on, notes for the user, one line each).
        Raises: InputError if it is of other models than the settings describe, or no step is intact.
        """
        broken = {}
        for step in reversed(steps_in(self.folder)):
            try:
                state, data_hash, notes = self._restore(step, abstract_state, settings)
            except BrokenCheckpoint as error:
                broken[step] = f"{self.folder}/{step}: is broken, {error}"
                continue
            run_on_first_host(lambda: self._set_aside(broken))
            self.manager.reload()
            notes += [f"{why}; set aside as {n}{BROKEN}, step {step} is taken" for n, why in broken.items()]
            return state, data_hash, notes
        raise InputError("; ".join(broken.values()) + "; no step is left that can be used")

    def _restore(self, step, abstract_state, settings):
        where = f"{self.folder}/{step}"

        def read():
            meta = load_meta(self.folder, step)
            if meta.data_hash == CONVERTED:
                raise InputError(
                    f"{self.folder.parent}: holds weights and no run; take another --workdir, with "
                    f"--config.train.init_from={self.folder.parent}"
                )
            check_models(meta.settings, settings, where, (*MODELS, "lora"))
            check_run(meta.settings, settings, where)
            wanted = abstract_state
            if one_norm := has_one_norm(abstract_state, meta.leaves):
                wanted = with_norm(wanted, next(iter(abstract_state.opt_state[0].mean.values())))
            if meta.leaves:
                check_leaves(named_leaves(wanted), meta.leaves, where)
            return read_state(self.folder, step, wanted), meta, one_norm

        state, meta, one_norm = raise_on_all_hosts(read, (BrokenCheckpoint, InputError))
        verify(state, meta.leaves)
        if one_norm:
            state = with_norm(
                state, {name: jnp.copy(state.opt_state[0].mean) for name in abstract_state.opt_state[0].mean}
            )
        return (
            state,
            meta.data_hash,
            [] if meta.leaves else [f"{where}: has no checksums, an early version wrote it: taken as it is"],
        )

    def _set_aside(self, broken):
        with explain_os_errors(self.folder):
            for step in broken:
                before = len(list(self.folder.glob(f"{step}{BROKEN}*")))
                name = f"{step}{BROKEN}" + (f".{before + 1}" if before else "")
                move_folder(self.folder / str(step), self.folder / name, mark=COMMIT)

    def _checked(self, write):
        try:
            write()
        except Exception as error:  # of a bucket: of all kinds
            if not isinstance(error, OSError | ValueError) and not self._bucket_reason(error):
                raise
            # Orbax drops tasks that it has not begun; Python warns about each when it is collected.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            raise InputError(self._describe_failure(error)) from error

    def _bucket_reason(self, error: Exception) -> str:
        return bucket_reason(error, self.folder.scheme) if in_bucket(self.folder) else ""

    def _describe_failure(self, error: Exception) -> str:
        reason = self._bucket_reason(error) or reason_unwritable(error)
        last = max(steps_in(self.folder), default=None)
        kept = f"step {last} is complete and stays" if last is not None else "there is none yet"
        if reason not in (USER_ERRORS[errno.ENOSPC], USER_ERRORS[errno.EDQUOT]):
            return f"{self.folder}: a checkpoint can't be written, {reason}; {kept}"
        free = shutil.disk_usage(self.folder).free
        return (
            f"{self.folder}: a checkpoint can't be written, {reason}: it needs {megabytes(self._bytes)}, and "
            f"{megabytes(free)} are free; {kept}; make room, and the same command continues"
        )


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def check_run(stored: Settings, wanted: Settings, where: str):
    """Raise InputError for a changed setting of the optimizer's state or the discriminator."""
    for group, key in (("optimizer", "name"), ("loss", "adversarial"), ("loss", "discriminator_width")):
        old, new = (getattr(getattr(settings, group), key) for settings in (stored, wanted))
        if old != new and not (key == "adversarial" and old and new):  # the loss's weight may change
            raise InputError(
                f"{where}: made with config.{group}.{key}={old}, now {new}; change it back, or take a new "
                f"--workdir with --config.train.init_from={as_path(where).parent.parent}"
            )


def is_not_of_a_write(record: logging.LogRecord) -> bool:
    """Whether a log record is anything but the traceback of a failed write."""
    return "/orbax/" not in record.pathname and "exception was never retrieved" not in record.getMessage()


def save_weights(workdir: pathlib.Path, params: dict, settings: Settings):
    """Write a checkpoint of parameters alone, to sample from and to start runs from.

    Raises: InputError if it can't be written.
    """
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(Weights(jnp.zeros((), jnp.int32), params), settings, CONVERTED)
