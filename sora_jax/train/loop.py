"""The training loop, of every objective."""

import pathlib
import shutil
import time

import jax
import rich.console

from sora_jax.checkpoint.manager import Checkpoints
from sora_jax.checkpoint.model_folder import load_settings, model_hash
from sora_jax.checkpoint.restore import abstract_on_mesh
from sora_jax.checkpoint.workdir import has_checkpoint
from sora_jax.cluster.agreement import assert_equal_across_hosts, run_on_first_host
from sora_jax.cluster.preemption import preemption
from sora_jax.config.load import to_json
from sora_jax.config.schema import AutoencoderSettings, Settings
from sora_jax.core.errors import InputError
from sora_jax.core.mesh import axes_of, local_rows, make_mesh, num_shards
from sora_jax.core.storage import atomic_write, copy_files, digest
from sora_jax.data.loader.mixture import Mixture
from sora_jax.data.loader.stream import train_crops, train_sequences
from sora_jax.models.layers.params import count_params
from sora_jax.train.autoencoder_statistics import export_autoencoder
from sora_jax.train.init_from import autoencoder_of, begin_with, check_pretrained
from sora_jax.train.monitoring.loss_monitor import Guard
from sora_jax.train.monitoring.metrics import Metrics
from sora_jax.train.monitoring.watch import Watch
from sora_jax.train.objectives.flow import make_objective
from sora_jax.train.optimizer import make_optimizer
from sora_jax.train.state import TrainState, abstract_state, init_state
from sora_jax.train.step import make_step

SPLIT = {"heads": "heads_all", "width": "embed", "mlp": "mlp"}  # what of a model lies over which chips
STREAMS = {"flow": train_sequences, "autoencoder": train_crops}


def train(settings: Settings, workdir: pathlib.Path, *, console: rich.console.Console) -> TrainState:
    """Train, or go on training, until `train.steps` updates are done; all that is written goes into `workdir`.

    SIGTERM to any process ends it sooner: all of them save after the same update.

    Returns: the last state.
    Raises: InputError for settings, data or a workdir that don't fit together.
    """
    workdir = pathlib.Path(workdir)
    mesh = make_mesh(settings.mesh)
    check_batch(settings, mesh)
    watch = Watch(settings, workdir, mesh, console)
    records = open_records(settings)
    rows = local_rows(mesh, settings.data.batch)
    stream = STREAMS[settings.objective](settings, rows=rows)
    if settings.train.init_from and (settings.lora.rank or not has_checkpoint(workdir)):
        check_pretrained(settings, records)
    data_hash = records.digest
    if settings.data.autoencoder:
        folder = autoencoder_of(settings, records)
        check_same(workdir, folder)
        data_hash = digest([data_hash, model_hash(folder)])
    assert_equal_across_hosts({f"the data set {settings.data.path}": data_hash})
    objective = make_objective(settings)
    optimizer = make_optimizer(settings.optimizer, settings.train.steps)
    step = make_step(objective, optimizer, settings)
    with jax.set_mesh(mesh):
        abstract = abstract_on_mesh(abstract_state(objective, optimizer))
        frozen = objective.frozen()
    # Until here nothing is written: a mistake leaves no trace.
    for note in stream.notes:
        console.print(f"note: {note}", highlight=False)
    with (
        jax.set_mesh(mesh),
        Checkpoints(workdir, settings.train.keep, settings.train.keep_every) as checkpoints,
        preemption(checkpoints.latest() or 0) as told_to_end,
    ):
        assert_equal_across_hosts({f"the last checkpoint in {workdir}": str(checkpoints.latest())})
        if checkpoints.latest() is None:
            run_on_first_host(lambda: start_workdir(workdir, records, settings))
            # Checkpoints of many processes need one disk.
            assert_equal_across_hosts(
                {f"settings.json in {workdir}": "there" if (workdir / "settings.json").exists() else "not there"}
            )
            state = init_state(objective, optimizer, jax.random.key(settings.train.seed))
            if settings.train.init_from:
                state = begin_with(settings, state)
        else:
            state, trained_on, notes = checkpoints.restore(abstract, settings)
            if trained_on != data_hash:
                notes.append(f"{settings.data.path} is not the data set of the steps before")
            for note in notes:
                console.print(f"note: {note}", highlight=False, soft_wrap=True)
        state = jax.block_until_ready(state)
        start = int(state.step)
        console.print(
            f"{settings.objective}: {count_params(state.params):,} parameters on {jax.device_count()} "
            f"{jax.devices()[0].device_kind} devices, {stream.clips} clips, {stream.fill:.0%} of each row filled, "
            f"step {start} of {settings.train.steps}",
            highlight=False,
            soft_wrap=True,
        )
        metrics = Metrics(workdir, start, settings.train.steps, objective.unit, console)
        watch.begin(start, frozen, metrics, objective.unit)
        guard = Guard(workdir, settings.train.bad_steps, stream.sources_at, console)

        def tell(n, values, logged):
            guard.see(n, values)
            if logged:
                metrics.log(n, values | {"skipped": guard.take_skipped()})

        batches = stream.iterate(start)
        try:
            pending = None
            for n in range(start + 1, settings.train.steps + 1):
                watch.before(n)
                waiting = time.perf_counter()
                batch = next(batches)
                wait = time.perf_counter() - waiting
                watch.meets(batch)
                units, flops = objective.work(batch)
                # A step whose batch is still on its way is queued; the collectives of two queued programs can
                # block each other where devices share cores.
                state, values = step(state, frozen, jax.block_until_ready(objective.place(batch)))
                # The step before is read while this one runs, so that the chips never wait for the host.
                if pending:
                    tell(*pending)
                share = len(rows) / settings.data.batch  # of the work that all do
                metrics.count(units / share, flops / share, wait)
                last = told_to_end(n) or n == settings.train.steps
                pending = n, values, last or n % settings.train.log_every == 0
                if last or n % settings.train.save_every == 0:
                    checkpoints.save(state, settings, data_hash)
                watch.after(n, state, last=last)
                if last:
                    break
            if pending:
                tell(*pending)
        finally:
            batches.close()
            metrics.close()
            watch.close()
        if settings.objective == "autoencoder" and state.step == settings.train.steps:
            export_autoencoder(settings, state.ema["autoencoder"], stream, workdir / "autoencoder")
    watch.end(int(state.step))
    return state


