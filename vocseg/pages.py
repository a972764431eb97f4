"""Building blocks of self-contained HTML pages: images and styles are embedded in the file."""

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1f2328; --muted: #59636e; --line: #d9dee3; --soft: #f4f6f8;
  --accent: #0a5fd0; --problem: #b3201c; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --text: #e6e9ec; --muted: #9aa4ae; --line: #353b42;
  --soft: #1e2227; --accent: #6cb0ff; --problem: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: var(--text); background: var(--page); }
a { color: var(--accent); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: .5rem 0; } td, th { padding: .15rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: var(--soft); }
figure { display: inline-block; margin: .4rem; vertical-align: top; }
figcaption { font-size: .8rem; color: var(--muted); }
img { max-width: 100%; height: auto; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; font-size: .8rem; }
.problem { color: var(--problem); }
.slider { position: relative; display: block; overflow: hidden; border-radius: .3rem; }
.slider img { display: block; width: 100%; height: auto; }
.slider .after { position: absolute; inset: 0; height: 100%; clip-path: inset(0 0 0 var(--at)); }
.slider::after { content: ""; position: absolute; inset: 0 auto 0 var(--at); width: 2px; margin-left: -2px;
  background: #fff; box-shadow: 0 0 3px #0009; pointer-events: none; }
.slider .grip { position: absolute; left: clamp(1.1rem, var(--at), 100% - 1.1rem); bottom: .35rem; z-index: 1;
  width: 1.5rem; height: 1.5rem; margin-left: -.75rem; border-radius: 50%; background: #fff; color: #1f2328;
  box-shadow: 0 0 4px #0009; font: 700 .75rem/1.5rem system-ui, sans-serif; text-align: center; pointer-events: none; }
.slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize;
  appearance: none; touch-action: pan-y; }
.slider input::-webkit-slider-thumb { appearance: none; width: 1px; height: 100%; }
.slider input::-moz-range-thumb { width: 1px; height: 100%; border: 0; }
.slider:focus-within { outline: 3px solid var(--accent); outline-offset: 2px; }
"""


SCRIPT = """
// a browser may move a range input only by its thumb, which is invisible here: any touch moves it
function slide(event) {
  const box = event.target.closest?.(".slider"), range = box?.querySelector("input");
  if (!range || (event.type !== "input" && !event.buttons)) return;
  if (event.type !== "input") {
    const {left, width} = box.getBoundingClientRect();
    range.value = 100 * (event.clientX - left) / width;
  }
  box.style.setProperty("--at", range.value + "%");
}
for (const type of ["pointerdown", "pointermove", "input"]) document.addEventListener(type, slide);
"""


def page(title: str, body: Iterable[str], style: str = "") -> str:
    """Builds a complete page from its title, the HTML fragments of its body and CSS that is added to ``STYLE``."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{STYLE}{style}</style></head>\n'
        f"<body>\n<h1>{text(title)}</h1>\n{chr(10).join(body)}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Escapes any value for use in HTML; bytes of a file name that are no UTF-8 become question marks."""
    return html.escape(str(value)).encode(errors="replace").decode()


def picture(pixels: np.ndarray, caption: str = "", kind: str = "PNG") -> str:
    """Builds a figure with an embedded image, RGB uint8 [H, W, 3]; ``kind`` is PNG or JPEG."""
    file = io.BytesIO()
    settings: dict[str, Any] = {"quality": 85} if kind == "JPEG" else {"optimize": True}
    Image.fromarray(pixels).save(file, kind, **settings)
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    return (
        f'<figure><img src="{source}" width="{pixels.shape[1]}" height="{pixels.shape[0]}" alt="{text(caption)}">'
        f"{f'<figcaption>{text(caption)}</figcaption>' if caption else ''}</figure>"
    )


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Builds a table; the cells are escaped."""
    cells = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table>\n<tr>{cells}</tr>\n{lines}</table>"


def link(path: str) -> str:
    """Builds the URL of a file from its path relative to the page, which may have any characters."""
    return quote(os.fsencode(path))


def slider(before: str, after: str, label: str, size: tuple[int, int] | None = None, start: int = 50) -> str:
    """Builds a comparison of two images of equal size: left of a line is the first one, right of it the second one.

    The line follows the pointer, a finger and the arrow keys.

    Args:
        before: source of the image on the left: a URL, such as one that :func:`link` builds, or a data URI.
        after: source of the image on the right.
        label: says what is compared, for screen readers.
        size: width and height in pixels, or any numbers of this ratio; a page then has its layout before the images
            are loaded.
        start: where the line is at first, in percent of the width; at 0 only the second image is seen.
    """
    sides = f' width="{size[0]}" height="{size[1]}"' if size else ""
    return (
        f'<div class="slider" style="--at: {start}%"><img src="{text(before)}" alt="{text(label)}"{sides} '
        f'loading="lazy"><img class="after" src="{text(after)}" alt=""{sides} loading="lazy">'
        '<span class="grip" aria-hidden="true">&#8596;</span><input type="range" min="0" max="100" step="any" '
        f'value="{start}" aria-label="{text(label)}" autocomplete="off"></div>'
    )
