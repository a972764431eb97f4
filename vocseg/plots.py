"""Images of label maps and errors, and matplotlib figures of losses, confusion matrices and IoU."""

import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import cv2  # albumentations' own dependency
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.errors import VocsegError
from vocseg.overlays import OVERLAY_COLOURS, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, MISSED, WRONG = (235, 235, 235), (50, 110, 220), (215, 45, 40)
"""RGB colours of ``errors``."""


def coloured(labels: np.ndarray) -> np.ndarray:
    """Maps labels, uint8 [H, W], to the colours of VOC, RGB uint8 [H, W, 3]; void is cream."""
    return VOC_PALETTE[labels]


def errors(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Shows where a prediction is wrong.

    Args:
        prediction: labels uint8 [H, W].
        truth: labels uint8 [H, W], 255 = void.

    Returns:
        RGB uint8 [H, W, 3]: light grey where the prediction is right, blue where an object was predicted as background,
        red for all other errors, and the colour of void where the truth is void.
    """
    picture = np.full((*truth.shape, 3), RIGHT, dtype=np.uint8)
    picture[prediction != truth] = WRONG
    picture[(prediction == 0) & (truth != 0)] = MISSED
    picture[truth == VOID] = VOC_PALETTE[VOID]
    return picture


def panels(
    rows: Sequence[Sequence[np.ndarray]],
    headings: Sequence[str],
    legend: Sequence[tuple[str, Sequence[int] | np.ndarray]] = (),
    width: int = 160,
    photographs: bool = True,
    type_size: int = 11,
) -> np.ndarray:
    """Arranges images in a grid, with headings above and a legend below.

    Args:
        rows: rows of images, RGB uint8 [H, W, 3]; all images of a row have the same size.
        headings: one per column.
        legend: names and their RGB colours.
        width: width of a column in pixels.
        photographs: the first of a row is a photograph; all others show label colours.
        type_size: height of the type in pixels.

    Returns:
        RGB uint8 [h, w, 3].
    """
    gap, line, font = 4, type_size * 3 // 2, ImageFont.load_default(type_size)
    heights = [max(1, round(width * row[0].shape[0] / row[0].shape[1])) for row in rows]
    # portrait images get the height of a landscape column at most, so that rows have similar heights
    sizes = [(width, height) if height <= width else (width * width // height, width) for height in heights]
    total_width = gap + len(headings) * (width + gap)
    positions = _legend_positions([name for name, _ in legend], total_width, gap, type_size)
    legend_lines = 1 + max((line_number for _, line_number in positions), default=-1)
    total_height = line + sum(height + gap for _, height in sizes) + legend_lines * line + gap
    page = Image.new("RGB", (total_width, total_height), "white")
    draw = ImageDraw.Draw(page)
    for column, heading in enumerate(headings):
        draw.text((gap + column * (width + gap), 1), heading, fill="black", font=font)
    top = line
    for row, size in zip(rows, sizes, strict=True):
        for column, picture in enumerate(row):
            if photographs and column == 0:  # 128 colours halve the size of the PNG
                scaled = Image.fromarray(picture).resize(size, Image.Resampling.BOX).quantize(128).convert("RGB")
            else:  # label colours must not be averaged
                scaled = Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)
            page.paste(scaled, (gap + column * (width + gap) + (width - size[0]) // 2, top))
        top += size[1] + gap
    for (name, colour), (x, line_number) in zip(legend, positions, strict=True):
        y = top + line_number * line
        red, green, blue = (int(part) for part in colour)
        box = (x, y + 2, x + type_size + 1, y + type_size)
        draw.rectangle(box, fill=(red, green, blue), outline="grey")
        draw.text((x + type_size + 5, y), name, fill="black", font=font)
    return np.array(page)


def preview(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Arranges an image, its truth, a prediction and its errors two by two, in type that a small copy still shows.

    Args:
        image: RGB uint8 [H, W, 3].
        truth: labels uint8 [H, W], 255 = void.
        prediction: labels uint8 [H, W].
        class_names: C names.

    Returns:
        RGB uint8 [h, w, 3].
    """
    above = panels([(image, coloured(truth))], ("image", "truth"), width=240, type_size=17)
    below = (coloured(prediction), errors(prediction, truth))
    entries = [*legend([truth, prediction], class_names), ("missed", np.array(MISSED)), ("wrong", np.array(WRONG))]
    return np.concatenate([above, panels([below], ("prediction", "errors"), entries, 240, False, 17)])


def legend(
    labels: Sequence[np.ndarray], class_names: Sequence[str], palette: np.ndarray = VOC_PALETTE
) -> list[tuple[str, np.ndarray]]:
    """Legend entries (name, RGB colour) of the classes and void that cover at least 0.2 % of one of the label maps.

    Args:
        labels: label maps, uint8 [H, W].
        class_names: name of each label.
        palette: RGB uint8 [256, 3], the colour of each label: those of VOC's masks, or
            ``vocseg.overlays.OVERLAY_COLOURS``.
    """
    fractions = [np.bincount(each.ravel(), minlength=256) / each.size for each in labels]
    visible = np.flatnonzero(np.max(fractions, axis=0) >= 0.002).tolist() if fractions else []
    names = {**dict(enumerate(class_names)), VOID: "void"}
    return [(names[label], palette[label]) for label in visible if label in names]


def samples_figure(
    samples: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str], class_names: Sequence[str]
) -> "Figure":
    """Draws images with their labels over them, and a legend of the classes.

    Args:
        samples: images RGB uint8 [H, W, 3] of any size, and their labels uint8 [H, W], 255 = void.
        names: one per image, drawn above it.
        class_names: name of each label; label 0 is not coloured.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch

    side, cell, title, line = 360, 3.2, 0.26, 0.22  # pixels; inches
    columns = min(4, len(samples))
    scaled = [_scaled(image, labels, side) for image, labels in samples]
    rows = [scaled[first : first + columns] for first in range(0, len(scaled), columns)]
    heights = [cell * max(image.shape[0] for image, _ in row) / side + title for row in rows]
    entries = legend([labels for _, labels in scaled], ["", *class_names[1:]], OVERLAY_COLOURS)
    patches = [Patch(color=tuple((colour / 255).tolist()), label=name) for name, colour in entries if name]
    longest = max((len(name) for name, _ in entries), default=0)
    keys = max(1, min(len(patches), int(cell * columns / (0.45 + 0.085 * longest))))
    lines = math.ceil(len(patches) / keys)
    keys = math.ceil(len(patches) / max(lines, 1))  # lines of about one length
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03)
    figure = _figure((cell * columns, sum(heights) + (line * lines + 0.1 if lines else 0)), engine)
    grid = figure.add_gridspec(len(rows), columns, height_ratios=heights)
    for index, ((image, labels), name) in enumerate(zip(scaled, names, strict=True)):
        axes = figure.add_subplot(grid[index // columns, index % columns])
        axes.imshow(overlay(image, labels, class_names=class_names), interpolation="antialiased")
        axes.set_title(shortened(name), fontsize=9, pad=3)
        axes.set_axis_off()
        axes.set_anchor("N")
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=keys, fontsize=9, frameon=False)
    return figure


def losses_figure(lines: Sequence[Mapping[str, float]], title: str, best_epoch: int | None = None) -> "Figure":
    """Plots training and validation loss by epoch.

    Args:
        lines: the lines of ``metrics.csv``.
        title: title of the figure.
        best_epoch: marked by a vertical line.
    """
    return curves_figure(
        {"training": (lines, "train/loss"), "validation": (lines, "val/loss")}, "loss", title, best_epoch
    )


def curves_figure(
    curves: Mapping[str, tuple[Sequence[Mapping[str, float]], str]],
    ylabel: str,
    title: str,
    best_epoch: int | None = None,
) -> "Figure":
    """Plots scalars by epoch.

    Args:
        curves: ``{label: (lines of metrics.csv, name of the scalar)}``; lines without the scalar are left out.
        ylabel: label of the vertical axis.
        title: title of the figure.
        best_epoch: marked by a vertical line.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _subplots((5, 3.2))
    for label, (lines, name) in curves.items():
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="grey", linewidth=0.8, linestyle=":", label="best val/miou")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))  # integer epochs
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    axes.legend(fontsize=8)
    return figure


