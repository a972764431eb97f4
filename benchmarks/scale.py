"""Measures what a data set's size costs: time and memory of trees of many small images.

    OMP_NUM_THREADS=1 python benchmarks/scale.py                               # 1,000, 10,000 and 50,000 images
    OMP_NUM_THREADS=1 python benchmarks/scale.py --images 1000 4000 --classes 21 --figure scale.png

The images have 64x48 pixels and are hard links to 64 files each of images and masks; all three lists of the VOC tree
name all of them. The network is three convolutions, so that nearly all time is spent in files and bookkeeping. Each
step runs in a process of its own:

- setup: ``datamodule.setup("fit")``, which checks the files of two lists; first and again;
- loading: one epoch of training batches;
- metric: one update per image with a label map of 4 classes, then ``compute`` and the bootstrap interval;
- test, report and predict: the commands, with a checkpoint that was trained for one step.

Time is CPU time after imports. Memory is by how much the process grew at most after imports (its resident set).
Printed are both per image, and the exponent of their growth with the number of images, fitted on logarithms: 1 is
linear. Ends with status 1 if time grows with an exponent above 1.15, or memory does and takes more than 100 MiB.
"""

import argparse
import contextlib
import io
import logging
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT, DIFFERENT = 64, 48, 64
FULL = [1_000, 10_000, 50_000]
LIMIT, MIB = 1.15, 2**20


