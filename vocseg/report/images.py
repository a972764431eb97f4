"""The images of a report: the best, the worst and the most surprising of a test, and a table of all."""

import base64
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2  # albumentations' own dependency
import numpy as np
from PIL import Image

from vocseg import pages
from vocseg.charts import number
from vocseg.confusion import ConfusionMatrices, iou_of
from vocseg.data.files import Sample, read_mask, read_sample
from vocseg.data.images import ImageReader
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.masks import MaskReader
from vocseg.errors import VocsegError
from vocseg.overlays import overlay
from vocseg.plots import MISSED, RIGHT, WRONG, errors
from vocseg.run_folder import Run

SHOWN = 4
"""Number of images of each kind that are shown."""
LISTED = 1000
"""Number of images in the table: the worst ones. ``test_images.csv`` has all."""
SIDE = 480
"""Longer side, in pixels, of the images in the page."""

STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem;
  list-style: none; margin: .6rem 0 1.5rem; padding: 0; }
.card { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
.card .frame { container-type: inline-size; aspect-ratio: 4 / 3; display: grid; place-items: center;
  background: var(--soft); }
.card .slider { width: min(100cqw, 75cqw * var(--ratio)); border-radius: 0; }
.card .slider:focus-within { outline-offset: -3px; }
.card .facts { padding: .5rem .8rem .7rem; font-size: .85rem; font-variant-numeric: tabular-nums; }
.card b { overflow-wrap: anywhere; } .card p { margin: .15rem 0 0; color: var(--muted); }
.swatch { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin-right: .35em;
  vertical-align: -.1em; }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: .5rem; }
.scroll table { width: 100%; margin: 0; font-size: .87rem; font-variant-numeric: tabular-nums; }
.scroll td:nth-child(2), .scroll th:nth-child(2), .scroll td:nth-child(6), .scroll th:nth-child(6) { text-align: left; }
.scroll td:last-child { white-space: nowrap; }
.scroll thead th { position: sticky; top: 0; background: var(--soft); }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: .2rem 0;
  cursor: pointer; }
