"""A trained network as an ONNX file or a program of ``torch.export``, verified before it is kept."""

import importlib.util
import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from vocseg import __version__
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.lists import expand
from vocseg.data.transforms import MEAN, STD, describe_resizing, make_eval_transforms
from vocseg.errors import VocsegError, check_choice
from vocseg.export.check import Check, example_sides, verify
from vocseg.export.model import NAME, TEXTS, ExportedModel
from vocseg.export.network import ExportableNetwork
from vocseg.saving import OwnedFolder
from vocseg.task import SegmentationTask

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
"""The ending of each format's files."""
OUTPUTS = ("labels", "probabilities", "logits")
INPUTS = ("uint8", "float")
OPSETS = range(18, 24)
"""The versions of ONNX's operators that torch's exporter writes."""


@dataclass(frozen=True)
class Export:
    """A file that was exported and verified.

    Attributes:
        path: of the file.
        metadata: what the file says of itself; see :class:`vocseg.export.model.ExportedModel`.
        outputs: their names, in order.
        checks: how it compares with the task.
        size: height and width of its images; None: any.
    """

    path: Path
    metadata: dict[str, Any]
    outputs: list[str]
    checks: list[Check]
    size: tuple[int, int] | None

    def __str__(self) -> str:
        height, width = self.size or ("height", "width")
        classes = len(self.metadata["class_names"])
        shapes = {"labels": f"uint8 [batch, {height}, {width}]"}
        kind = "uint8, RGB" if self.metadata["input"] == "uint8" else "float32, normalised"
        lines = [
            f"Exported  {self.path} ({self.path.stat().st_size / 1e6:.1f} MB)",
            f"Input     image: [batch, 3, {height}, {width}], {kind}",
        ]
        lines += [
            f"Output    {name}: {shapes.get(name, f'float32 [batch, {classes}, {height}, {width}]')}"
            for name in self.outputs
        ]
        return "\n".join([*lines, *(f"Verified  {check}" for check in self.checks)])


def export_task(
    task: SegmentationTask,
    path: str | Path,
    format: str = "onnx",
    output: str = "labels",
    image: str = "uint8",
    opset: int | None = None,
    size: tuple[int, int] | None = None,
    checkpoint: str = "",
) -> Export:
    """Writes a task's network, in eval mode and without the auxiliary decoder, and compares the file with the task.

    The file computes what ``task(image)`` does: one pass over the whole image, whatever ``task.inference`` says.

    Args:
        task: the task.
        path: of the file, which ends in ``.onnx`` or ``.pt2``. A file that is no earlier export is not replaced.
        format: ``onnx``, or ``torch_export`` for ``torch.export.save``.
        output: of the network: ``labels``, ``probabilities`` or ``logits``.
        image: what it takes: ``uint8``, or ``float`` for images that are normalised with the metadata's mean and std.
        opset: version of ONNX's operators; None: torch's default.
        size: the only height and width of its images; None: any.
        checkpoint: its name, for the metadata.

    Raises:
        VocsegError: an argument is invalid, a package is missing, the network cannot be exported, or the file does not
            compute the same. No file is left then.
    """
    if not isinstance(task, SegmentationTask):
        raise VocsegError(f"export_task takes a SegmentationTask; got {type(task).__name__}.")
    path = expand(path)
    _check_arguments(path, format, output, image, opset, size)
    owned = OwnedFolder(path.parent, "export", "Name another file: --to")
    owned.check([path])
    metadata = {**_metadata(task, output, image, checkpoint), "size": size}
    with _in_eval_mode(task), tempfile.TemporaryDirectory() as temporary:
        _check_memory(task, size)
        file = Path(temporary) / path.name
        network = ExportableNetwork(task.network, output, image)
        try:
            with _quiet():
                program = _program(network, task.network.stride, size)
                texts = {name: value if name in TEXTS else json.dumps(value) for name, value in metadata.items()}
                if format == "onnx":
                    _save_onnx(program, file, texts, network_outputs(output), opset)
                else:
                    torch.export.save(program, file, extra_files={NAME: json.dumps(texts)})
        except Exception as error:  # torch, its ONNX exporter and a network's own code raise many kinds
            raise VocsegError(_why_not(task, size, error)) from error
        checks = verify(ExportedModel(file), task, size)
        try:
            with file.open("rb") as source:
                owned.write(path, lambda target: shutil.copyfileobj(source, target))
        except OSError as error:
            raise VocsegError(
                f"{path} cannot be written: {error.strerror or error}. Name another file: --to"
            ) from error
    return Export(path, metadata, network_outputs(output), checks, size)


def network_outputs(output: str) -> list[str]:
    """The names of the outputs, the chosen one first."""
    return [output] if output == "logits" else [output, "logits"]