def confusion_figure(matrix: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Plots a confusion matrix with each row divided by its sum: the percentages of a true class's predictions.

    Args:
        matrix: pixel counts [C+1, C] or [C, C]. Rows are true labels, columns predicted ones; row C (void) is left out.
        class_names: C names.
        title: title of the figure.

    Returns:
        The figure. The row of a class without true pixels is empty. Up to 30 classes the cells of at least 1 % have
        their number; above 60 classes only some of the axes' labels are drawn.

    Raises:
        VocsegError: the matrix has another shape.
    """
    count = len(class_names)
    if not count or np.shape(matrix) not in ((count, count), (count + 1, count)):
        raise VocsegError(
            f"The confusion matrix of {count} classes has {count} or {count + 1} rows and {count} columns; "
            f"got {list(np.shape(matrix))}."
        )
    fractions = row_fractions(matrix)
    # inches: a cell of a small matrix holds a number; labels need an eighth of an inch each
    side = float(np.clip(0.27 * count, 1.2, 8))
    names = [shortened(name) for name in class_names]
    label = 0.065 * max(map(len, names), default=0) + 0.35
    width, height = label + side + 0.15, label + side + 0.4
    figure, axes = _subplots((width, height), layout=None)  # the layout engine would draw every text twice more
    axes.set_position((label / width, label / height, side / width, side / height))
    axes.imshow(fractions, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    labelled = range(0, count, max(math.ceil(count / 60), 1))
    axes.set_xticks(labelled, [names[index] for index in labelled], rotation=90, fontsize=7)
    axes.set_yticks(labelled, [names[index] for index in labelled], fontsize=7)
    axes.tick_params(length=2)
    for row, column in np.argwhere(fractions >= 0.01).tolist() if count <= 30 else ():
        colour = "white" if fractions[row, column] > 0.5 else "black"
        text = f"{100 * fractions[row, column]:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    # with fixed places nothing needs to measure the labels of the ticks
    axes.set_title(title or "% of each class's pixels", y=1 + 0.08 / side)
    axes.xaxis.set_label_coords(0.5, -(label - 0.2) / side)
    axes.yaxis.set_label_coords(-(label - 0.2) / side, 0.5)
    return figure


def row_fractions(matrix: np.ndarray) -> np.ndarray:
    """Divides each row of a confusion matrix by its sum: float64 [C, C].

    Args:
        matrix: pixel counts [C+1, C] or [C, C]; row C (void) is left out. The row of a class without pixels stays 0.
    """
    counts = np.asarray(matrix, dtype=float)
    counts = counts[: counts.shape[1]]
    sums = counts.sum(1, keepdims=True)
    return np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)


def shortened(name: str, length: int = 24) -> str:
    """A name of at most ``length`` characters; of a longer one the middle is left out."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[length // 2 + 1 - length :]}"


def iou_figure(iou: Mapping[str, Sequence[float]], class_names: Sequence[str], title: str = "") -> "Figure":
    """Plots the IoU of each class as bars.

    Args:
        iou: ``{label: C values}``; each label has its own colour, and NaN has no bar.
        class_names: C names.
        title: title of the figure.
    """
    height, label = 1.2 + 0.22 * len(class_names), 0.2 + 0.075 * max(map(len, class_names), default=0)
    figure, axes = _subplots((5, height), layout=None)  # see confusion_figure
    axes.set_position((label / 5, 0.5 / height, (4.8 - label) / 5, 1 - 0.9 / height))
    thickness = 0.8 / len(iou)
    for number, (name, values) in enumerate(iou.items()):
        positions = np.arange(len(class_names)) + (number - (len(iou) - 1) / 2) * thickness
        bars = axes.barh(positions, np.nan_to_num(np.asarray(values, dtype=float)), thickness, label=name)
        if len(iou) == 1:
            axes.bar_label(bars, ["" if value != value else f"{value:.2f}" for value in values], fontsize=7, padding=2)
    axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
    axes.set(xlim=(0, 1), ylim=(len(class_names) - 0.5, -0.5), xlabel="IoU")
    axes.set_title(title, y=1 + 0.1 / (height - 0.9))
    axes.xaxis.set_label_coords(0.5, -0.35 / (height - 0.9))
    if len(iou) > 1:
        axes.legend(fontsize=8)
    return figure


def ranges_figure(
    values: Mapping[str, Sequence[float]],
    xlabel: str,
    title: str,
    floor: float | None = None,
    right: float | None = None,
) -> "Figure":
    """Plots the values of several settings: a bar for each mean, a dot for each value.

    Args:
        values: ``{setting: its values}``, from the top.
        xlabel: label of the horizontal axis.
        title: title of the figure.
        floor: a value to mark by a dotted line.
        right: end of the horizontal axis; None: what the values need.
    """
    figure, axes = _subplots((5, 1.1 + 0.32 * len(values)))
    for row, each in enumerate(values.values()):
        axes.barh(row, float(np.mean(each)), 0.6, color="tab:blue", alpha=0.35)
        axes.plot(each, [row] * len(each), "o", color="tab:blue", markersize=4)
    if floor is not None:
        axes.axvline(floor, color="grey", linewidth=1, linestyle=":")
    axes.set_yticks(range(len(values)), [*values])
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=6)
    axes.set(xlabel=xlabel, title=title, xlim=(0, right))
    return figure


