"""Reads damaged JPEG and PNG files with both datasets. Each file must be read correctly or refused with a VocsegError.

    python benchmarks/fuzz.py --cases 10000

A case fails if it raises another exception, returns labels other than those of the mask, or takes longer than 20
seconds. The first failure stops the run with exit status 1; the files of the case are kept.
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
TIMEOUT = 20  # seconds per case


def encode_files(seed: int) -> dict[str, bytes]:
    """Encodes a random image as JPEG (baseline and progressive) and PNG, and its mask as a palette PNG."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(8, 60, 2))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    mask = Image.fromarray(rng.choice([0, 1, 15, 20, 255], (height, width)).astype(np.uint8), mode="L")
    mask.putpalette(VOC_PALETTE.ravel().tolist())
    return {
        "image.jpg": _encode(image, format="JPEG", quality=85),
        "progressive.jpg": _encode(image, format="JPEG", progressive=True),
        "image.png": _encode(image, format="PNG"),
        "mask.png": _encode(mask, format="PNG"),
    }


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Applies one to three changes: flips a bit, sets a byte, or truncates, deletes, repeats or inserts bytes.

    With probability 0.5 a change begins in the first 64 bytes, where the headers are; else anywhere.
    """
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        end = min(len(data), 64) if rng.random() < 0.5 else len(data)
        position, length = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 33))
        kind = rng.choice(["flip", "set", "truncate", "delete", "repeat", "insert"])
        if kind == "flip" and data:
            data[position] ^= 1 << int(rng.integers(0, 8))
        elif kind == "set" and data:
            data[position] = int(rng.choice([0, 1, 127, 128, 254, 255]))
        elif kind == "truncate":
            del data[position:]
        elif kind == "delete":
            del data[position : position + length]
        elif kind == "repeat":
            data[position:position] = data[position : position + length] * int(rng.integers(1, 5))
        else:
            data[position:position] = rng.bytes(length)
    return bytes(data)


def run_cases(count: int, folder: Path, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Writes and reads damaged files, one per case.

    Args:
        count: the number of cases.
        folder: the folder to write the files to.
        seed: the seed of the images and of the damage.

    Yields:
        The kind of file, and ``read`` or ``refused``. Image files yield twice: as part of a sample, and alone as in
        prediction.

    Raises:
        AssertionError: the file was neither read correctly nor refused.
    """
    pipeline = Pipeline(EVAL_PIPELINES["resize"](32, 32), CLASSES)
    for case in range(count):
        rng = np.random.default_rng([seed, case])
        files = encode_files(int(rng.integers(0, 1000)))
        kind = str(rng.choice(list(files)))
        truth = np.array(Image.open(io.BytesIO(files["mask.png"])))
        files[kind] = damage(files[kind], rng)
        image, mask = folder / (kind if kind != "mask.png" else "image.jpg"), folder / "mask.png"
        image.write_bytes(files[image.name])
        mask.write_bytes(files["mask.png"])
        yield kind, _read_sample(SegmentationDataset([Sample(image, mask)], pipeline, evaluates=True), truth)
        if kind != "mask.png":
            item = PredictionDataset([image], pipeline)[0]
            assert ("unreadable" in item) != ("image" in item), item
            yield f"{kind}, predicted", "refused" if "unreadable" in item else "read"


def _read_sample(dataset: SegmentationDataset, truth: np.ndarray) -> str:
    """Reads the only sample of a dataset and checks the item against the labels of its mask."""
    sample = dataset.samples[0]
    try:
        item = dataset[0]
    except VocsegError as error:
        if str(sample.image) not in str(error) and str(sample.mask) not in str(error):
            raise AssertionError(f"the error names no file: {error}") from error
        return "refused"
    assert item["image"].shape == (3, 32, 32)
    assert torch.isfinite(item["image"]).all()
    assert np.array_equal(item["original_mask"].numpy(), truth), "the labels differ from the mask"
    return "read"


def _encode(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def _raise_timeout(*_) -> None:
    raise AssertionError(f"longer than {TIMEOUT} seconds")


def main() -> int:
    """Runs the cases and prints how many files of each kind were read and refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes: Counter[tuple[str, str]] = Counter()
    slowest, started = 0.0, time.monotonic()
    signal.signal(signal.SIGALRM, _raise_timeout)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for outcome in run_cases(args.cases, folder, args.seed):
            signal.alarm(TIMEOUT)
            outcomes[outcome] += 1
            slowest, started = max(slowest, time.monotonic() - started), time.monotonic()
    except BaseException:
        print(f"A case failed. Its files are in {folder}", file=sys.stderr)
        raise
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:28} {outcome:8} {count}")
    print(f"{args.cases} cases, the slowest {slowest:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
