"""``vocseg export``."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from vocseg.checkpoints import checkpoint_settings
from vocseg.components import factory_from_config
from vocseg.errors import ArgumentParser, VocsegError, check_choice
from vocseg.export.files import FORMATS, export_task
from vocseg.initialization import checkpoint_of
from vocseg.run_folder import RunFolder
from vocseg.task import SegmentationTask


def make_parser() -> ArgumentParser:
    """The options of ``vocseg export``."""
    parser = ArgumentParser(
        prog="vocseg export",
        description="Writes the network of a checkpoint as a file that needs neither vocseg nor Lightning, with "
        "normalisation and resizing inside, for images of any number and size; and compares it with the checkpoint "
        "before it is kept. vocseg predict --model FILE applies it.",
    )
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint, or a run's folder or name: its best one")
    parser.add_argument("--format", default="onnx", help="onnx (default) or torch_export")
    parser.add_argument("--to", help="file to write (default: exported.onnx or exported.pt2 in the run's folder)")
    parser.add_argument(
        "--output",
        default="labels",
        help="the first output: labels (default), probabilities or logits; logits are the last one in any case",
    )
    parser.add_argument(
        "--input", default="uint8", help="uint8 RGB (default), or float: normalised with the metadata's mean and std"
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators, 18 to 23 (default: torch's own)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="the only size of images (default: any)"
    )
    return parser


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg export ...``.

    Args:
        args: the words after ``vocseg export``.

    Raises:
        VocsegError: a mistake in them; see :func:`vocseg.export.files.export_task`.
    """
    given = make_parser().parse_args(args)
    check_choice("--format", given.format, FORMATS)
    checkpoint = checkpoint_of(given.ckpt_path)
    run = RunFolder.of_checkpoint(checkpoint)
    suffix = FORMATS[given.format]
    path = given.to or (run.exported(suffix) if run else Path(f"exported{suffix}"))
    name = f"{run.name}/{checkpoint.parent.name}/{checkpoint.name}" if run else checkpoint.name
    task = load_task(checkpoint)
    size = None if given.size is None else (given.size[0], given.size[1])
    done = export_task(task, path, given.format, given.output, given.input, given.opset, size, name)
    print(f"{done}\nNext\n  vocseg predict --model {shlex.quote(str(done.path))} --data.predict_path IMAGES")


def load_task(checkpoint: Path) -> SegmentationTask:
    """Loads the task of a checkpoint, in eval mode, with the weights that ``vocseg test`` scores.

    Raises:
        VocsegError: there is no such checkpoint, or it cannot be built.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # of the user's own classes, as for vocseg test
    model = checkpoint_settings(checkpoint)["model"]
    task_class = factory_from_config({"class_path": model["class_path"]}, "model", L.LightningModule).func
    if not issubclass(task_class, SegmentationTask):
        raise VocsegError(f"vocseg export needs a SegmentationTask: {model['class_path']} does not derive from it.")
    return task_class.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True).eval()
