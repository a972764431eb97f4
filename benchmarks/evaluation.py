"""Measures what evaluation costs beside the network: time per image, and memory of the confusion matrices.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [CHECKPOINT]

Loop: ``Trainer.validate`` of MobileNetV2 and SkipDecoder, or of a checkpoint with 21 classes, on batches that are
already in memory, against a bare loop: the forward pass of the batch, and of each image the logits resized to the
photograph's size, argmax and ``bincount`` into one matrix. Also with batch norm folded. The naive bare loop takes
``argmax`` of what the network returns; the tuned one makes the logits contiguous and takes ``max``, which is several
times faster. A network without training finds all classes in every image, which is the worst case for ``label_map``.

Label maps: :func:`vocseg.inference.label_map` against resize and argmax, at 21 and 150 classes, for logits in which few
or all classes occur. Both measurements are of CPU time.

Time: one image of 375x500 pixels and 21 classes, from its logits at 224x224 to the counts. vocseg 0.1.0 computed the
label map at the image's own size and at 224x224, updated torchmetrics' Jaccard index and accuracy with the pixels, and
counted both label maps into dense matrices; ``version_0_1_0`` below does the same. Rounds of the two ways alternate in
one process, so that other load on the machine affects both. The first round is the warm-up and is not counted.

Memory: the matrices of 100,000 images and 150 classes of which each image has 40 cells (six classes, each confused with
six or seven others), added one by one to :class:`vocseg.metrics.SegmentationMetric`, and those of its result. Then time
and memory of the bootstrap interval of 2,000 images and 150 classes. Each runs in a process of its own; memory is by
how much the process grew at most (its resident set).
"""

import logging
import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from vocseg import Inference, MobileNetV2, SegmentationTask, SkipDecoder
from vocseg.confusion import ConfusionMatrices
from vocseg.inference import label_map
from vocseg.intervals import bootstrap_interval
from vocseg.metrics import SegmentationMetric
from vocseg.network import resize

ROUNDS = 60
SIZE, INPUT, CLASSES = (375, 500), (224, 224), 21
MANY_IMAGES, SOME_IMAGES, MANY_CLASSES, CELLS = 100_000, 2_000, 150, 40
MIB = 2**20


def version_0_1_0(num_classes: int) -> Callable[[Tensor, Tensor], None]:
    """What vocseg 0.1.0 did with an image's logits and its target."""
    common: dict[str, Any] = {"num_classes": num_classes, "ignore_index": 255, "validate_args": False}
    scores = MetricCollection(
        {
            "miou": MulticlassJaccardIndex(average="macro", **common),
            "iou": MulticlassJaccardIndex(average="none", zero_division=float("nan"), **common),
            "pixel_accuracy": MulticlassAccuracy(average="micro", **common),
        },
        compute_groups=[["miou", "iou"], ["pixel_accuracy"]],
    )
    matrices: list[Tensor] = []

    def count(prediction: Tensor, target: Tensor) -> Tensor:
        rows = torch.where((target >= 0) & (target < num_classes), target, num_classes)
        return torch.bincount((rows * num_classes + prediction).flatten(), minlength=(num_classes + 1) * num_classes)

    def update(logits: Tensor, target: Tensor) -> None:
        prediction, resized = label_map(logits, target.shape), label_map(logits, INPUT)
        target = target.long()
        scores.update(prediction[None], target[None])
        matrices.append(count(prediction, target))
        resized_target = F.interpolate(target[None, None].float(), size=INPUT, mode="nearest-exact")[0, 0].long()
        matrices.append(count(resized, resized_target))

    return update


def present(num_classes: int) -> Callable[[Tensor, Tensor], None]:
    """What vocseg does now."""
    metric = SegmentationMetric(num_classes)

    def update(logits: Tensor, target: Tensor) -> None:
        metric.update([label_map(logits, target.shape)], [target], [metric.images_seen])

    return update


def label_map_alone(num_classes: int) -> Callable[[Tensor, Tensor], None]:
    """The part that any evaluation needs."""
    return lambda logits, target: (label_map(logits, target.shape), None)[1]