th button::after { content: " \\2195"; color: var(--muted); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
"""
SCRIPT = """
document.querySelectorAll(".card").forEach(card => {
  card.dataset.photograph = card.querySelector(".slider img").src;
  card.dataset.prediction = card.querySelector(".slider .after").src;
});
document.querySelectorAll("form.side").forEach(form => form.addEventListener("change", event => {
  const side = event.target.name;
  for (const card of form.parentNode.querySelectorAll(".card"))
    card.querySelector(side === "right" ? ".slider .after" : ".slider img").src = card.dataset[event.target.value];
}));
"""


class ImageScores(NamedTuple):
    """Scores of each test image.

    Attributes:
        miou: its own mIoU, float64 [N].
        expected: mean of the whole test's IoU over the classes that occur in the image's truth or prediction.
        iou: of each class, float64 [N, C].
        accuracy: share of its valid pixels that are right, float64 [N].
    """

    miou: np.ndarray
    expected: np.ndarray
    iou: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def of(cls, matrices: ConfusionMatrices) -> "ImageScores":
        """Computes them."""
        iou = matrices.iou_per_image()
        occurs = ~np.isnan(iou)
        corpus = np.nan_to_num(np.array(iou_of(matrices.total())))
        expected = np.divide(occurs @ corpus, occurs.sum(1), out=np.full(len(iou), np.nan), where=occurs.any(1))
        return cls(matrices.miou_per_image(), expected, iou, matrices.pixel_accuracy_per_image())

    def kinds(self) -> dict[str, tuple[str, list[int]]]:
        """Title -> (explanation, indices of images); an image is of one kind only, and one that is all void of none."""
        gap = self.expected - self.miou
        valid = np.flatnonzero(~np.isnan(self.miou))
        order = valid[np.argsort(-self.miou[valid], kind="stable")].tolist()
        best, rest = order[:SHOWN], order[SHOWN:]
        worst = rest[::-1][:SHOWN]
        rest = [index for index in rest if index not in worst and gap[index] > 0]
        surprising = sorted(rest, key=lambda index: -gap[index])[:SHOWN]
        return {
            "Best": ("The highest mIoU of a single image.", best),
            "Worst": ("The lowest mIoU of a single image.", worst),
            "Most surprising": (
                "The images, besides those above, that are furthest below what their classes suggest. Expected is the "
                "mean of the IoU that the classes of an image (in its truth or its prediction) have over all test "
                "images; the gap is what the image's own mIoU falls short of it.",
                surprising,
            ),
        }


def examples(run: Run, scores: ImageScores, problems: list[str]) -> list[str]:
    """Builds cards of the best, the worst and the most surprising images; adds what cannot be shown to ``problems``."""
    samples = run.scores["test"].summary.get("samples")
    if not samples:  # a committed record does not name the files of the machine that it was made on
        return []
    masks, images = _readers(run)
    groups = []
    for title, (explanation, indices) in scores.kinds().items():
        cards = []
        for index in indices:
            try:
                cards.append(_card(run, samples[index], index, scores, masks, images))
            except (VocsegError, IndexError, KeyError) as error:
                problems.append(f"{run.name}: a test image cannot be shown: {error}")
        if cards:
            note = f'<p class="note">{explanation}</p>'
            groups.append(f'<h3>{title}</h3>{note}<ul class="cards">{"".join(cards)}</ul>')
    return [f'<section class="images">{_CONTROLS}{"".join(groups)}</section>'] if groups else []


def image_table(run: Run, scores: ImageScores, folder: Path) -> list[str]:
    """Builds a table of the test images that can be sorted, the worst first, with links to their files.

    Args:
        run: that was tested.
        scores: of its images.
        folder: of the page; the links are relative to it.
    """
    samples = run.scores["test"].summary.get("samples") or []
    order = np.argsort(np.nan_to_num(scores.miou, nan=-1), kind="stable").tolist()
    lines = []
    for place, index in enumerate(order[:LISTED]):
        name, links = f"image {index}", ""
        if index < len(samples):
            name = _name(samples[index])
            files = {"photograph": Path(samples[index].get("image", "")), "mask": run.folder.test_masks / f"{name}.png"}
            links = " ".join(
                f'<a href="{pages.link(os.path.relpath(path, folder))}">{word}</a>' for word, path in files.items()
            )
        lowest = _lowest(scores.iou[index], run.class_names)
        cells = [len(order) - place, name, *map(number, (scores.miou[index], scores.expected[index]))]
        cells += [number(scores.accuracy[index]), lowest]
        lines.append(f"<tr>{''.join(f'<td>{pages.text(cell)}</td>' for cell in cells)}<td>{links}</td></tr>\n")
    head = ("rank", "image", "mIoU", "expected", "pixel accuracy", "lowest class")
    buttons = "".join(f'<th><button type="button">{title}</button></th>' for title in head)
    every = run.folder.image_scores("test")
    note = f"The {LISTED} worst of {len(order)} test images. " if len(order) > LISTED else ""
    if every.is_file():
        link = pages.link(os.path.relpath(every, folder))
        note += f'All, with the IoU of each class: <a href="{link}">{every.name}</a>.'
    return [
        f'<p class="note">{note}</p><div class="scroll" tabindex="0"><table class="sortable"><thead><tr>{buttons}'
        f"<th>files</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    ]


def _colour(rgb: Sequence[int] | np.ndarray) -> str:
    return "rgb({} {} {})".format(*(int(part) for part in rgb))


def _swatch(rgb: Sequence[int] | np.ndarray, name: str) -> str:
    return f'<span><span class="swatch" style="background: {_colour(rgb)}"></span>{name}</span>'


def _controls() -> Iterator[str]:
    choices = {"left": ("photograph", "truth"), "right": ("prediction", "errors")}
    for side, words in choices.items():
        title = side.capitalize()
        yield f'<span role="radiogroup" aria-label="{title} of the line"><span class="lead">{title}</span>'
        for word in words:
            checked = " checked" if word == words[0] else ""
            button = f'<input type="radio" name="{side}" value="{word}" autocomplete="off"{checked}>'
            yield f" <label>{button} {word}</label>"
        yield "</span>"
    yield '<span class="lead">Errors:</span>'
    yield _swatch(MISSED, "missed (predicted as background)") + _swatch(WRONG, "any other error")
    yield _swatch(VOC_PALETTE[VOID], "void, not counted")


_CONTROLS = f'<form class="side controls">{"".join(_controls())}</form>'


def _card(
    run: Run, sample: dict[str, Any], index: int, scores: ImageScores, masks: MaskReader, images: ImageReader
) -> str:
    name = _name(sample)
    image, truth = read_sample(Sample(Path(sample["image"]), Path(sample["mask"])), masks, images)
    path = run.folder.test_masks / f"{name}.png"
    prediction = read_mask(path)
    if prediction.shape != truth.shape:
        raise VocsegError(f"{path} has not the size of {sample['mask']}: it is of another image")
    height, width = truth.shape
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    truth, prediction = (cv2.resize(each, size, interpolation=cv2.INTER_NEAREST) for each in (truth, prediction))
    wrong = errors(prediction, truth)
    grey = np.repeat(image.mean(2, keepdims=True) * 0.3 + np.array(RIGHT).mean() * 0.7, 3, axis=2).astype(np.uint8)
    pictures = {
        "photograph": image,
        "truth": overlay(image, np.where(truth == VOID, 0, truth), class_names=run.class_names),
        "prediction": overlay(image, prediction, class_names=run.class_names),
        "errors": np.where((wrong == RIGHT).all(2, keepdims=True), grey, wrong),
    }
    sources = {word: _jpeg(picture) for word, picture in pictures.items()}
    data = "".join(f' data-{word}="{sources[word]}"' for word in ("truth", "errors"))
    slider = pages.slider(
        sources["photograph"], sources["prediction"], f"{name}: photograph on the left, prediction on the right", size
    )
    occurs = np.flatnonzero(~np.isnan(scores.iou[index])).tolist()
    classes = ", ".join(f"{run.class_names[label]} {scores.iou[index, label]:.2f}" for label in occurs)
    expected = scores.expected[index]
    return (
        f'<li class="card"{data}><div class="frame" style="--ratio: {size[0] / size[1]:.4f}">{slider}</div>'
        f'<div class="facts"><b>{pages.text(name)}</b> mIoU {number(scores.miou[index])}, expected {number(expected)}'
        f"<p>{pages.text(classes)}</p></div></li>"
    )


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _name(sample: dict[str, Any]) -> str:
    """The sample's name; runs of vocseg 0.1.0 have none."""
    return sample.get("name") or Path(sample["image"]).stem


def _lowest(iou: np.ndarray, class_names: Sequence[str]) -> str:
    if np.isnan(iou).all():
        return "-"
    label = int(np.nanargmin(iou))
    return f"{class_names[label]} {iou[label]:.2f}"


def _readers(run: Run) -> tuple[MaskReader, ImageReader]:
    """Readers with the settings of the data that the run was tested on."""
    data = run.scores["test"].summary.get("data")
    names = ("labels", "colours", "ignore_classes", "exif_rotation")
    if not isinstance(data, dict) or not {*names, "bit_depth"} <= data.keys():  # vocseg 0.1.0, or a user's data module
        return MaskReader(run.class_names), ImageReader()
    masks = MaskReader.from_settings(run.class_names, **{name: data[name] for name in names})
    return masks, ImageReader(data["bit_depth"], data["exif_rotation"])
