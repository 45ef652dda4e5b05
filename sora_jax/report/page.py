"""Pages of results: one HTML file each, beside the media that it shows."""

import dataclasses
import html
import math
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from sora_jax.core.errors import InputError
from sora_jax.core.storage import as_path, atomic_write, local_file

SHORT = 36  # letters of a table's cell that stay on one line

STYLE = """
:root { color-scheme: light dark;
  --paper: light-dark(#f6f7f9, #14161b); --card: light-dark(#fff, #1d2027); --ink: light-dark(#1f2430, #e8eaef);
  --faint: light-dark(#667085, #98a1b0); --line: light-dark(#e3e6ec, #2d323c);
  --blue: light-dark(#3b5bdb, #7b96ff) }
a { color: var(--blue); text-decoration: none }
[hidden] { display: none !important }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 48px 24px 64px }
h1 { margin: 0 0 8px; font-size: 34px; line-height: 1.2; letter-spacing: -.02em }
h2 { margin: 48px 0 4px; font-size: 21px; letter-spacing: -.01em }
p { margin: 0; color: var(--faint); max-width: 72ch }
.parts { margin-top: 16px; display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr) }
.gallery { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 244px), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden }
figure video, figure img { display: block; width: 100%; height: auto }
.pixels { image-rendering: pixelated }
figcaption { padding: 12px 16px 14px; line-height: 1.4 }
figcaption small { display: block; margin-top: 4px; color: var(--faint) }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 9px 16px; text-align: left; border-top: 1px solid var(--line) }
caption { padding: 12px 16px; text-align: left; color: var(--faint) }
thead th { border-top: 0; color: var(--faint); font-weight: 500; font-size: 14px }
tbody th { font-weight: 500 }
.number { text-align: right }
.short { white-space: nowrap }
td:not(.short), th:not(.short) { min-width: 16em; overflow-wrap: anywhere }
.pairs { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)) }
.pair > div { display: grid; grid-template-columns: 1fr 1fr; gap: 2px }
.pair small { display: block; padding: 8px 12px 0; color: var(--faint); line-height: 1.4 }
.pair b { color: var(--ink); font-weight: 600 }
.sheet { table-layout: fixed }
.sheet th, .sheet td { min-width: 0; padding: 8px; vertical-align: top }
.sheet thead th:first-child { width: 120px }
.sheet img { display: block; width: 100%; height: auto }
.time { width: 55% }
.bar { height: 8px; min-width: 2px; border-radius: 4px; background: var(--blue) }
footer { margin-top: 56px; color: var(--faint); font-size: 14px }
"""