def make_tree(tree: Path, images: int, classes: int) -> None:
    """Writes a VOC tree of hard links to a few files; each mask has four classes and some void."""
    rng = np.random.default_rng(0)
    folders = {"JPEGImages": ".jpg", "SegmentationClass": ".png"}
    (tree / "ImageSets" / "Segmentation").mkdir(parents=True)
    for folder in (*folders, "files"):
        (tree / folder).mkdir()
    for number in range(DIFFERENT):
        pixels = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(tree / "files" / f"{number}.jpg")
        mask = rng.choice(classes, 4)[rng.integers(0, 4, (HEIGHT // 8, WIDTH // 8))].repeat(8, 0).repeat(8, 1)
        mask[:2] = 255
        Image.fromarray(mask.astype(np.uint8)).save(tree / "files" / f"{number}.png")
    for file in (tree / "files").iterdir():
        os.utime(file, (time.time() - 3600,) * 2)  # files that have just changed are checked again in the next run
    names = [f"{number:06d}" for number in range(images)]
    for folder, ending in folders.items():
        for number, name in enumerate(names):
            os.link(tree / "files" / f"{number % DIFFERENT}{ending}", tree / folder / (name + ending))
    for split in ("train", "val", "test"):
        (tree / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    (tree / "classes.txt").write_text("\n".join(["background", *(f"class {label}" for label in range(1, classes))]))


def make_data(tree: Path) -> Any:
    """The data module of a tree, after ``setup``."""
    from vocseg import VOCDataModule

    data = VOCDataModule(str(tree), image_size=(HEIGHT, WIDTH), batch_size=32, num_workers=0)
    data.setup("fit")
    return data


def setup(tree: Path, images: int, classes: int) -> Callable[[], Any]:
    """Finds and checks the files."""
    return lambda: make_data(tree)


def loading(tree: Path, images: int, classes: int) -> Callable[[], None]:
    """One epoch of training batches."""
    data = make_data(tree)

    def load() -> None:
        assert sum(len(batch["image"]) for batch in data.train_dataloader()) > images - 32

    return load


def metric(tree: Path, images: int, classes: int) -> Callable[[], None]:
    """What validation counts."""
    import torch

    from vocseg.intervals import bootstrap_interval
    from vocseg.metrics import SegmentationMetric

    generator = torch.Generator().manual_seed(0)
    maps = [torch.randint(0, classes, (2, 4), generator=generator) for _ in range(DIFFERENT)]
    grid = [[labels[torch.randint(0, 4, (HEIGHT, WIDTH), generator=generator)] for labels in pair] for pair in maps]
    counts = SegmentationMetric(classes)

    def count() -> None:
        for index in range(images):
            prediction, target = grid[index % DIFFERENT]
            counts.update([prediction], [target], [index])
        bootstrap_interval(counts.compute().matrices)

    return count


def command(*args: str) -> Callable[[Path, int, int], Callable[[], None]]:
    """A vocseg command, run in the folder that holds the tree."""

    def prepared(tree: Path, images: int, classes: int) -> Callable[[], None]:
        from vocseg.cli import main

        os.chdir(tree.parent)
        words = [word.replace("TREE", str(tree)) for word in args]
        options = ["--data.num_workers", "0"] if words[0] in ("fit", "test", "predict") else []

        def run() -> None:
            assert main([*words, *options]) == 0

        return run

    return prepared


RUN = "lightning_logs/scale/version_0"
CHECKPOINT = ("--ckpt_path", f"{RUN}/checkpoints/last.ckpt")
NETWORK = (
    *("--model.backbone", "StridedEncoder", "--model.backbone.widths", "[4, 4]", "--model.decoder", "LinearHead"),
    *("--data.image_size", f"[{HEIGHT}, {WIDTH}]", "--data.batch_size", "32", "--name", "scale"),
)
STEPS: dict[str, Callable[[Path, int, int], Callable[[], Any]]] = {
    "setup, first": setup,
    "setup, again": setup,
    "loading": loading,
    "metric": metric,
    "fit, one step": command(
        *("fit", "--data.root", "TREE", *NETWORK),
        *("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"),
    ),
    "test": command("test", *CHECKPOINT),
    "report": command("report", RUN),
    "predict": command("predict", *CHECKPOINT, "--data.predict_path", "TREE/JPEGImages"),
}


def measured(step: str, tree: Path, images: int, classes: int, connection: Connection) -> None:
    """Runs a step in this process; sends its CPU seconds and by how many bytes the process grew."""
    log = io.StringIO()
    os.environ["XDG_CACHE_HOME"] = str(tree.parent / "cache")  # the first setup finds no cache of checked files
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            run = STEPS[step](tree, images, classes)
            before, start = resident(), time.process_time()
            run()
            connection.send((time.process_time() - start, resident() - before))
    except BaseException:
        connection.send(f"{log.getvalue()}\n{traceback.format_exc()}")


def resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def exponent(sizes: list[int], costs: list[float]) -> float:
    """The slope of the logarithms; NaN where a cost is not positive."""
    if len(sizes) < 2 or min(costs) <= 0:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def draw(costs: dict[tuple[int, str], list[tuple[float, float]]], sizes: list[int], path: Path) -> None:
    """Time and memory (MiB, above 0) of each step over the number of images."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure((10, 4.5), layout="constrained")
    axes = figure.subplots(1, 2)
    lines = dict(zip(sorted({classes for classes, _ in costs}), ("-", "--", ":", "-."), strict=False))
    colours = {step: f"C{number}" for number, step in enumerate(STEPS) if any(step == other for _, other in costs)}
    for (classes, step), pairs in costs.items():
        style = {"color": colours[step], "linestyle": lines.get(classes, "-"), "marker": "o", "markersize": 3}
        for axis, values in zip(axes, zip(*pairs, strict=True), strict=True):
            axis.loglog(sizes, values, **style)
    for axis, title in zip(axes, ("CPU seconds", "MiB beside the imports"), strict=True):
        axis.set(xlabel="images", title=title)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
    keys = [Line2D([], [], color=colour, label=step) for step, colour in colours.items()]
    keys += [
        Line2D([], [], color="black", linestyle=line, label=f"{classes} classes") for classes, line in lines.items()
    ]
    figure.legend(handles=keys, loc="outside right", fontsize=8, handlelength=3)
    figure.savefig(path, dpi=95)


def main() -> int:
    """Measures, prints the table, and says what grows too fast."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=FULL)
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 150])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="test and predict need fit")
    parser.add_argument("--figure", type=Path, help="a PNG to write: time and memory over the number of images")
    options = parser.parse_args()
    sizes = sorted(options.images)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    context = multiprocessing.get_context("forkserver")  # every process is a fork of one that has imported vocseg
    context.set_forkserver_preload(["vocseg.lightning_cli", "vocseg.report.page"])
    costs: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for classes in options.classes:
        for images in sizes:
            with tempfile.TemporaryDirectory() as folder:
                tree = Path(folder) / "VOC2007"
                make_tree(tree, images, classes)
                for step in options.steps:
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=measured, args=(step, tree, images, classes, sender))
                    process.start()
                    sender.close()
                    cost = receiver.recv()
                    process.join()
                    if isinstance(cost, str):
                        raise SystemExit(f"{step}, {images} images, {classes} classes:\n{cost}")
                    costs.setdefault((classes, step), []).append(cost)
                    print(
                        f"{classes:4} classes {images:7} images  {step:<14} {cost[0]:8.2f} s {cost[1] / MIB:8.1f} MiB",
                        file=sys.stderr,
                        flush=True,
                    )
    too_fast = []
    print(f"\n| classes | step | ms per image at {' / '.join(map(str, sizes))} | exponent | KiB per image | exponent |")
    print("|---|---|---|---|---|---|")
    for (classes, step), pairs in costs.items():
        seconds, memory = ([pair[part] for pair in pairs] for part in (0, 1))
        growth, swelling = exponent(sizes, seconds), exponent(sizes, memory)
        times, kib = (
            " / ".join(f"{scale * cost / size:.2f}" for cost, size in zip(each, sizes, strict=True))
            for scale, each in ((1000, seconds), (1 / 1024, memory))
        )
        print(f"| {classes} | {step} | {times} | {growth:.2f} | {kib} | {swelling:.2f} |")
        if growth > LIMIT:
            too_fast.append(f"time of {step} ({classes} classes): exponent {growth:.2f}")
        if swelling > LIMIT and memory[-1] > 100 * MIB:
            too_fast.append(f"memory of {step} ({classes} classes): exponent {swelling:.2f}")
    if options.figure:
        in_mib = {key: [(seconds, max(size / MIB, 1.0)) for seconds, size in pairs] for key, pairs in costs.items()}
        draw(in_mib, sizes, options.figure)
    for line in too_fast:
        print(f"Grows faster than linearly: {line}")
    return 1 if too_fast else 0


if __name__ == "__main__":
    sys.exit(main())
