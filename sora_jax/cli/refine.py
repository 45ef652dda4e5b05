"""The command `refine`."""

import pathlib

from sora_jax.cli.flags import MESH, NO_COMPILE_CACHE, Command, Flag, mesh_of


def run(values, console):
    from sora_jax.generate.refine.command import RefineRequest, refine
    from sora_jax.worlds.shipped import refiner_folder

    given = pathlib.Path(values.checkpoint).expanduser() if values.checkpoint else None
    request = RefineRequest(
        pathlib.Path(values.video).expanduser(),
        size=values.size or "",
        fps=values.fps,
        prompt=values.prompt or "",
        seed=values.seed,
        steps=values.steps,
        noise=values.noise,
        strength=values.strength,
        back_projection=values.back_projection,
        watermark=values.watermark or "",
    )
    out = pathlib.Path(values.out).expanduser()
    refine(refiner_folder(given), request, out, mesh=mesh_of(values), console=console)


COMMAND = Command(
    "a video and a refiner -> the video larger, sharper, with more frames",
    {
        "Input": (
            Flag("video", "Video or picture to refine; its sound is kept.", example="small.mp4"),
            Flag(
                "checkpoint",
                "Workdir of a trained refiner, or a released one; default: that of the shapes world.",
            ),
            Flag("prompt", "Description of the video, if it is known."),
        ),
        "Output": (
            Flag("out", "An .mp4.", example="large.mp4"),
            Flag(
                "size",
                "WIDTHxHEIGHT, from the video's own size to four times it, in its shape; default: as much larger "
                "as the refiner was trained for.",
            ),
            Flag("fps", "Frames per second: two, three or four times the video's; default: the video's.", float),
            Flag("watermark", "Text to write into the lower right corner of the video."),
        ),
        "Sampling": (
            Flag("steps", "Steps of the solver; default: the checkpoint's.", int, min=1),
            Flag(
                "noise",
                "Noise of the condition, from 0 to 1: the more, the less the video is trusted; default: the "
                "checkpoint's.",
                float,
            ),
            Flag(
                "strength",
                "Noise time of the first step: the more, the more is made anew; default: the highest that the "
                "refiner was trained for.",
                float,
            ),
            Flag(
                "back-projection",
                "Share of the video's colours and coarse forms that the output keeps, from 0 to 1.",
                float,
                1.0,
            ),
            Flag("seed", "Seed of the noise.", int, 0, min=0, max=2**64 - 1),
        ),
        "Hardware": (MESH, NO_COMPILE_CACHE),
    },
    run,
    about="A video of any length is refined in windows, with memory that does not grow. Frames between frames are "
    "made from linear blends, never across a cut.",
    examples=(
        "--checkpoint=runs/refiner --video=small.mp4 --out=large.mp4",
        "--checkpoint=runs/refiner --video=small.mp4 --size=256x256 --fps=32 --out=large.mp4",
    ),
    joins=True,
)
