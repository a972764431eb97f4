"""Drawn scenes in VOC layout, to try vocseg without VOC and to test it on real files.

Six shapes in front of a background. Shape and texture tell the class; colour does not: every object, and every
background, takes its colours from the same distribution.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.errors import VocsegError

SYNTHETIC_CLASSES = ("background", "disc", "ring", "square", "triangle", "cross", "star")

_FORMAT = 1  # goes up when the scenes change, so that an older tree is not taken for this one


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: the radius of the outline is a zigzag over the angle."""
    fifth = np.abs(np.mod(np.arctan2(v, u) * 5 / (2 * np.pi), 1) - 0.5) * 2
    return np.hypot(u, v) < 0.4 + 0.6 * fifth


# shape (u, v in units of the object's radius) and texture (x, y in pixels, turned with the object)
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


def draw_scene(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene: one to three objects, overlapping, in front of a soft background.

    Args:
        seed: of the whole tree.
        split: scenes of one split are unlike those of another.
        index: of the scene in its split, from 0.

    Returns:
        RGB uint8 [H, W, 3] and labels uint8 [H, W], 255 along every outline; sides of 96 to 144 pixels.
    """
    rng = np.random.default_rng([seed, index, *split.encode()])
    height, width = (int(side) for side in rng.integers(96, 145, size=2))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    image = _background(rng, rows / height, columns / width)
    mask = np.zeros((height, width), dtype=np.uint8)
    # the first object's class goes round, so that every class occurs in a small split
    names = list(_SHAPES)
    chosen = [names[index % len(names)], *rng.choice(names, size=rng.integers(0, 3))]
    for name in rng.permutation(chosen):
        radius = rng.uniform(0.26, 0.4) * min(height, width)
        centre_y, centre_x = rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * width
        angle = rng.uniform(0, 2 * np.pi)
        x = np.cos(angle) * (columns - centre_x) + np.sin(angle) * (rows - centre_y)
        y = np.cos(angle) * (rows - centre_y) - np.sin(angle) * (columns - centre_x)
        inside = _SHAPES[name](x / radius, y / radius)
        first, second = _two_colours(rng)
        image[inside] = np.where(_TEXTURES[name](x, y)[inside, None], second, first)
        mask[inside] = SYNTHETIC_CLASSES.index(str(name))
        mask[_outline(inside)] = VOID
    image += rng.normal(0, 4, size=image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_tree(root: str | Path, *, train: int = 400, val: int = 48, test: int = 48, seed: int = 0) -> Path:
    """Writes drawn scenes as a VOC2007 tree: JPEG photographs, palette PNG masks, image-set lists.

    A tree that is there already is left as it is. A half-written one is never seen: the files are drawn beside it and
    moved into place, so several processes may write at once.

    Args:
        root: folder to make; ``VOCdevkit/VOC2007`` goes below it.
        train: number of scenes that train.
        val: number of scenes that validate.
        test: number of scenes that test.
        seed: of all scenes.

    Returns:
        ``root``.

    Raises:
        VocsegError: ``root`` holds something else.
    """
    root = Path(root)
    wanted = {"format": _FORMAT, "train": train, "val": val, "test": test, "seed": seed}
    if not _holds(root, wanted):
        root.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            _write(draft, {"train": train, "val": val, "test": test}, seed)
            (draft / "synthetic.json").write_text(json.dumps(wanted), encoding="utf-8")
            draft.chmod(0o755)
            try:
                os.rename(draft, root)
            except OSError:
                if not _holds(root, wanted):  # else another process was quicker
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return root


def synthetic_root() -> Path:
    """Where the drawn scenes are kept: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vocseg" / "synthetic"


def _holds(root: Path, wanted: dict[str, int]) -> bool:
    if not root.exists():
        return False
    try:
        found = json.loads((root / "synthetic.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != wanted:
        raise VocsegError(
            f"{root} exists and holds something other than these drawn scenes: delete it or name another."
        )
    return True


def _write(root: Path, counts: dict[str, int], seed: int) -> None:
    tree = root / "VOCdevkit" / "VOC2007"
    lists = tree / "ImageSets" / "Segmentation"
    for folder in (tree / "JPEGImages", tree / "SegmentationClass", lists):
        folder.mkdir(parents=True)
    names = {split: [f"{split}_{index:04d}" for index in range(count)] for split, count in counts.items()}
    for split, stems in names.items():
        for index, stem in enumerate(stems):
            image, labels = draw_scene(seed, split, index)
            Image.fromarray(image).save(tree / "JPEGImages" / f"{stem}.jpg", quality=92)
            mask = Image.fromarray(labels)
            mask.putpalette(VOC_PALETTE.tobytes())
            mask.save(tree / "SegmentationClass" / f"{stem}.png")
    names["trainval"] = names["train"] + names["val"]
    for split, stems in names.items():
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def _background(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A soft wave between two colours."""
    first, second = _two_colours(rng)
    direction, phase = rng.uniform(0, 2 * np.pi, size=2)
    along = np.cos(direction) * columns + np.sin(direction) * rows
    share = (1 + np.sin(rng.uniform(2, 6) * along + phase)) / 2
    return first + share[..., None] * (second - first)


def _two_colours(rng: np.random.Generator) -> np.ndarray:
    """Two RGB colours far enough apart to be seen side by side."""
    while True:
        colours = rng.uniform(0, 255, size=(2, 3))
        if np.abs(colours[0] - colours[1]).sum() > 200:
            return colours


def _outline(inside: np.ndarray) -> np.ndarray:
    """The pixels on either side of a shape's edge, as VOC's void borders."""
    shape = Image.fromarray(inside)
    grown, shrunk = (
        np.array(shape.convert("L").filter(f(3))) > 0 for f in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    return grown & ~shrunk
