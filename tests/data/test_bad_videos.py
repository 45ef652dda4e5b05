"""A folder of what real folders hold: each file is used as it is meant, or skipped with its reason."""

import fractions
import json
import os
import shutil

import av
import numpy as np
import pytest
from test_media import picture, write_sound, write_video

from sora_jax.cli.main import main
from sora_jax.data.records.records import Records

SKIPPED = {  # file -> its reason
    "truncated.mp4": "no video that FFmpeg can read",
    "truncated.mkv": "cut off or damaged",
    "empty.mp4": "the file is empty (0 bytes)",
    "text.mp4": "not a known video or picture: text",
    "sound.mp4": "no video stream in it, only audio",
    "one_frame.mp4": "s long; the shortest clip asked for lasts",
    "noise.webm": "not a known video or picture: it begins with",
    "narrow.mp4": "is smaller than every size asked for",
    "locked.mp4": "can't be read (Permission denied)",
    "gone.mp4": "no such file",
}
USED = {  # file -> clips of 5 frames that are cut from it
    "good.mp4": 3,
    "ten_bits.mp4": 3,
    "rotated.mp4": 3,
    "variable.mp4": 3,
    "huge.mp4": 1,
    "mkv_named.avi": 3,
    "picture_named.gif": 3,
}


def write_huge(path):
    """Five frames of 8000 x 4000."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "40", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = 4000, 8000, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((6000, 8000), 90 + i, np.uint8), format="yuv420p")
            frame.pts, frame.time_base = i, fractions.Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    times = [i / 8 for i in range(15)]
    good = write_video(folder / "good.mp4", times)
    for name in ("truncated.mp4", "truncated.mkv"):
        whole = write_video(folder / name, [i / 8 for i in range(40)]).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 50)
    (folder / "noise.webm").write_bytes(np.random.default_rng(0).bytes(20_000))
    write_sound(folder / "sound.mp4")
    write_video(folder / "one_frame.mp4", [0.0])
    write_video(folder / "narrow.mp4", times, size=(16, 64))
    write_video(folder / "ten_bits.mp4", times, pixel_format="yuv420p10le")
    write_video(folder / "rotated.mp4", times, turn=90)
    write_video(folder / "variable.mp4", [0.0, 0.02, 0.04, 0.5, 0.52, 1.0, 1.5, 1.52, 1.8])
    write_huge(folder / "huge.mp4")
    shutil.copy(write_video(folder / "a.mkv", times), folder / "mkv_named.avi")
    (folder / "a.mkv").rename(folder / "picture_named.gif")
    (folder / "folder.mp4").mkdir()
    (folder / "gone.mp4").symlink_to(folder / "elsewhere.mp4")
    shutil.copy(good, folder / "locked.mp4")
    (folder / "locked.mp4").chmod(0)
    return folder


def test_bad_videos_are_used_or_skipped_with_their_reason(videos, tmp_path, capsys):
    skipped, used = dict(SKIPPED), dict(USED)
    if os.access(videos / "locked.mp4", os.R_OK):  # to root nothing is locked
        used["locked.mp4"] = 3
        del skipped["locked.mp4"]
    out = tmp_path / "d"
    flags = ["--config.data.sizes=('48x32',)", "--config.data.frames=(5,)", "--config.data.fps=8.0"]
    assert main(["prepare", f"--videos={videos}", f"--out={out}", "--config.data.validation=0.0", *flags]) == 0
    said = capsys.readouterr().err
    assert f"prepared, {sum(used.values())} train and 0 validation clips (pixels) of {len(used)} files" in said
    assert f"skipped {len(skipped)} files:" in said
    prepared = json.loads((out / "prepared.json").read_text())
    reasons = {file["name"]: file["reason"] for file in prepared["files"] if file["reason"]}
    assert reasons.keys() == skipped.keys()
    for name, reason in skipped.items():
        assert reason in reasons[name]
        assert "\n" not in reasons[name]
        assert f"  {name}: {reasons[name]}\n" in said
    records = Records(out, "pixels")
    made = {}
    for index, clip in enumerate(records.clips("train")):
        made.setdefault(clip.source, []).append(records.read("train", index))
    assert {name: len(clips) for name, clips in made.items()} == used
    assert {pixels.shape for clips in made.values() for pixels in clips} == {(5, 32, 48, 3)}
    # The same pictures from ten bits, and from files whose names lie; rotated ones stand upright.
    for name in ("ten_bits.mp4", "mkv_named.avi", "picture_named.gif"):
        for ours, good in zip(made[name], made["good.mp4"], strict=True):
            assert np.abs(ours.astype(int) - good).mean() < 3
    upright = np.rot90(picture(0))[16:48].astype(int)
    assert np.abs(made["rotated.mp4"][0][0] - upright).mean() < 6
    # A frame is shown until the next comes: at 0.25 s it is that of 0.04 s, or of 0.5 s, whichever is nearer.
    greys = [int(frame[16, 24, 0]) for pixels in made["variable.mp4"] for frame in pixels]
    assert greys == sorted(greys)
    assert len(set(greys)) >= 5
    assert main(["data", "verify", f"--data={out}"]) == 0