def as_array(figure: "Figure", dpi: int = 100) -> np.ndarray:
    """Renders a matplotlib figure as RGB uint8 [h, w, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.dpi
    figure.dpi = dpi
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    figure.dpi = before
    return pixels


def save_png(picture: "np.ndarray | Figure", path: Path | BinaryIO) -> None:
    """Writes an image, RGB uint8 [h, w, 3], or a matplotlib figure to a PNG file, given by its path or open."""
    picture = picture if isinstance(picture, np.ndarray) else as_array(picture, dpi=110)
    Image.fromarray(picture).save(path, "PNG", optimize=True)


def _scaled(image: np.ndarray, labels: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its labels with a longer side of ``side`` pixels: contours and names have one size in all images."""
    scale = side / max(labels.shape)
    width, height = (max(1, round(length * scale)) for length in labels.shape[::-1])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return (
        cv2.resize(image, (width, height), interpolation=way),
        cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST),
    )


def _legend_positions(names: Sequence[str], width: int, gap: int, type_size: int) -> list[tuple[int, int]]:
    """Positions of the names of a legend: (x in pixels, line number)."""
    font, x, line_number = ImageFont.load_default(type_size), gap, 0
    positions: list[tuple[int, int]] = []
    for name in names:
        length = int(font.getlength(name)) + type_size + 17
        if x + length > width and x > gap:
            x, line_number = gap, line_number + 1
        positions.append((x, line_number))
        x += length
    return positions


def _subplots(
    size: tuple[float, float], layout: Literal["constrained"] | None = "constrained"
) -> "tuple[Figure, Axes]":
    """Creates a figure of ``size`` (width, height in inches) with one plot."""
    figure = _figure(size, layout)
    return figure, figure.subplots()


def _figure(size: tuple[float, float], layout: Any) -> "Figure":
    """Creates a figure that notebooks show as a picture, also those that do not import pyplot."""
    from matplotlib.figure import Figure  # not pyplot, which opens windows and keeps global state

    figure = Figure(figsize=size, layout=layout)
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]  # IPython asks for it
    return figure


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    save_png(figure, file)
    return file.getvalue()