def check_batch(settings: Settings, mesh: jax.sharding.Mesh):
    """Raise InputError if the batch can't be laid out on the mesh."""
    rows = settings.train.accumulate * mesh.shape["data"] * mesh.shape["fsdp"]
    if settings.data.batch % rows:
        raise InputError(
            f"config.data.batch: {settings.data.batch} must be a multiple of accumulate x data x fsdp = {rows}"
        )
    if settings.objective != "flow":
        return
    of_data = [("data", key, "tokens") for key in ("sequence_length", "text_length")]
    of_models = [(group, key, name) for group in ("transformer", "text") for key, name in SPLIT.items()]
    for group, key, name in of_data + of_models:
        size, degree = getattr(getattr(settings, group), key), num_shards(name, mesh.shape)
        if size % degree:
            axes = " x ".join(axes_of(name))
            message = f"config.{group}.{key}: {size} must be a multiple of {axes} = {degree}"
            if key == "heads":
                work = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
                message += f"; {work} would do, and config.mesh.ring splits sequences without this limit"
            raise InputError(message)


def open_records(settings: Settings) -> Mixture:
    """The data that a run trains on.

    Raises: InputError if latents are not, or will not be, of the autoencoder that the settings describe.
    """
    if settings.objective == "autoencoder":
        return Mixture(settings.data.path, "pixels")
    records = Mixture(settings.data.path, settings.data.kind)
    folder = autoencoder_of(settings, records)
    made_by = load_settings(folder, AutoencoderSettings)
    for key in ("latent_channels", "temporal_stride", "spatial_stride"):
        have, wanted = getattr(made_by, key), getattr(settings.autoencoder, key)
        if have != wanted:
            where = folder if settings.data.autoencoder else records.path
            raise InputError(
                f"config.autoencoder: its {key} is {wanted}, but that of {where} is {have}; "
                f"take the config that made the data"
            )
    return records


def check_same(workdir: pathlib.Path, autoencoder: pathlib.Path):
    """Raise InputError if a run would go on with another autoencoder than it began with."""
    copy = workdir / "autoencoder"
    if copy.is_dir() and has_checkpoint(workdir) and model_hash(copy) != model_hash(autoencoder):
        raise InputError(
            f"config.data.autoencoder: {autoencoder} is not the one that {workdir} began with; name {copy}"
        )


def start_workdir(workdir: pathlib.Path, records: Mixture, settings: Settings):
    """Lay down what makes a workdir self-contained: settings, and for latents their autoencoder and tokenizer."""
    with atomic_write(workdir / "settings.json") as temporary:
        temporary.write_text(to_json(settings))
    if settings.objective == "flow":
        copy_files(autoencoder_of(settings, records), workdir / "autoencoder")
        with atomic_write(workdir / "tokenizer.model") as temporary:
            shutil.copyfile(records.tokenizer, temporary)