def _check_arguments(
    path: Path, format: str, output: str, image: str, opset: int | None, size: tuple[int, int] | None
) -> None:
    check_choice("--format", format, FORMATS)
    check_choice("--output", output, OUTPUTS)
    check_choice("--input", image, INPUTS)
    if path.suffix != FORMATS[format]:
        raise VocsegError(f"A file of the format {format} ends in {FORMATS[format]}; got --to {path}.")
    if opset is not None and format != "onnx":
        raise VocsegError("--opset is of --format onnx: leave it out.")
    if opset is not None and opset not in OPSETS:
        raise VocsegError(f"--opset must be {OPSETS[0]} to {OPSETS[-1]}, which torch's exporter writes; got {opset}.")
    if size is not None and min(size) < 1:
        raise VocsegError(f"--size must be a height and a width in pixels; got {size[0]} {size[1]}.")
    needed = ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise VocsegError(f'--format onnx needs {", ".join(missing)}: pip install "vocseg[export]"')


def _metadata(task: SegmentationTask, output: str, image: str, checkpoint: str) -> dict[str, Any]:
    settings = task.data_settings
    return {
        "vocseg": __version__,
        "checkpoint": checkpoint,
        "input": image,
        "output": output,
        "class_names": task.class_names,
        "palette": VOC_PALETTE[: len(task.class_names)].tolist(),
        "ignore_index": VOID,
        "mean": list(MEAN),
        "std": list(STD),
        "evaluation": describe_resizing(make_eval_transforms(settings)),
        "bit_depth": settings.get("bit_depth"),
        "exif_rotation": settings.get("exif_rotation", True),
        "stride": task.network.stride,
    }


def _program(network: ExportableNetwork, stride: int, size: tuple[int, int] | None) -> ExportedProgram:
    type_ = torch.uint8 if network.image == "uint8" else torch.float32
    example = torch.zeros(2, 3, *(size or example_sides(stride)), dtype=type_)
    changing = {0: Dim.DYNAMIC} if size else {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes={"image": changing})


def _save_onnx(
    program: ExportedProgram, file: Path, texts: Mapping[str, str], outputs: Sequence[str], opset: int | None
) -> None:
    onnx = torch.onnx.export(
        program,
        (),
        input_names=["image"],
        output_names=list(outputs),
        opset_version=opset,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert onnx is not None
    onnx.model.metadata_props.update(texts)
    onnx.model.producer_name = "vocseg"
    _name_sizes(onnx.model)
    onnx.save(file)


def _name_sizes(model: Any) -> None:
    """Calls the sizes that change ``batch``, ``height`` and ``width``, instead of torch's ``s40``."""
    import onnx_ir  # the library that torch's exporter is written with

    (image,) = model.graph.inputs
    words = {
        str(side.value): name
        for side, name in zip(image.shape, ("batch", "channels", "height", "width"), strict=True)
        if isinstance(side, onnx_ir.SymbolicDim)
    }
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                re.sub(r"\bs\d+\b", lambda found: words.get(found[0], found[0]), str(side.value))
                if isinstance(side, onnx_ir.SymbolicDim) and side.value is not None
                else side
                for side in value.shape
            )


def _check_memory(task: SegmentationTask, size: tuple[int, int] | None) -> None:
    """Refuses a fixed size whose images and logits alone do not fit into the machine's memory."""
    if size is None:
        return
    # the image as floats and padded; logits, resized and cropped; of the batch of two that is verified
    needed = 2 * 4 * size[0] * size[1] * (2 * 3 + 2 * len(task.class_names))
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return
    if needed > memory:
        raise VocsegError(
            f"--size {size[0]} {size[1]} needs more than {needed / 1e9:.0f} GB of memory, and this machine has "
            f"{memory / 1e9:.0f}: give a smaller one, or leave it out for images of any size."
        )


def _why_not(task: SegmentationTask, size: tuple[int, int] | None, error: Exception) -> str:
    name = type(task.backbone).__name__
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, MemoryError) or "alloc" in reason:
        reason = "there is not enough memory"
    if size is not None:
        return f"The network ({name}, {type(task.decoder).__name__}) cannot be exported: {reason[:300]}"
    return (
        f"The network ({name}, {type(task.decoder).__name__}) cannot be exported for images of any size "
        f"({reason[:300]}). For images of one size: --size HEIGHT WIDTH"
    )


@contextmanager
def _in_eval_mode(task: SegmentationTask) -> Iterator[None]:
    """The task in eval mode and on the CPU, with which all machines can verify; then as before."""
    was_training, device = task.training, task.device
    task.eval().cpu()
    try:
        yield
    finally:
        task.train(was_training).to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports of torch's exporter, which nobody can act upon: the file is verified."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
