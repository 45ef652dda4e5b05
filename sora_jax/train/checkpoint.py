"""Checkpoints: the state of a run, sharded and written in the background by Orbax, and what it needs to be used.

A workdir's `checkpoints/<updates done>/` holds `state` (a TrainState) and `meta` (JSON: the settings and the hash
of the data). A save is complete or not there: Orbax renames it into place when all of it is written.
"""

import dataclasses
import logging
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sora_jax.config import from_dict
from sora_jax.errors import InputError, nearest
from sora_jax.files import MENDABLE, mendable
from sora_jax.models.video_model import init_trained
from sora_jax.settings import Settings
from sora_jax.train.state import Weights

FOLDER = "checkpoints"
CONVERTED = "none: converted"  # in the place of the data's hash
FREE = (
    "dtype",
    "attention",
    "remat",
    "unroll",
)  # settings of a model that change how it is computed, not what it is


class Checkpoints:
    """The checkpoints of a workdir, for the run that writes them; a context manager that waits at its end."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        manager = ocp.checkpoint_managers
        options = ocp.CheckpointManagerOptions(
            preservation_policy=manager.LatestN(keep),
            save_decision_policy=manager.FixedIntervalPolicy(1),  # the loop decides
            cleanup_tmp_directories=True,
        )
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        with mendable(self.folder):
            self.manager = ocp.CheckpointManager(self.folder, item_names=("state", "meta"), options=options)
        # A write that fails is raised here, and told in one line: not by each of its tasks, with a traceback.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(is_news)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self._checked(self.manager.wait_until_finished)
        finally:
            self._checked(self.manager.close)

    def latest(self) -> int | None:
        """Updates done in the newest complete checkpoint."""
        return self.manager.latest_step()

    def save(self, state, settings: Settings, data_hash: str):
        """Begin to write the state; it may be donated to the next step at once.

        Raises: InputError if this save, or the one before it, can't be written.
        """
        meta = {"settings": dataclasses.asdict(settings), "data_hash": data_hash}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        step = int(state.step)
        if step != self.latest():
            self._checked(lambda: self.manager.save(step, args=args))

    def restore(self, abstract_state, settings: Settings) -> tuple:
        """The newest state, in the shardings of `abstract_state`, and the hash of the data it was trained on.

        Raises: InputError if it was made with other models than the settings say.
        """
        step = self.latest()
        stored, data_hash = read_meta(self.folder, step)
        if data_hash == CONVERTED:
            raise InputError(
                f"{self.folder.parent}: holds weights and no run; take another --workdir, with "
                f"--config.train.init_from={self.folder.parent}"
            )
        check_models(stored, settings, f"{self.folder}/{step}", (*MODELS, "lora"))
        restored = self.manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        )
        return restored.state, data_hash

    def _checked(self, write):
        try:
            write()
        except (OSError, ValueError) as error:
            # Orbax gives up with tasks that it has not begun; Python warns of each when it is collected.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            last = self.latest()
            kept = f"step {last} is complete" if last is not None else "there is none yet"
            raise InputError(
                f"{self.folder}: a checkpoint can't be written, {reason_of(error)}; {kept}"
            ) from error


def is_news(record: logging.LogRecord) -> bool:
    """Whether a line of the log tells more than the error that a failed write raises."""
    return "/orbax/" not in record.pathname and "exception was never retrieved" not in record.getMessage()


def reason_of(error: OSError | ValueError) -> str:
    """Why a write failed; TensorStore tells the system's reason only in the text of a ValueError."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(code[1]) if code else getattr(error, "errno", None)
    return MENDABLE.get(number) or str(error).splitlines()[0][:300]


def find_checkpoint(workdir: pathlib.Path) -> tuple[pathlib.Path, int]:
    """The folder of checkpoints of a workdir, and the newest complete step in it.

    Raises: InputError if there is none.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER
    if not folder.parent.is_dir():
        near = folder.parent.parent
        there = [path.name for path in near.iterdir() if path.is_dir()] if near.is_dir() else []
        hint = (
            nearest(folder.parent.name, there) if there else "--checkpoint takes the --workdir of a training run"
        )
        raise InputError(f"{workdir}: no such folder, {hint}")
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise InputError(f"{workdir}: no checkpoint in it; run `sora-jax train --workdir={workdir}` first")
    return folder, max(steps)


def read_meta(folder: pathlib.Path, step: int) -> tuple[Settings, str]:
    """The settings that a checkpoint was made with, and the hash of its data."""
    with ocp.CheckpointManager(folder, item_names=("state", "meta")) as manager:
        meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    return from_dict(Settings, meta["settings"], f"{folder}/{step}"), meta["data_hash"]


def restore_ema(folder: pathlib.Path, step: int, abstract_params: dict) -> dict:
    """The averaged parameters alone, in the shardings of `abstract_params`."""
    target = {"ema": abstract_params}
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    with ocp.CheckpointManager(folder, item_names=("state",)) as manager:
        args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
        return manager.restore(step, args=ocp.args.Composite(state=args)).state["ema"]


def restore_trained(folder: pathlib.Path, step: int, settings: Settings) -> dict:
    """The averaged parameters of a VideoModel, but for those that stay as they are, on the current mesh."""
    abstract = jax.eval_shape(lambda: init_trained(settings, jax.random.key(0)))
    return restore_ema(folder, step, abstract_on_mesh(abstract))


def save_weights(workdir: pathlib.Path, params: dict, settings: Settings):
    """A checkpoint of parameters alone, to sample from and to begin runs with.

    Raises: InputError if it can't be written.
    """
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(Weights(jnp.zeros((), jnp.int32), params), settings, CONVERTED)


MODELS = ("objective", "autoencoder", "text", "transformer")


def check_models(stored: Settings, wanted: Settings, where: str, groups: tuple[str, ...] = MODELS):
    """Raise InputError for the first setting of a model that differs; other settings may."""
    for group in groups:
        before, now = getattr(stored, group), getattr(wanted, group)
        if group == "objective":
            differs = [("objective", before, now)] if before != now else []
        else:
            differs = [
                (f"{group}.{field.name}", getattr(before, field.name), getattr(now, field.name))
                for field in dataclasses.fields(before)
                if field.name not in FREE and getattr(before, field.name) != getattr(now, field.name)
            ]
        for key, old, new in differs:
            raise InputError(
                f"{where}: made with config.{key}={old}, now {new}; change it back, or take a new --workdir"
            )


def abstract_on_mesh(tree):
    """Arrays or their shapes -> shapes with concrete shardings on the current mesh, as a restore wants them."""
    mesh = jax.sharding.get_mesh()

    def place(x):
        spec = x.sharding.spec if x.sharding is not None else jax.P()
        sharding = jax.sharding.NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, tree)
