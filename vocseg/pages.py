"""Building blocks of self-contained HTML pages: images and styles are embedded in the file."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: .5rem 0; } td, th { padding: .15rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f5f5f5; }
figure { display: inline-block; margin: .4rem; vertical-align: top; } figcaption { font-size: .8rem; color: #555; }
img { max-width: 100%; } pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .8rem; }
.problem { color: #a00; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Builds a complete page from its title and the HTML fragments of its body."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style></head>\n'
        f"<body>\n<h1>{text(title)}</h1>\n{chr(10).join(body)}\n</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Escapes any value for use in HTML."""
    return html.escape(str(value))


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
