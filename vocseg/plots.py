"""Pictures: labels in colour, errors, panels of images, and figures of losses, confusions and IoU."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vocseg.data.labels import VOC_PALETTE, VOID

RIGHT, MISSED, WRONG = (235, 235, 235), (50, 110, 220), (215, 45, 40)
"""Colours of :func:`errors`."""


def coloured(labels: np.ndarray) -> np.ndarray:
    """Labels uint8 [H, W] in VOC's colours, uint8 [H, W, 3]; void is its cream."""
    return VOC_PALETTE[labels]


def overlay(image: np.ndarray, labels: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A photograph, RGB uint8 [H, W, 3], with its labels' colours upon it; background stays as it is."""
    mixed = (1 - opacity) * image + opacity * coloured(labels)
    return np.where((labels == 0)[..., None], image, mixed.round()).astype(np.uint8)


def errors(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where a prediction is wrong, RGB uint8 [H, W, 3].

    Args:
        prediction: labels uint8 [H, W].
        truth: labels uint8 [H, W], 255 = void.

    Returns:
        Light grey where it is right, blue where an object was called background, red where anything else went wrong,
        and void's colour where nothing counts.
    """
    picture = np.full((*truth.shape, 3), RIGHT, dtype=np.uint8)
    picture[prediction != truth] = WRONG
    picture[(prediction == 0) & (truth != 0)] = MISSED
    picture[truth == VOID] = VOC_PALETTE[VOID]
    return picture


def panels(
    rows: Sequence[Sequence[np.ndarray]],
    headings: Sequence[str],
    legend: Sequence[tuple[str, Sequence[int]]] = (),
    width: int = 160,
) -> np.ndarray:
    """Pictures in a grid, with headings above and a legend below.

    Args:
        rows: of pictures RGB uint8 [H, W, 3], the first a photograph; those of a row have equal sizes.
        headings: one for each column.
        legend: names and their RGB colours.
        width: of a picture, in pixels.

    Returns:
        RGB uint8 [h, w, 3].
    """
    gap, line = 4, 16
    heights = [max(1, round(width * row[0].shape[0] / row[0].shape[1])) for row in rows]
    # photographs on end would make a row much taller than the others
    sizes = [(width, height) if height <= width else (width * width // height, width) for height in heights]
    total_width = gap + len(headings) * (width + gap)
    entries = _places([name for name, _ in legend], total_width, gap)
    legend_lines = 1 + max((place[1] for place in entries), default=-1)
    total_height = line + sum(height + gap for _, height in sizes) + legend_lines * line + gap
    page = Image.new("RGB", (total_width, total_height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for column, heading in enumerate(headings):
        draw.text((gap + column * (width + gap), 1), heading, fill="black", font=font)
    top = line
    for row, size in zip(rows, sizes, strict=True):
        for column, picture in enumerate(row):
            if column == 0:  # the photograph; 128 colours halve a PNG's size
                scaled = Image.fromarray(picture).resize(size, Image.Resampling.BOX).quantize(128).convert("RGB")
            else:  # colours of labels must not be mixed
                scaled = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
            page.paste(scaled, (gap + column * (width + gap) + (width - size[0]) // 2, top))
        top += size[1] + gap
    for (name, colour), (x, row_) in zip(legend, entries, strict=True):
        y = top + row_ * line
        draw.rectangle((x, y + 2, x + 12, y + 11), fill=tuple(int(part) for part in colour), outline="grey")
        draw.text((x + 16, y), name, fill="black", font=font)
    return np.array(page)


def legend_of(labels: Sequence[np.ndarray], class_names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Legend entries of the classes (and void) that fill at least 0.2 % of one of the label maps."""
    shares = [np.bincount(each.ravel(), minlength=256) / each.size for each in labels]
    seen = np.flatnonzero(np.max(shares, axis=0) >= 0.002) if shares else []
    names = {**dict(enumerate(class_names)), VOID: "void"}
    return [(names[int(label)], VOC_PALETTE[label]) for label in seen if int(label) in names]


def losses_figure(lines: Sequence[dict[str, float]], title: str, best_epoch: int | None = None) -> Any:
    """Training and validation loss by epoch in one plot, from the lines of ``metrics.csv``; a matplotlib figure."""
    return curves_figure(
        {"training": (lines, "train/loss"), "validation": (lines, "val/loss")}, "loss", title, best_epoch
    )


def curves_figure(
    curves: dict[str, tuple[Sequence[dict[str, float]], str]], ylabel: str, title: str, best_epoch: int | None = None
) -> Any:
    """One scalar by epoch for each label: ``{label: (lines of metrics.csv, name of the scalar)}``."""
    figure, axes = _subplots((5, 3.2))
    for label, (lines, name) in curves.items():
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="grey", linewidth=0.8, linestyle=":", label="best val/miou")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    axes.legend(fontsize=8)
    return figure


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], title: str = "") -> Any:
    """A confusion matrix, each row divided by its sum: of a class's true pixels, the share called each class.

    Args:
        matrix: [C+1, C] or [C, C], rows are true labels; a void row is left out.
        class_names: C names.
        title: above it.

    Returns:
        A matplotlib figure. Classes without true pixels are empty rows.
    """
    counts = np.asarray(matrix, dtype=float)[: len(class_names)]
    shares = np.divide(
        counts, counts.sum(1, keepdims=True), out=np.zeros_like(counts), where=counts.sum(1)[:, None] > 0
    )
    count = len(class_names)
    side = 1.6 + 0.27 * count
    figure, axes = _subplots((side + 0.6, side))
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(count), class_names, rotation=90, fontsize=7)
    axes.set_yticks(range(count), class_names, fontsize=7)
    for row in range(count):
        for column in range(count):
            if shares[row, column] >= 0.005:
                colour = "white" if shares[row, column] > 0.5 else "black"
                text = f"{100 * shares[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    axes.set(xlabel="predicted", ylabel="true", title=title or "% of each class's pixels")
    return figure


