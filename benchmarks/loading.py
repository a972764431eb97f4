"""Measures the data path: time per image from disk and in memory, and the check of all files at the start of a run.

    python benchmarks/loading.py --root /path/to/voc --check 2000

Training images are cropped to 256x256 pixels with the pipeline ``crop``, in one process and one thread, without a
network. The rival is what a script would do by hand: OpenCV reads the image, Pillow the mask, one albumentations
``Compose`` of the same transforms crops and normalises, and nothing is checked. Both collate batches of 16, and
vocseg's are normalised as its data module does it. The ways take turns image by image, so that other load on the
machine affects all of them; the figures are medians of the CPU time of the thread.

The check reads ``--check`` samples (those of the tree, copied as often as needed), without a cache, with an empty one
and with a full one.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vocseg import VOCDataModule
from vocseg.data.check_cache import check_samples_once
from vocseg.data.datasets import collate
from vocseg.data.files import Sample, check_samples
from vocseg.data.transforms import TRAIN_PIPELINES

SIZE, BATCH = 256, 16


def rival(samples: list[Sample], in_memory: bool) -> Callable[[int], tuple[Tensor, Tensor]]:
    """A loader's ``__getitem__`` as a script has it."""
    compose = A.Compose([*TRAIN_PIPELINES["crop"](SIZE, SIZE), A.Normalize(), A.ToTensorV2()])

    def read(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image = cv2.cvtColor(cv2.imread(str(sample.image)), cv2.COLOR_BGR2RGB)
        return image, np.array(Image.open(sample.mask))

    kept = [read(sample) for sample in samples] if in_memory else []

    def item(index: int) -> tuple[Tensor, Tensor]:
        image, mask = kept[index] if kept else read(samples[index])
        transformed = compose(image=image, mask=mask)
        return transformed["image"], transformed["mask"].long()

    return item


def measure_items(root: str, images: int, rounds: int) -> None:
    """Prints milliseconds per image."""
    modules = {}
    for name, in_memory in (("from disk", False), ("in memory", True)):
        settings = {"image_size": SIZE, "train_transforms": "crop", "in_memory": in_memory, "train_images": images}
        modules[name] = VOCDataModule(root=root, num_workers=0, **settings)
        modules[name].setup("fit")
    samples = list(modules["from disk"].datasets["train"].samples)
    ways: dict[str, Callable[[int], object]] = {}
    for name, data in modules.items():
        ways[f"vocseg {name}"] = lambda index, dataset=data.datasets["train"]: dataset[(0, index)]
        ways[f"plain cv2 {name}"] = rival(samples, name == "in memory")
    items: dict[str, list] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "vocseg batch", "plain cv2 batch"]}

    def timed(name: str, function: Callable[..., object], *arguments: object) -> object:
        start = time.thread_time()
        result = function(*arguments)
        seconds[name].append(time.thread_time() - start)
        return result

    def ready(batch: list) -> object:
        return modules["in memory"].on_after_batch_transfer(collate(batch), 0)

    for number in range(rounds + 1):
        for index in range(len(samples)):
            for name, way in ways.items():
                items[name].append(timed(name, way, index))
            if len(items["vocseg in memory"]) == BATCH:
                timed("vocseg batch", ready, items["vocseg in memory"])
                timed("plain cv2 batch", torch.utils.data.default_collate, items["plain cv2 in memory"])
                items = {name: [] for name in ways}
        if not number:  # round 0 is the warm-up
            seconds = {name: [] for name in seconds}
    per_image = {name: statistics.median(times) * 1000 for name, times in seconds.items()}
    for kind in ("vocseg", "plain cv2"):
        batch = per_image.pop(f"{kind} batch") / BATCH
        for name in ("from disk", "in memory"):
            loader = per_image[f"{kind} {name}"]
            print(f"  {kind:<10} {name:<10} {loader:6.2f} ms   with batch and normalisation {loader + batch:6.2f} ms")


def measure_check(root: str, count: int) -> None:
    """Prints the seconds that the check at the start of a run takes."""
    data = VOCDataModule(root=root, num_workers=0)
    samples = data.samples("train") + data.samples("val")
    masks, images = data.mask_reader, data.image_reader
    with tempfile.TemporaryDirectory() as name:
        copies = []
        for number in range(count):
            sample, copy = samples[number % len(samples)], Path(name, str(number))
            links = Sample(copy.with_suffix(".jpg"), copy.with_suffix(".png"))
            links.image.symlink_to(sample.image.absolute())
            links.mask.symlink_to(sample.mask.absolute())
            copies.append(links)
        os.environ["XDG_CACHE_HOME"] = name
        ways = {"no cache": check_samples, "an empty cache": check_samples_once, "a full cache": check_samples_once}
        for way, check in ways.items():
            start, used = time.perf_counter(), time.process_time()
            check(copies, masks, images)
            wall, cpu = time.perf_counter() - start, time.process_time() - used
            print(f"  {way:<16} {wall:7.2f} s ({cpu:.2f} s of CPU time)")


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", required=True, help="as --data.root")
    parser.add_argument("--images", type=int, default=128, help="training images per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", type=int, default=2000, help="samples of the check at the start; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(f"One image, crop {SIZE}, median of {options.rounds} rounds of {options.images} images")
    measure_items(options.root, options.images, options.rounds)
    if options.check:
        print(f"Check of {options.check:,} images and masks")
        measure_check(options.root, options.check)


if __name__ == "__main__":
    main()
