"""Tables as text: Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Collection, Sequence
from typing import Any

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
}


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, a heading first, as a Markdown table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of cells, a heading first, as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def latex_table(rows: Sequence[Sequence[str]], bold: Collection[int] = ()) -> str:
    """Rows of cells, a heading first, as a LaTeX table in the style of the package booktabs.

    Args:
        rows: plain text, which is escaped.
        bold: indices of the rows to set in bold.

    Returns:
        A ``tabular``; the first column is aligned to the left, all others to the right.
    """
    lines = []
    for index, row in enumerate(rows):
        cells = [latex_text(cell) for cell in row]
        lines.append(" & ".join(f"\\textbf{{{cell}}}" if index in bold and cell else cell for cell in cells) + r" \\")
    body = "\n".join(lines[1:])
    columns = "l" + "r" * (len(rows[0]) - 1)
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def latex_text(text: str) -> str:
    """Escapes the characters that LaTeX reads as commands."""
    return "".join(_LATEX.get(character, character) for character in text)