WAYS = {"0.1.0": version_0_1_0, "present": present, "label map alone": label_map_alone}


def main() -> None:
    """Measures, and prints a table."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for measure in (measure_loop, measure_label_map, measure_time, measure_memory, measure_bootstrap):
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=sys.argv[1:2] if measure is measure_loop else ()
        )
        process.start()
        process.join()


def measure_loop(checkpoint: str | None = None) -> None:
    """Prints CPU milliseconds per image of whole evaluations."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if checkpoint is None:
        task = SegmentationTask(MobileNetV2(weights=None), SkipDecoder)
    else:
        task = SegmentationTask.load_from_checkpoint(checkpoint, map_location="cpu")
    task.eval()
    batches = [make_batch(8)] * 4
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)

    def forward() -> None:
        for batch in batches:
            task.network(batch["image"])

    def bare(label: Callable[[Tensor, torch.Size], Tensor]) -> None:
        total = torch.zeros((CLASSES + 1) * CLASSES, dtype=torch.int64)
        for batch in batches:
            for logits, target in zip(task.network(batch["image"]), batch["original_mask"], strict=True):
                cells = target.clamp(max=CLASSES).long() * CLASSES + label(logits, target.shape)
                total += torch.bincount(cells.flatten(), minlength=len(total))

    def validate(fold: bool) -> None:
        task.inference = Inference(fold=fold)
        trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)

    ways: dict[str, Callable[[], None]] = {
        "bare loop, tuned": lambda: bare(lambda logits, size: resize(logits[None].contiguous(), size)[0].max(0)[1]),
        "bare loop, naive": lambda: bare(lambda logits, size: resize(logits[None], size)[0].argmax(0)),
        "forward alone": forward,
        "vocseg": lambda: validate(False),
        "vocseg, folded": lambda: validate(True),
    }
    print(f"\nEvaluation per image, input {INPUT[0]}x{INPUT[1]}, photographs of about {SIZE[0]}x{SIZE[1]}")
    with torch.no_grad():
        compare(ways, rounds=7, items=32)


def make_batch(images: int) -> dict[str, Any]:
    """An evaluation batch of photographs of three sizes."""
    generator = torch.Generator().manual_seed(0)
    sizes = [((375, 500), (500, 375), (333, 500))[index % 3] for index in range(images)]
    coarse = torch.randint(0, CLASSES, (images, 1, 6, 8), generator=generator).float()
    return {
        "image": torch.randn(images, 3, *INPUT, generator=generator),
        "mask": F.interpolate(coarse, INPUT)[:, 0].long(),
        "original_mask": [
            F.interpolate(mask[None], size)[0, 0].byte() for mask, size in zip(coarse, sizes, strict=True)
        ],
        "input_size": torch.tensor([INPUT] * images),
        "index": torch.arange(images),
    }


def measure_label_map() -> None:
    """Prints CPU milliseconds per label map."""
    for classes, occurring in ((21, 4), (21, 21), (150, 15), (150, 150)):
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(1, classes, 7, 7, generator=generator)
        coarse[:, torch.randperm(classes, generator=generator)[occurring:]] -= 6
        logits = F.interpolate(coarse, INPUT, mode="bicubic")[0]
        logits = logits[None].contiguous(memory_format=torch.channels_last)[0]  # as networks return them
        ways: dict[str, Callable[[], Any]] = {
            "resize and max, contiguous": lambda logits=logits: resize(logits[None].contiguous(), SIZE)[0].max(0)[1],
            "label_map": lambda logits=logits: label_map(logits, SIZE),
        }
        assert torch.equal(ways["label_map"](), ways["resize and max, contiguous"]())
        print(f"\nLabel map of {SIZE[0]}x{SIZE[1]}, {classes} classes of which {occurring} occur")
        compare(ways, rounds=15)


