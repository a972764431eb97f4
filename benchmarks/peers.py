"""Measures vocseg beside segmentation_models.pytorch, torchvision's reference loop and torchgeo, on VOC2007.

    python -m venv peers
    peers/bin/pip install -e . segmentation-models-pytorch torchgeo requests    # requests: torchgeo needs it
    OMP_NUM_THREADS=1 peers/bin/python benchmarks/peers.py --root /path/to/voc --rounds 5

(a) vocseg, through its command line: ``mobilenet.yaml`` as it is, and the network of (b) without images in memory;
(b) the Lightning example of segmentation_models.pytorch: FPN, Dice loss and statistics of each image, and the same with
cross-entropy; (c) a loop as in torchvision's references/segmentation, with the network of ``mobilenet.yaml``; (d)
torchgeo's SemanticSegmentationTask with its U-Net, and with the network of (b). All have the same encoder, MobileNetV2,
without pretrained weights; contenders/shared.py says what else they share. Scores are counted as each does it: vocseg
at the photograph's own size, the others at the input's.

Measured are one epoch of training with its validation (209 and 213 images; loops only, after start-up), the validation
alone, the loader alone, and the prediction of photographs to mask files at their own size (the whole call; the second
vocseg row also writes overlays and the page). Each contender has a process of its own that lives until the end; in each
round all of them are measured in turn, one at a time, so that other load on the machine affects all. Round 0 is the
warm-up and is not counted. Printed are medians, and of the ratios to vocseg's first row, taken round by round, the
median and the range: above 1 vocseg is faster.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

CONTENDERS = {
    "(a) vocseg, mobilenet.yaml": "vocseg_cli.Vocseg",
    "(a) vocseg, network of (b), from disk": "vocseg_cli.VocsegWithFPN",
    "(b) segmentation_models.pytorch's example": "smp_example.SMP",
    "(b) the same with cross-entropy": "smp_example.SMPFairLoss",
    "(c) torchvision's loop, network of (a)": "torchvision_loop.Torchvision",
    "(d) torchgeo's task, its U-Net": "torchgeo_task.Torchgeo",
    "(d) torchgeo's task, network of (b)": "torchgeo_task.TorchgeoWithFPN",
}
PARTS = {
    "epoch": "One epoch of training and validation, seconds",
    "evaluation": "Validation alone, seconds",
    "data": "The loader of the training alone, images per second",
    "prediction": "Prediction of photographs to mask files, seconds",
}
PACKAGES = ("vocseg", "torch", "torchvision", "lightning", "segmentation_models_pytorch", "torchgeo", "albumentations")


def serve(name: str, settings: dict, connection: Connection) -> None:
    """A contender's process: measures what it is asked for until it is told to stop."""
    os.chdir(settings["folder"])
    log = io.StringIO()
    with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            import lightning
            from contenders.shared import Settings

            module, _, kind = CONTENDERS[name].partition(".")
            lightning.seed_everything(0)
            contender = getattr(importlib.import_module(f"contenders.{module}"), kind)(Settings(**settings))
            while (part := connection.recv()) is not None:
                connection.send(getattr(contender, part)())
        except Exception:
            connection.send(f"{log.getvalue()}\n{traceback.format_exc()}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Part -> contender -> its figure in each round."""
    names = [name for name in CONTENDERS if not options.only or any(word in name for word in options.only)]
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    figures: dict[str, dict[str, list[float]]] = {part: {name: [] for name in names} for part in options.parts}
    for number, name in enumerate(names):
        own = folder / str(number)
        own.mkdir()
        settings = {name: getattr(options, name) for name in ("limit", "workers", "photographs")}
        settings |= {"root": str(options.root.resolve()), "folder": str(own)}
        pipes[name], other = context.Pipe()
        context.Process(target=serve, args=(name, settings, other), daemon=options.workers == 0).start()
        other.close()  # so that reading ends if the contender does
    for round_number in range(options.rounds + 1):
        for part in PARTS:
            # a fit comes first in any case: the others need its checkpoint
            for name in names if part in options.parts or (part == "epoch" and not round_number) else ():
                pipes[name].send(part)
                try:
                    figure = pipes[name].recv()
                except EOFError:
                    figure = "Its process was killed. All contenders together take 20 GB of memory."
                if isinstance(figure, str):
                    raise SystemExit(f"{name}, {part}:\n{figure}")
                print(f"round {round_number}  {part:<10}  {name}  {figure:.2f}", file=sys.stderr, flush=True)
                if round_number and part in options.parts:
                    figures[part][name].append(figure)
    for pipe in pipes.values():
        pipe.send(None)
    return figures


def table(part: str, figures: dict[str, list[float]]) -> str:
    """A Markdown table of one part."""
    (first, ours), *_ = figures.items()
    lines = [f"\n{PARTS[part]}\n", f"| | median (range) | of {first}, round by round |", "|---|---|---|"]
    for name, theirs in figures.items():
        pairs = list(zip(theirs, ours, strict=True))
        ratios = [us / them if part == "data" else them / us for them, us in pairs]
        spread = f"{statistics.median(theirs):.2f} ({min(theirs):.2f} to {max(theirs):.2f})"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(f"| {name} | {spread} | {ratio if name != first else '1'} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder of VOC2007, as --data.root")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=27, help="batches of 8 images; 27 are all of training and of val")
    parser.add_argument("--photographs", type=int, default=200, help="to predict")
    parser.add_argument("--workers", type=int, default=0, help="processes of each loader")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", help="contenders with one of these words in their names")
    options = parser.parse_args()
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    print(f"{versions}; OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    for part, of_part in figures.items():
        print(table(part, of_part))


if __name__ == "__main__":
    main()