# Both videos of a pair begin together, and the second follows the first; a browser that can't play one of them
# shows both as pictures, which begin together as well.
IN_STEP = """<script>
for (const pair of document.querySelectorAll(".pair")) {
  const [a, b] = pair.querySelectorAll("video");
  const pictures = pair.querySelectorAll("img");
  const instead = () => {
    if (!a.isConnected) return;
    a.remove(); b.remove();
    for (const picture of pictures) { picture.src = picture.dataset.src; picture.hidden = false; }
  };
  a.addEventListener("error", instead); b.addEventListener("error", instead);
  if (a.error || b.error) instead();
  const start = () => {
    if (!pair.dataset.seen || a.readyState < 3 || b.readyState < 3) return;
    b.currentTime = a.currentTime; a.play(); b.play();
  };
  a.addEventListener("canplay", start, { once: true }); b.addEventListener("canplay", start, { once: true });
  a.addEventListener("timeupdate", () => {
    if (Math.abs(a.currentTime - b.currentTime) > 0.08) b.currentTime = a.currentTime;
    if (b.paused && !a.paused) b.play();
  });
  new IntersectionObserver(([entry]) => {
    if (entry.isIntersecting) { pair.dataset.seen = "1"; a.preload = b.preload = "auto"; start(); }
    else { a.pause(); b.pause(); }
  }).observe(pair);
}
</script>"""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video: an mp4, a WebP for browsers that can't play it, and a caption."""

    video: pathlib.Path
    preview: pathlib.Path
    caption: str
    note: str = ""

    def html(self, folder: pathlib.Path) -> str:
        with PIL.Image.open(local_file(self.preview)) as image:
            width, height = image.size
        size = f'width="{width}" height="{height}"' + (' class="pixels"' if width < 200 else "")
        video, preview = link(self.video, folder), link(self.preview, folder)
        # A browser without the codec raises an error: the hidden picture then replaces the video.
        return (
            f'<figure><video {size} src="{video}" autoplay loop muted playsinline'
            f' onerror="this.nextElementSibling.hidden = false; this.remove()"></video>'
            f'<img {size} src="{preview}" alt="{html.escape(self.caption)}" loading="lazy" hidden>'
            f"<figcaption>{html.escape(self.caption)}<small>{html.escape(self.note)}</small>"
            f'<small><a href="{video}">mp4</a> · <a href="{preview}">WebP</a></small></figcaption></figure>'
        )


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Videos side by side."""

    clips: Sequence[Clip]

    def html(self, folder: pathlib.Path) -> str:
        return f'<div class="gallery">{"".join(clip.html(folder) for clip in self.clips)}</div>'


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two videos of one prompt."""

    caption: str
    clips: tuple[Clip, Clip]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of videos that play in step, under the names of their sides."""

    names: tuple[str, str]
    pairs: Sequence[Pair]

    def html(self, folder: pathlib.Path) -> str:
        return f'<div class="pairs">{"".join(self._pair(pair, folder) for pair in self.pairs)}</div>{IN_STEP}'

    def _pair(self, pair: Pair, folder: pathlib.Path) -> str:
        sides = ""
        for name, clip in zip(self.names, pair.clips, strict=True):
            with PIL.Image.open(local_file(clip.preview)) as image:
                width, height = image.size
            size = f'width="{width}" height="{height}"' + (' class="pixels"' if width < 200 else "")
            sides += (
                f'<div><video {size} src="{link(clip.video, folder)}" loop muted playsinline preload="metadata">'
                f'</video><img {size} data-src="{link(clip.preview, folder)}" alt="{html.escape(clip.caption)}" '
                f"hidden><small><b>{html.escape(name)}</b> {html.escape(clip.note)}</small></div>"
            )
        return (
            f'<figure class="pair"><div>{sides}</div><figcaption>{html.escape(pair.caption)}</figcaption></figure>'
        )


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A table of videos as animated pictures, loaded when they come into view, each a link to its mp4.

    header: of the columns; rows: (name, a video for each column, None: absent); corner: title of the names.
    """

    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Clip | None]]]
    corner: str = "step"

    def html(self, folder: pathlib.Path) -> str:
        def shown(clip: Clip | None) -> str:
            if clip is None:
                return "<td>–</td>"
            with PIL.Image.open(local_file(clip.preview)) as image:
                width, height = image.size
            size = f'width="{width}" height="{height}"' + (' class="pixels"' if width < 200 else "")
            return (
                f'<td><a href="{link(clip.video, folder)}"><img {size} src="{link(clip.preview, folder)}" '
                f'alt="{html.escape(clip.caption)}" loading="lazy"></a></td>'
            )

        names = "".join(f"<th>{html.escape(name)}</th>" for name in self.header)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(shown(clip) for clip in clips)}</tr>"
            for name, clips in self.rows
        )
        head = f"<thead><tr><th>{html.escape(self.corner)}</th>{names}</tr></thead>"
        least = 120 + 160 * len(self.header)  # pixels; a narrow window scrolls
        table = f'<table class="sheet" style="min-width: {least}px">{head}<tbody>{rows}</tbody></table>'
        return f'<div class="scroll">{table}</div>'


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture over the whole width, with a caption."""

    file: pathlib.Path
    caption: str

    def html(self, folder: pathlib.Path) -> str:
        caption = html.escape(self.caption)
        source = link(self.file, folder)
        return (
            f'<figure><a href="{source}"><img src="{source}" alt="{caption}"></a>'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its name, None is an absent number."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]  # of str, float or None
    caption: str = ""

    def html(self, folder: pathlib.Path) -> str:
        columns = list(zip(*self.rows, strict=True))
        numeric = [any(isinstance(cell, int | float) for cell in column) for column in columns]
        names = "".join(cell("th", name, right) for name, right in zip(self.header, numeric, strict=True))
        rows = "".join(
            "<tr>"
            + "".join(
                cell("td" if index else "th", shown(value), numeric[index]) for index, value in enumerate(row)
            )
            + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = f"{caption}<thead><tr>{names}</tr></thead><tbody>{rows}</tbody>"
        return f'<div class="scroll"><table>{body}</table></div>'


@dataclasses.dataclass(frozen=True)
class Durations:
    """Durations as bars: name -> seconds."""

    seconds: Mapping[str, float]

    def html(self, folder: pathlib.Path) -> str:
        longest = max(self.seconds.values()) or 1
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>{cell('td', duration(value), True)}"
            f'<td class="time"><div class="bar" style="width: {value / longest:.1%}"></div></td></tr>'
            for name, value in self.seconds.items()
        )
        total = f"<tr><th>total</th>{cell('td', duration(sum(self.seconds.values())), True)}<td></td></tr>"
        return f'<div class="scroll"><table><tbody>{rows}{total}</tbody></table></div>'


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, a note, and the parts below them."""

    title: str
    note: str
    parts: Sequence[Gallery | Pairs | Sheet | Picture | Table | Durations]

    def html(self, folder: pathlib.Path) -> str:
        parts = "".join(part.html(folder) for part in self.parts)
        return (
            f"<section><h2>{html.escape(self.title)}</h2><p>{html.escape(self.note)}</p>"
            f'<div class="parts">{parts}</div></section>'
        )


def write_page(path: str | os.PathLike, title: str, summary: str, sections: Sequence[Section]) -> None:
    """Write a page as one HTML file. Its links are relative, so its folder can be moved.

    Raises: InputError if a file that the page shows is absent.
    """
    path = as_path(path)
    body = "".join(section.html(path.parent) for section in sections)
    with atomic_write(path) as temporary:
        temporary.write_text(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
            f"<header><h1>{html.escape(title)}</h1><p>{html.escape(summary)}</p></header>{body}"
            "<footer>Written by sora_jax. Videos made by models are AI-generated.</footer></main></body></html>\n",
            encoding="utf-8",
        )


def link(file: str | os.PathLike, folder: pathlib.Path) -> str:
    """The relative address of a file, escaped for an attribute."""
    if not as_path(file).is_file():
        raise InputError(f"{file}: no such file; the page in {folder} shows it")
    relative = os.path.relpath(as_path(file).resolve(), folder.resolve())
    return html.escape(urllib.parse.quote(pathlib.PurePath(relative).as_posix()))


def cell(tag: str, text: str, right: bool) -> str:
    # A short text stays on one line, and a narrow window scrolls; a long one wraps.
    kinds = ["number"] * right + ["short"] * (len(text) <= SHORT)
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"


def shown(value: str | float | None) -> str:
    """A value with four significant digits and thousands separators."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as 0.4 s, 42 s, 3 min 05 s or 1 h 02 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