def compare(ways: dict[str, Callable[[], Any]], rounds: int, items: int = 1) -> None:
    """Prints the CPU time of each way, and its ratio to the first one round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()  # other programs on the machine do not count
            way()
            if number:  # round 0 is the warm-up
                seconds[name].append((time.process_time() - start) / items)
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = statistics.median(time / base for time, base in zip(times, first, strict=True))
        print(f"  {name:<30} {statistics.median(times) * 1000:7.2f} ms   {ratio:.2f}", flush=True)


def measure_time() -> None:
    """Prints milliseconds per image."""
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(torch.randn(1, CLASSES, 7, 7, generator=generator), INPUT, mode="bicubic")[0]
    target = label_map(logits + 0.3 * torch.randn(CLASSES, 1, 1, generator=generator), SIZE).to(torch.uint8)
    target[:, :20] = 255
    ways = {name: way(CLASSES) for name, way in WAYS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, update in ways.items():
            start = time.perf_counter()
            update(logits, target)
            if number:  # round 0 is the warm-up
                seconds[name].append(time.perf_counter() - start)
    print(f"\nOne image of {SIZE[0]}x{SIZE[1]} pixels, {CLASSES} classes, median of {ROUNDS} rounds")
    for name, times in seconds.items():
        ratio = statistics.median(time / old for time, old in zip(times, seconds["0.1.0"], strict=True))
        print(f"  {name:<16} {statistics.median(times) * 1000:6.2f} ms   {ratio:.2f} of 0.1.0")


def measure_memory() -> None:
    """Prints the memory of the matrices of many images."""
    # 40 pixels, each in another cell: the counts of more pixels take no more memory
    images = [torch.from_numpy(cells) for cells in random_cells(1000)]
    metric = SegmentationMetric(MANY_CLASSES)
    before, start = resident(), time.perf_counter()
    for index in range(MANY_IMAGES):
        cells = images[index % len(images)]
        metric.update([cells % MANY_CLASSES], [cells // MANY_CLASSES], [index])
    updated, start = time.perf_counter() - start, time.perf_counter()
    states = resident() - before
    matrices = metric.compute().matrices
    computed, peak = time.perf_counter() - start, resident() - before
    arrays = sum(array.nbytes for array in matrices.to_arrays().values()) / MIB
    dense = MANY_IMAGES * MANY_CLASSES * (MANY_CLASSES + 1) * 8 / MIB
    print(f"\n{MANY_IMAGES:,} images, {MANY_CLASSES} classes, {CELLS} cells per image")
    print(f"  dense matrices, int64    {dense:7,.0f} MiB (by calculation)")
    print(f"  states of the metric     {states:7,.0f} MiB   all updates {updated:.1f} s")
    print(f"  matrices of the result   {arrays:7,.0f} MiB   compute {computed:.1f} s")
    print(f"  at most                  {peak:7,.0f} MiB")


def measure_bootstrap() -> None:
    """Prints time and memory of the interval of some images."""
    cells = random_cells(SOME_IMAGES)
    offsets = np.arange(0, cells.size + 1, CELLS)
    counts = np.random.default_rng(0).integers(1, 10_000, cells.size)
    matrices = ConfusionMatrices(MANY_CLASSES, offsets, cells.ravel().astype(np.int32), counts.astype(np.int32))
    before, start = resident(), time.perf_counter()
    low, high = bootstrap_interval(matrices)
    seconds, peak = time.perf_counter() - start, resident() - before
    print(f"\nBootstrap interval of {SOME_IMAGES:,} images, {MANY_CLASSES} classes, 2,000 resamples")
    print(f"  {seconds:.2f} s, at most {peak:.0f} MiB beside the matrices (interval {low:.4f} to {high:.4f})")


def random_cells(images: int) -> np.ndarray:
    """Ascending cells of each image, int64 [images, CELLS]."""
    rng = np.random.default_rng(0)
    return np.sort(np.stack([rng.choice(MANY_CLASSES**2, CELLS, replace=False) for _ in range(images)]))


def resident() -> float:
    """The largest resident set of this process so far, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
