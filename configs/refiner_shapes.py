"""A refiner for the shapes world: videos of 64x64 become 128x128, at up to four times the frame rate.

It starts as the shipped model (configs/shapes.py); each clip is a crop of 64x64 of a video of 128x128, with what
a worse camera, a codec or the shipped model itself would have made of it. From nothing:

    sora-jax data shapes --out=data/videos --sets=refiner
    python tests/benchmarks/shapes/generated_inputs.py --videos=data/videos/refiner/any --out=data/videos/generated
    sora-jax prepare --config=configs/refiner_shapes.py --videos=data/videos/refiner/any --out=data/refiner \
        --tokenizer=sora_jax/worlds/shapes/weights/tokenizer.model
    sora-jax prepare --config=configs/refiner_shapes.py:inputs --videos=data/videos/generated \
        --out=data/generated --tokenizer=sora_jax/worlds/shapes/weights/tokenizer.model
    sora-jax train --config=configs/refiner_shapes.py --config.data.path=data/refiner \
        --config.refine.generated=data/generated --workdir=runs/refiner
    sora-jax refine --checkpoint=runs/refiner --video=small.mp4 --size=128x128 --out=large.mp4
    python tests/benchmarks/shapes/refine.py runs/refiner --out=runs/refined
    sora-jax evaluate --subject='runs/refined/refiner --prompts=runs/refined/prompts.txt' --suite=temporal \
        --out=runs/refined/report

Devices: 1, a laptop's CPU. 9,724,288 parameters.
Time: not measured.
Result: not trained to the end: docs/notes/refiner.md has what is known of it.
"""

import pathlib
import runpy

import sora_jax
from sora_jax.config.training import CONDITIONING_TASKS

generator = runpy.run_path(str(pathlib.Path(__file__).with_name("shapes.py")))
SHIPPED = pathlib.Path(sora_jax.__file__).parent / "worlds" / "shapes" / "weights"


def get_config(part="outputs"):
    config = generator["get_config"]()
    config.objective = "refine"
    # A mask for each frame of a latent, then the latents of the input.
    config.transformer.condition_channels = 2 + config.autoencoder.latent_channels
    config.data.update(
        autoencoder=str(SHIPPED / "autoencoder"),
        sizes=("128x128",),
        frames=(17,),
        crop_size="64x64",
        clips_per_sequence=1,
        text_length=64,
        batch=32,
    )
    # Windows of a long video begin with refined frames.
    config.masks.update(dict.fromkeys(CONDITIONING_TASKS, 0.0) | {"text": 3.0, "prefix": 1.0})
    config.flow.update(ghosts=0.0, shift_scale=1.0, shift=2.0, time_min=0.0, time_max=0.65)
    config.refine.autoencoder_tile = 64  # it was trained on no larger frames
    config.optimizer.update(learning_rate=5e-4, warmup_steps=20)
    config.train.update(init_from=str(SHIPPED), steps=1000, save_every=50, eval_every=200)
    config.sample.update(
        size="128x128", frames=17, steps=4, solver="euler", guidance=1.0, guidance_min=0.0, guidance_max=1.0
    )
    if part == "inputs":  # for `prepare`
        config.data.sizes = ("64x64",)
    elif part != "outputs":
        raise ValueError(f"{part}: outputs or inputs")
    return config
