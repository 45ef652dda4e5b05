"""Pictures and pages, read back: pixels where they belong, links that lead somewhere, text that stays text."""

import html.parser
import json
import math
import pathlib
import shutil
import urllib.parse

import numpy as np
import PIL.Image
import pytest

from sora_jax.core.errors import InputError
from sora_jax.generate.output.writer import VideoWriter, write_webp
from sora_jax.report.figures import (
    draw_contact_sheet,
    draw_loss_curves,
    draw_reconstruction,
    read_metrics,
    smoothed,
    spread,
)
from sora_jax.report.page import (
    Clip,
    Durations,
    Gallery,
    Pair,
    Pairs,
    Picture,
    Section,
    Table,
    duration,
    shown,
    write_page,
)

VOID = {"meta", "img", "br", "link"}


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(pathlib.Path(path).read_text())
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def links(self):
        return [attrs[key] for _, attrs in self.tags for key in ("src", "href") if key in attrs]


def write_metrics(path, losses, every=10):
    rows = [{"step": every * (i + 1), "loss": loss, "learning_rate": 1e-4} for i, loss in enumerate(losses)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pixels(path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def moving_square(frames=9) -> np.ndarray:
    video = np.full((frames, 32, 48, 3), (20, 60, 120), np.uint8)
    for f in range(frames):
        video[f, 8:16, 4 * f : 4 * f + 8] = (240, 200, 40)
    return video


def clip(folder, name="a clip", caption="a square moves right"):
    with VideoWriter(folder / f"{name}.mp4", 16) as writer:
        writer.write(moving_square())
    write_webp(folder / f"{name}.webp", moving_square(), 16)
    return Clip(folder / f"{name}.mp4", folder / f"{name}.webp", caption, "seed 0")


def test_metrics_are_read_by_step_with_the_last_word(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0, "note": "text is no column"},
        {"step": 30, "loss": 9.0},
        {"step": 20, "loss": 1.0, "gradient_norm": 5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    metrics = read_metrics(path)
    assert set(metrics) == {"step", "loss", "gradient_norm"}
    np.testing.assert_array_equal(metrics["step"], [10, 20, 30])
    np.testing.assert_array_equal(metrics["loss"], [3, 1, 9])
    np.testing.assert_array_equal(metrics["gradient_norm"], [math.nan, 5, math.nan])


def test_metrics_that_can_not_be_read_are_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(InputError, match="no such file"):
        read_metrics(path)
    path.write_text("")
    with pytest.raises(InputError, match="no step in it yet"):
        read_metrics(path)
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not a JSON object"):
        read_metrics(path)
    path.write_text('{"step": 1, "speed": 3}\n')
    with pytest.raises(InputError, match="has a loss"):
        draw_loss_curves(tmp_path / "a.png", {"run": path})
    assert not (tmp_path / "a.png").exists()


def test_the_smoothed_course_is_the_mean_around_each_step():
    values = np.random.default_rng(0).normal(size=200)
    values[[0, 77]] = math.nan, math.inf
    expected = []
    for i in range(200):
        near = values[max(0, i - 4) : i + 5]
        expected.append(near[np.isfinite(near)].mean())
    np.testing.assert_allclose(smoothed(values), expected)
    np.testing.assert_array_equal(smoothed(np.array([3.0, 1.0])), [3, 1])


def curve_rows(path) -> tuple[float, float]:
    """The mean row of the blue line's pixels in the left and in the right third of a picture."""
    picture = pixels(path)
    blue = np.abs(picture - (0x3B, 0x5B, 0xDB)).sum(-1) < 40
    thirds = np.array_split(blue, 3, axis=1)
    return tuple(np.nonzero(third)[0].mean() for third in (thirds[0], thirds[2]))


def test_a_falling_loss_is_drawn_falling(tmp_path):
    down = write_metrics(tmp_path / "down.jsonl", [2 * 0.97**i for i in range(150)])
    draw_loss_curves(tmp_path / "down.png", {"down": down})
    left, right = curve_rows(tmp_path / "down.png")
    assert right > left + 100  # rows count downwards
    up = write_metrics(tmp_path / "up.jsonl", [1 + i / 100 for i in range(150)])
    draw_loss_curves(tmp_path / "up.png", {"up": up})
    left, right = curve_rows(tmp_path / "up.png")
    assert right < left - 100


def test_a_loss_that_is_not_finite_is_marked(tmp_path):
    losses = [1.0 + 0.01 * i for i in range(60)]
    draw_loss_curves(tmp_path / "a.png", {"run": write_metrics(tmp_path / "a.jsonl", losses)})
    losses[30] = math.nan
    draw_loss_curves(tmp_path / "b.png", {"run": write_metrics(tmp_path / "b.jsonl", losses)})
    red = [((p := pixels(tmp_path / f"{name}.png"))[..., 0] - p[..., 2] > 60).sum() for name in "ab"]
    assert red[0] == 0 and red[1] > 100


def test_a_run_of_one_step_is_drawn(tmp_path):
    draw_loss_curves(tmp_path / "a.png", {"run": write_metrics(tmp_path / "a.jsonl", [0.5])})
    assert pixels(tmp_path / "a.png").std() > 1


def test_a_reconstruction_shows_input_output_and_amplified_error(tmp_path):
    video = moving_square()
    worse = video.copy()
    worse[..., 0] += 10
    draw_reconstruction(tmp_path / "a.png", video, worse, columns=3, amplify=5)
    sheet = pixels(tmp_path / "a.png")
    blue = np.all(sheet == (20, 60, 120), -1)
    redder = np.all(sheet == (30, 60, 120), -1)
    error = np.all(sheet == (50, 0, 0), -1)
    # 48x32 fits into 240 pixels five times; three frames, a square in each.
    background = 3 * 25 * (48 * 32 - 64)
    assert blue.sum() == redder.sum() == background
    assert error.sum() == 3 * 25 * 48 * 32
    assert np.nonzero(blue)[0].max() < np.nonzero(redder)[0].min() < np.nonzero(error)[0].min()


def test_a_reconstruction_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match="beside one of"):
        draw_reconstruction(tmp_path / "a.png", moving_square(), moving_square(8))


def test_a_contact_sheet_holds_first_and_last_frame_of_every_video(tmp_path):
    colours = [(200, 30 + 10 * i, 90) for i in range(5)]
    videos = []
    for i, colour in enumerate(colours):
        video = np.zeros((3 + i, 24 + 8 * i, 40, 3), np.uint8)
        video[0], video[-1] = colour, colour[::-1]
        videos.append(video)
    draw_contact_sheet(tmp_path / "a.png", videos, ["a caption of many words " * 20] * 5, columns=2)
    sheet = pixels(tmp_path / "a.png")
    for colour, video in zip(colours, videos, strict=True):
        for shade in (colour, colour[::-1]):
            assert np.all(sheet == shade, -1).sum() == 40 * video.shape[1] * (128 // max(40, video.shape[1])) ** 2


def test_frames_are_spread_from_the_first_to_the_last():
    assert spread(17, 5).tolist() == [0, 4, 8, 12, 16]
    assert spread(2, 5).tolist() == [0, 1]
    assert spread(1, 5).tolist() == [0]


def demo_page(folder):
    draw_loss_curves(folder / "loss.png", {"run": write_metrics(folder / "m.jsonl", [3.0, 2.0, 1.0])})
    draw_reconstruction(folder / "media/sheet.png", moving_square(), moving_square())
    before, after = (
        [clip(folder / "media", f"{name} {i} & more", caption=f"<b>{i + first}</b>") for i in range(2)]
        for name, first in (("before", 0), ("after", 2))
    )
    sections = [
        Section("Before", "", [Gallery(before)]),
        Section("After", "", [Gallery(after)]),
        Section(
            "Pictures", "", [Picture(folder / "media/sheet.png", "34.1 dB"), Picture(folder / "loss.png", "a")]
        ),
        Section("Time", "", [Durations({"Training": 61.0, "Sampling": 2.0})]),
        Section("Numbers", "", [Table(("", "value"), [("Parameters", 4_213_111), ("Machine", "2 cores")])]),
    ]
    write_page(folder / "index.html", "A page", "About it", sections)
    return Reader(folder / "index.html")


def test_the_demo_page_links_to_files_beside_it(tmp_path):
    page = demo_page(tmp_path)
    assert page.count("video") == 4 and page.count("img") == 4 + 2
    links = page.links()
    assert len(links) == 4 * 4 + 2 * 2
    for link in links:
        assert not urllib.parse.urlparse(link).scheme and not link.startswith("/")
        assert (tmp_path / urllib.parse.unquote(link)).is_file(), link


def test_captions_stay_text(tmp_path):
    page = demo_page(tmp_path)
    assert page.count("b") == 0
    assert "<b>3</b>" in page.text


def test_the_demo_page_says_what_took_how_long(tmp_path):
    text = demo_page(tmp_path).text
    assert {"1 min 01 s", "2.0 s", "1 min 03 s", "4,213,111"} <= set(text)


def test_a_report_shows_tables_of_any_numbers(tmp_path):
    rows = [("64x64", 17, 0.123456, None), ("832x480 <wide>", 1, math.inf, math.nan)]
    parts = [Table(("size", "frames", "loss", "PSNR"), rows, "Lower is better"), Durations({"all": 0.0})]
    section = Section("Loss", "At ten fixed times.", [*parts, Gallery([clip(tmp_path)])])
    write_page(tmp_path / "report.html", "Evaluation", "of one run", [section])
    page = Reader(tmp_path / "report.html")
    assert {"0.1235", "–", "∞", "NaN", "832x480 <wide>", "Lower is better"} <= set(page.text)
    numbers = [attrs.get("class") for tag, attrs in page.tags if tag == "td"]
    assert numbers[:6] == ["number short"] * 6


def test_a_page_is_not_written_with_a_picture_missing(tmp_path):
    missing = Section("a", "b", [Picture(tmp_path / "absent.png", "c")])
    with pytest.raises(InputError, match=r"absent\.png: no such file"):
        write_page(tmp_path / "a.html", "a", "b", [missing])
    assert list(tmp_path.iterdir()) == []


def test_numbers_and_times_are_written_for_readers():
    assert [shown(x) for x in (1234567, 0.000123456, 12345.6, -math.inf)] == [
        "1,234,567",
        "0.0001235",
        "12,346",
        "−∞",
    ]
    assert [duration(x) for x in (0.42, 42, 59.7, 185, 3720)] == [
        "0.4 s",
        "42 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 02 min",
    ]


@pytest.mark.slow
def test_the_videos_of_a_pair_play_in_step_in_a_browser(tmp_path):
    """At a phone's width, too, where tables scroll and the page does not."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs sora_jax[ci]: playwright")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs Chromium, on Debian: apt install chromium")
    clips = []
    for name in ("a", "b"):
        frames = np.random.default_rng(0).integers(0, 255, (32, 64, 64, 3)).astype(np.uint8)
        with VideoWriter(tmp_path / f"{name}.mp4", 16) as file:
            file.write(frames)
        write_webp(tmp_path / f"{name}.webp", frames, 16)
        clips.append(Clip(tmp_path / f"{name}.mp4", tmp_path / f"{name}.webp", "a cat"))
    missing = Clip(tmp_path / "broken.mp4", tmp_path / "a.webp", "a dog")
    missing.video.write_bytes(b"no video")
    pairs = [Pair("a cat", (clips[0], clips[1])), Pair("a dog", (clips[0], missing))]
    wide = Table(("measure", *"abcdefgh"), [("all together", *["87.5 % (52.9 % to 97.8 %)"] * 8)])
    write_page(
        tmp_path / "index.html", "Pairs", "of two", [Section("Verdict", "", [wide, Pairs(("a", "b"), pairs)])]
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page(viewport={"width": 390, "height": 900})
        broken = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto((tmp_path / "index.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.pair img:not([hidden])').length == 2", timeout=30_000)
        page.wait_for_function("document.querySelector('.pair video').currentTime > 0.3", timeout=30_000)
        times = page.evaluate("[...document.querySelectorAll('.pair video')].map(video => video.currentTime)")
        assert len(times) == 2 and abs(times[0] - times[1]) < 0.1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.querySelector('tbody td').offsetHeight") < 60  # one line
        browser.close()
    assert broken == []
