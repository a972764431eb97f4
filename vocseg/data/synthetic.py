"""Synthetic images and masks in VOC layout, to try vocseg without VOC and to test it on real files.

An image shows shapes of six classes in front of a background. The class determines shape and texture, but not colour:
all objects and backgrounds draw their colours from the same distribution.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from vocseg.data.base import SegmentationDataModule
from vocseg.data.files import Sample
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.lists import read_split
from vocseg.errors import VocsegError

SYNTHETIC_CLASSES = ("background", "disc", "ring", "square", "triangle", "cross", "star")

_FORMAT_VERSION = 1  # increase it when the images change, so that older trees are recognised


class SyntheticDataModule(SegmentationDataModule):
    """Synthetic images, written to the user's cache on first use: 400 for training, 48 each for val and test.

    Args:
        **settings: as :class:`vocseg.data.base.SegmentationDataModule`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(SYNTHETIC_CLASSES, **settings)

    def prepare_data(self) -> None:
        """Writes the images if they do not exist."""
        if not self.is_predicting:
            write_tree(synthetic_root())

    def samples(self, role: str) -> list[Sample]:
        """The samples of a role."""
        return read_split(synthetic_root() / "VOCdevkit" / "VOC2007", role)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A star with five points: the radius of its outline is a triangle wave over the angle."""
    fifth = np.abs(np.mod(np.arctan2(v, u) * 5 / (2 * np.pi), 1) - 0.5) * 2
    return np.hypot(u, v) < 0.4 + 0.6 * fifth


# whether a pixel lies inside the shape (u, v in units of the object's radius), and whether it has the second colour of
# the texture (x, y in pixels); both in coordinates that are rotated with the object
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda u, v: np.hypot(u, v) < 0.9,
    "ring": lambda u, v: (np.hypot(u, v) < 1) & (np.hypot(u, v) > 0.5),
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.8,
    "triangle": lambda u, v: (v > -0.6) & (v < 1 - 1.75 * np.abs(u)),
    "cross": lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.33) & (np.maximum(np.abs(u), np.abs(v)) < 1),
    "star": _star,
}
_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.sin(x * 0.9) > 0,
    "ring": lambda x, y: np.sin(x * 0.4) > 0,
    "square": lambda x, y: np.sin(x * 0.5) * np.sin(y * 0.5) > 0,
    "triangle": lambda x, y: np.sin(x * 0.7) * np.sin(y * 0.7) > 0.4,
    "cross": lambda x, y: x > 0,
    "star": lambda x, y: np.maximum(np.sin(x * 0.5), np.sin(y * 0.5)) > 0.75,
}


def render_sample(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders one image and its mask: one to three objects, which may overlap, in front of a background.

    The result depends on all three arguments and on nothing else.

    Args:
        seed: the seed of the tree.
        split: the name of the split.
        index: the index of the sample in its split, from 0.

    Returns:
        RGB uint8 [H, W, 3] and labels uint8 [H, W], 255 along every outline; H and W are 96 to 144 pixels.
    """
    rng = np.random.default_rng([seed, index, *split.encode()])
    height, width = (int(side) for side in rng.integers(96, 145, size=2))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    image = _render_background(rng, rows / height, columns / width)
    mask = np.zeros((height, width), dtype=np.uint8)
    # the first class cycles with the index, so that a small split has every class
    names = list(_SHAPES)
    chosen = [names[index % len(names)], *rng.choice(names, size=rng.integers(0, 3))]
    for name in rng.permutation(chosen):
        radius = rng.uniform(0.26, 0.4) * min(height, width)
        centre_y, centre_x = rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width
        angle = rng.uniform(0, 2 * np.pi)
        x = np.cos(angle) * (columns - centre_x) + np.sin(angle) * (rows - centre_y)
        y = np.cos(angle) * (rows - centre_y) - np.sin(angle) * (columns - centre_x)
        inside = _SHAPES[name](x / radius, y / radius)
        first, second = _draw_colours(rng)
        image[inside] = np.where(_TEXTURES[name](x, y)[inside, None], second, first)
        mask[inside] = SYNTHETIC_CLASSES.index(str(name))
        mask[_find_outline(inside)] = VOID
    image += rng.normal(0, 4, size=image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_tree(root: str | Path, *, train: int = 400, val: int = 48, test: int = 48, seed: int = 0) -> Path:
    """Writes synthetic images as a VOC2007 tree: JPEG images, palette PNG masks and image-set lists.

    An existing tree with the same settings is kept. The files are written to a temporary folder, which is then renamed,
    so no process sees an incomplete tree and several processes may write the same tree at once.

    Args:
        root: the folder to create; it will hold ``VOCdevkit/VOC2007``.
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        seed: seed of all images.

    Returns:
        ``root``.

    Raises:
        VocsegError: ``root`` exists and holds other files.
    """
    root = Path(root)
    settings = {"format": _FORMAT_VERSION, "train": train, "val": val, "test": test, "seed": seed}
    if not _is_written(root, settings):
        root.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            _write_files(temporary, {"train": train, "val": val, "test": test}, seed)
            (temporary / "synthetic.json").write_text(json.dumps(settings), encoding="utf-8")
            temporary.chmod(0o755)
            try:
                os.rename(temporary, root)
            except OSError:
                if not _is_written(root, settings):  # else another process renamed its folder first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def synthetic_root() -> Path:
    """Returns the folder of the synthetic images: below ``$XDG_CACHE_HOME``, or below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vocseg" / "synthetic"


def _is_written(root: Path, settings: dict[str, int]) -> bool:
    """Tells whether ``root`` holds the tree with these settings; raises VocsegError if it holds anything else."""
    if not root.exists():
        return False
    try:
        found = json.loads((root / "synthetic.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != settings:
        raise VocsegError(
            f"{root} exists and holds something other than these synthetic images: delete it or name another folder."
        )
    return True


def _write_files(root: Path, counts: dict[str, int], seed: int) -> None:
    tree = root / "VOCdevkit" / "VOC2007"
    lists = tree / "ImageSets" / "Segmentation"
    for folder in (tree / "JPEGImages", tree / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    names = {split: [f"{split}_{index:04d}" for index in range(count)] for split, count in counts.items()}
    for split, stems in names.items():
        for index, stem in enumerate(stems):
            image, labels = render_sample(seed, split, index)
            Image.fromarray(image).save(tree / "JPEGImages" / f"{stem}.jpg", quality=92)
            mask = Image.fromarray(labels)
            mask.putpalette(VOC_PALETTE.tobytes())
            mask.save(tree / "SegmentationClass" / f"{stem}.png")
    names["trainval"] = names["train"] + names["val"]
    for split, stems in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _render_background(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Renders a sine wave between two colours, float64 [H, W, 3]."""
    first, second = _draw_colours(rng)
    direction, phase = rng.uniform(0, 2 * np.pi, size=2)
    along = np.cos(direction) * columns + np.sin(direction) * rows
    weight = (1 + np.sin(rng.uniform(2, 6) * along + phase)) / 2
    return first + weight[..., None] * (second - first)


def _draw_colours(rng: np.random.Generator) -> np.ndarray:
    """Draws two RGB colours that differ visibly, float64 [2, 3]."""
    while True:
        colours = rng.uniform(0, 255, size=(2, 3))
        if np.abs(colours[0] - colours[1]).sum() > 200:
            return colours


def _find_outline(inside: np.ndarray) -> np.ndarray:
    """Finds the pixels on both sides of a shape's edge, which VOC labels void."""
    shape = Image.fromarray(inside)
    dilated, eroded = (
        np.array(shape.convert("L").filter(f(3))) > 0 for f in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    return dilated & ~eroded
