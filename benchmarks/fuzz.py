"""Feeds damaged JPEG and PNG files to the dataset and to prediction; each must be read right or refused in words.

    python benchmarks/fuzz.py --cases 10000

Exits with 1, and keeps the files, when a case ends in anything but an item or a VocsegError, gives labels that are not
the mask's, or takes longer than 20 seconds.
"""

import argparse
import io
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vocseg.data.datasets import PredictionDataset, SegmentationDataset
from vocseg.data.files import Sample
from vocseg.data.labels import VOC_PALETTE
from vocseg.data.transforms import EVAL_PIPELINES, Pipeline
from vocseg.errors import VocsegError

CLASSES = 21
LIMIT = 20


def originals(seed: int) -> dict[str, bytes]:
    """A photograph as JPEG (baseline and progressive) and PNG, and its mask as a palette PNG."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(8, 60, 2))
    photograph = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    mask = Image.fromarray(rng.choice([0, 1, 15, 20, 255], (height, width)).astype(np.uint8), mode="L")
    mask.putpalette(VOC_PALETTE.ravel().tolist())
    return {
        "photograph.jpg": _encoded(photograph, format="JPEG", quality=85),
        "progressive.jpg": _encoded(photograph, format="JPEG", progressive=True),
        "photograph.png": _encoded(photograph, format="PNG"),
        "mask.png": _encoded(mask, format="PNG"),
    }


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes some bytes, cuts, repeats or inserts a part; headers are hit as often as all the rest."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        end = min(len(data), 64) if rng.random() < 0.5 else len(data)
        place, length = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 33))
        kind = rng.choice(["flip", "set", "cut", "drop", "repeat", "insert"])
        if kind == "flip" and data:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == "set" and data:
            data[place] = int(rng.choice([0, 1, 127, 128, 254, 255]))
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * int(rng.integers(1, 5))
        else:
            data[place:place] = rng.bytes(length)
    return bytes(data)


def cases(count: int, folder: Path, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Writes and reads one damaged file after the other.

    Args:
        count: how many.
        folder: where to write them.
        seed: of the damage.

    Yields:
        The kind of file, and ``read`` or ``refused``.

    Raises:
        AssertionError: something else happened.
    """
    pipeline = Pipeline(EVAL_PIPELINES["resize"](32, 32), CLASSES)
    for case in range(count):
        rng = np.random.default_rng([seed, case])
        files = originals(int(rng.integers(0, 1000)))
        kind = str(rng.choice(list(files)))
        truth = np.array(Image.open(io.BytesIO(files["mask.png"])))
        files[kind] = damaged(files[kind], rng)
        image, mask = folder / (kind if kind != "mask.png" else "photograph.jpg"), folder / "mask.png"
        image.write_bytes(files[image.name])
        mask.write_bytes(files["mask.png"])
        yield kind, _read(SegmentationDataset([Sample(image, mask)], pipeline, evaluates=True), truth)
        if kind != "mask.png":
            item = PredictionDataset([image], pipeline)[0]
            assert ("unreadable" in item) != ("image" in item), item
            yield f"{kind}, predicted", "refused" if "unreadable" in item else "read"


def _read(dataset: SegmentationDataset, truth: np.ndarray) -> str:
    sample = dataset.samples[0]
    try:
        item = dataset[0]
    except VocsegError as error:
        if str(sample.image) not in str(error) and str(sample.mask) not in str(error):
            raise AssertionError(f"names no file: {error}") from error
        return "refused"
    assert item["image"].shape == (3, 32, 32)
    assert torch.isfinite(item["image"]).all()
    assert np.array_equal(item["original_mask"].numpy(), truth), "other labels than the mask's"
    return "read"


def _encoded(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def _too_long(*_) -> None:
    raise AssertionError(f"longer than {LIMIT} seconds")


def main() -> int:
    """Prints what became of each kind of file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest, started = 0.0, time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for outcome in cases(given.cases, folder, given.seed):
            signal.alarm(LIMIT)
            outcomes[outcome] += 1
            slowest, started = max(slowest, time.monotonic() - started), time.monotonic()
    except BaseException:
        print(f"A case failed; its files are in {folder}", file=sys.stderr)
        raise
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:28} {outcome:8} {count}")
    print(f"{given.cases} cases, the slowest {slowest:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