def iou_figure(iou: dict[str, Sequence[float]], class_names: Sequence[str], title: str = "") -> Any:
    """IoU of each class as bars, one colour for each entry of ``iou``; nan leaves a gap. A matplotlib figure."""
    figure, axes = _subplots((5, 1.2 + 0.22 * len(class_names)))
    thickness = 0.8 / len(iou)
    for number, (name, values) in enumerate(iou.items()):
        places = np.arange(len(class_names)) + (number - (len(iou) - 1) / 2) * thickness
        bars = axes.barh(places, np.nan_to_num(np.asarray(values, dtype=float)), thickness, label=name)
        if len(iou) == 1:
            axes.bar_label(bars, ["" if value != value else f"{value:.2f}" for value in values], fontsize=7, padding=2)
    axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="IoU", title=title)
    if len(iou) > 1:
        axes.legend(fontsize=8)
    return figure


def as_array(figure: Any, dpi: int = 100) -> np.ndarray:
    """A matplotlib figure as RGB uint8 [h, w, 3]."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def save_png(picture: Any, path: Path) -> None:
    """Writes a picture, RGB uint8 [h, w, 3], or a matplotlib figure as a PNG."""
    picture = picture if isinstance(picture, np.ndarray) else as_array(picture, dpi=110)
    Image.fromarray(picture).save(path, optimize=True)


def _places(names: Sequence[str], width: int, gap: int) -> list[tuple[int, int]]:
    """Where each name of a legend goes: x, and its line."""
    font, x, row, places = ImageFont.load_default(11), gap, 0, []
    for name in names:
        length = int(font.getlength(name)) + 28
        if x + length > width and x > gap:
            x, row = gap, row + 1
        places.append((x, row))
        x += length
    return places


def _subplots(size: tuple[float, float]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()
