"""The emoji world on its few files: animations, captions, the split, the videos, and downloads."""

import base64
import hashlib
import http.server
import io
import json
import os
import pathlib
import tarfile
import threading

import numpy as np
import pytest

from sora_jax.core.errors import InputError
from sora_jax.data.media.video import probe, read_clip
from sora_jax.worlds.emoji.animations import (
    FPS,
    FRAMES,
    LOOP,
    SIZE,
    loop_times,
    over_colour,
    read_animation,
    unpack,
)
from sora_jax.worlds.emoji.captions import BACKGROUNDS, VARIED, captions, plain_caption
from sora_jax.worlds.emoji.fetch import fetch
from sora_jax.worlds.emoji.prompts import nearest, remark
from sora_jax.worlds.emoji.subjects import TONES, all_emoji
from sora_jax.worlds.emoji.videos import backgrounds_of, write_set

FILES = pathlib.Path(
    os.environ.get("SORA_JAX_EMOJI", pathlib.Path(__file__).parents[2] / "../shared/emoji")
).resolve()
THUMBS = "1f44d-1f3fd"  # of the files, one that is learned from
pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="SORA_JAX_EMOJI names no folder of WebP files")


@pytest.fixture(scope="module")
def animations(tmp_path_factory):
    """Three of the files, and a still one, as `unpack` writes them."""
    source, folder = (tmp_path_factory.mktemp(name) for name in ("webp", "animations"))
    for name in (THUMBS, "1f600", "1f680"):
        (source / f"{name}.webp").symlink_to(FILES / f"{name}.webp")
    assert unpack(source, folder) == 3
    return folder


def test_an_animation_is_a_loop_of_small_frames_with_colours_multiplied_by_opacity(animations):
    loop = np.load(animations / "1f600.npy")
    assert loop.shape == (LOOP, SIZE, SIZE, 4) and loop.dtype == np.uint8
    assert (loop[..., :3] <= loop[..., 3:]).all()
    assert (loop[:, 0, 0, 3] == 0).all() and (loop[:, 32, 32, 3] == 255).all()
    assert np.abs(np.diff(loop.astype(int), axis=0)).max() > 50  # it moves


def test_the_times_of_a_loop_are_even_and_its_speed_changes_by_less_than_half():
    assert loop_times(72) == list(range(0, 72, 3))
    assert loop_times(36) == [*range(0, 36, 3), *range(0, 36, 3)]
    for count in (28, 33, 47, 49, 57, 73, 97):
        steps = np.diff(loop_times(count)) % count
        assert steps.max() - steps.min() <= 1
        assert 2 <= steps.mean() * 24 / 23 <= 4.5


def test_a_damaged_file_says_which_one():
    data = (FILES / "1f600.webp").read_bytes()
    with pytest.raises(InputError, match=r"face\.webp: is no WebP picture, or damaged"):
        read_animation(data[:100], "face.webp")


def test_transparent_pixels_show_the_background(animations):
    made = over_colour(np.load(animations / "1f680.npy"), BACKGROUNDS["teal"])
    assert (made[:, 0, 0] == BACKGROUNDS["teal"]).all()


def test_one_tone_of_each_of_275_subjects_is_held_out():
    emoji = all_emoji().values()
    assert len(emoji) == 2109
    assert sum(not e.tone for e in emoji) == 734
    held_out = [e for e in emoji if e.held_out]
    assert len(held_out) == len({e.subject for e in held_out}) == 275
    counts = [sum(e.tone == tone for e in held_out) for tone in TONES.values()]
    assert min(counts) > 40  # drawn by hash: about as many of each


def test_captions_say_the_same_in_plain_words():
    emoji = all_emoji()[THUMBS]
    assert plain_caption(emoji, "orange") == "a thumbs up with medium skin tone on an orange background"
    made = captions(emoji, "orange")
    assert len(set(made)) == 1 + VARIED and made == captions(emoji, "orange")
    for caption in made:
        assert all(word in caption for word in ("thumbs up", "medium skin tone", "orange"))
    names = [e.name for e in all_emoji().values() if not e.tone]
    assert len(set(names)) == len(names)


def test_a_set_is_videos_on_several_backgrounds_with_captions(animations, tmp_path):
    count = write_set("videos", animations, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    learned = [e for e in all_emoji().values() if (animations / f"{e.code}.npy").exists() and not e.held_out]
    assert count == len(lines) == 6 * len(learned)
    line = next(line for line in lines if line["video"].startswith("1f680"))
    background = backgrounds_of(all_emoji()["1f680"], 1)[0]
    assert line["caption"] == plain_caption(all_emoji()["1f680"], background)
    video = probe(tmp_path / line["video"])
    frames = read_clip(video, (SIZE, SIZE), fps=FPS, start=0, frames=FRAMES)
    truth = over_colour(np.load(animations / "1f680.npy"), BACKGROUNDS[background])
    assert np.abs(frames[:LOOP].astype(int) - truth).mean() < 3
    assert np.abs(frames[LOOP].astype(int) - frames[0]).mean() < 1.5  # a whole loop


def test_an_unknown_set_names_the_nearest(animations, tmp_path):
    with pytest.raises(InputError, match="did you mean 'videos'"):
        write_set("video", animations, tmp_path)


def test_a_prompt_beyond_the_words_gets_the_nearest_that_are_known():
    assert remark("a waving hand with medium skin tone on a yellow background") == ""
    assert '"a grinning face"' in remark("a grining face")
    assert "no turquoise background" in remark("a cat on a turquoise background")
    assert "no tanned skin tone" in remark("a waving hand with tanned skin tone")
    assert nearest("hello")[0].name == "a waving hand"


@pytest.fixture
def registry(tmp_path):
    """(address, packages, requests) of a registry with one package, that breaks its first answer off."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(FILES / "1f600.webp", "package/assets/1f600.webp")
    content, ranges = stream.getvalue(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            ranges.append((self.path, begin))
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin:] if len(ranges) > 1 else content[: len(content) // 2])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    checksum = base64.b64encode(hashlib.sha512(content).digest()).decode()
    yield f"http://127.0.0.1:{server.server_port}", {"@lobehub/some": (len(content), checksum)}, ranges
    server.shutdown()
    server.server_close()


def test_a_broken_download_continues_where_it_stopped(registry, tmp_path):
    address, packages, ranges = registry
    with pytest.raises(InputError, match="the same command continues"):
        fetch(tmp_path, packages=packages, registry=address)
    assert not list(tmp_path.glob("*.tgz"))
    fetch(tmp_path, packages=packages, registry=address)
    size = packages["@lobehub/some"][0]
    assert ranges == [("/@lobehub/some/-/some-1.0.0.tgz", 0), ("/@lobehub/some/-/some-1.0.0.tgz", size // 2)]
    assert unpack(tmp_path, tmp_path / "animations") == 1
    fetch(tmp_path, packages=packages, registry=address)
    assert len(ranges) == 2  # what is there is kept


def test_a_package_that_is_not_the_expected_one_is_removed(registry, tmp_path):
    address, packages, ranges = registry
    ranges.append(None)  # no broken answer
    wrong = {name: (size, "A" * 88) for name, (size, _) in packages.items()}
    with pytest.raises(InputError, match=r"is not version 1\.0\.0; it is removed"):
        fetch(tmp_path, packages=wrong, registry=address)
    assert not list(tmp_path.iterdir())
