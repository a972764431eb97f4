"""Counts the same predicted masks in several ways: how much of a published number is the way of counting.

    python benchmarks/protocols.py --run lightning_logs/efficientnet_lite/version_0 --plot docs/protocols.png

The run must have been tested (``test.json`` and ``test_masks``), and the data must still be there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vocseg.confusion import confusion_matrix, scores_of
from vocseg.data.files import read_mask
from vocseg.data.labels import VOC_CLASSES, VOID

CLASSES = len(VOC_CLASSES)
SQUASHED = (224, 224)
GROUP = 16


def matrix(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The confusion matrix of an image, int64 [C+1, C]."""
    return confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(target), CLASSES).numpy()


def squash(labels: np.ndarray) -> np.ndarray:
    """The labels at 224x224, by nearest neighbours."""
    return np.array(Image.fromarray(labels).resize(SQUASHED, Image.Resampling.NEAREST))


def present_miou(counts: np.ndarray) -> float:
    """The mean IoU over the classes that occur in the masks."""
    valid = counts[:-1].astype(float)
    union = valid.sum(0) + valid.sum(1) - valid.diagonal()
    occurs = valid.sum(1) > 0
    return float((valid.diagonal()[occurs] / union[occurs]).mean())


def count(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The mIoU of pairs of prediction and target, by way of counting."""
    own = np.stack([matrix(prediction, target) for prediction, target in pairs])
    squashed = np.stack([matrix(squash(prediction), squash(target)) for prediction, target in pairs])
    background = np.stack(
        [matrix(squash(prediction), np.where(target == VOID, 0, target)) for prediction, target in
         ((prediction, squash(target)) for prediction, target in pairs)]
    )  # fmt: skip
    groups = [slice(first, first + GROUP) for first in range(0, len(pairs), GROUP)]
    return {
        "one matrix, own size, void ignored": scores_of(own.sum(0))["miou"],
        "one matrix, 224x224, void ignored": scores_of(squashed.sum(0))["miou"],
        "one matrix, 224x224, void is background": scores_of(background.sum(0))["miou"],
        "mean of groups of 16 images, classes in the masks alone": float(
            np.mean([present_miou(own[at].sum(0)) for at in groups])
        ),
        "mean of images, void ignored": float(np.nanmean([scores_of(one)["miou"] for one in own])),
        "mean of images, classes in the masks alone": float(np.nanmean([present_miou(one) for one in own])),
    }


def main() -> None:
    """Prints the table; draws it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a tested run")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    given = parser.parse_args()
    samples = json.loads((given.run / "test.json").read_text())["samples"]
    predicted, background = [], []
    for sample in samples:
        target = np.array(Image.open(sample["mask"]))
        predicted.append((read_mask(given.run / "test_masks" / f"{sample['name']}.png"), target))
        background.append((np.zeros_like(target), target))
    ours, floor = count(predicted), count(background)
    print(f"{len(samples)} images\n\n| counted as | mIoU | all background |\n|---|---|---|")
    for name, value in ours.items():
        print(f"| {name} | {value:.4f} | {floor[name]:.4f} |")
    if given.plot:
        draw(ours, floor, given.plot)


def draw(ours: dict[str, float], floor: dict[str, float], path: Path) -> None:
    """Draws one pair of bars per way of counting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [*ours][::-1]
    rows = np.arange(len(names))
    for offset, values, colour, label in (
        (0.2, ours, "#1f77b4", "the network"),
        (-0.2, floor, "#bbbbbb", "all background"),
    ):
        bars = axes.barh(rows + offset, [values[name] for name in names], 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    axes.set_yticks(rows, names)
    axes.set_xlim(0, 1)
    axes.set_xlabel("mIoU")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
