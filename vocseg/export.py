"""``vocseg export``: a trained network as an ONNX file or a program of ``torch.export``, verified before it is kept."""

import copy
import importlib.util
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from vocseg import __version__
from vocseg.checkpoints import checkpoint_settings
from vocseg.components import factory_from_config
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.lists import expand
from vocseg.data.transforms import MEAN, STD, describe_resizing, make_eval_transforms, normalise, scale_and_offset
from vocseg.errors import ArgumentParser, VocsegError, check_choice
from vocseg.exported import NAME, TEXTS, ExportedModel
from vocseg.initialization import checkpoint_of
from vocseg.network import SegmentationNetwork
from vocseg.run_folder import RunFolder
from vocseg.saving import OwnedFolder
from vocseg.task import SegmentationTask

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2"}
"""The ending of each format's files."""
OUTPUTS = ("labels", "probabilities", "logits")
INPUTS = ("uint8", "float")
OPSETS = range(18, 24)
"""The versions of ONNX's operators that torch's exporter writes."""
LEAST_EQUAL = 0.9999
"""Share of the pixels whose label must be the task's."""
LARGEST_DIFFERENCE = 1e-3
"""How far logits may be from the task's; of logits above 100, 1e-5 of the largest."""


@dataclass(frozen=True)
class Check:
    """A comparison of an exported file with its task, on images of one size.

    Attributes:
        shape: images, height and width.
        equal: share of the pixels with the same label.
        difference: the largest one between logits.
    """

    shape: tuple[int, int, int]
    equal: float
    difference: float

    def __str__(self) -> str:
        images, height, width = self.shape
        size = f"{images} image{'s' * (images > 1)} of {height}x{width}"
        return f"{size:<24} labels equal {100 * self.equal:.4f} %   logits differ by at most {self.difference:.1e}"


@dataclass(frozen=True)
class Export:
    """A file that was exported and verified.

    Attributes:
        path: of the file.
        metadata: what the file says of itself; see :class:`vocseg.exported.ExportedModel`.
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


class ExportableNetwork(nn.Module):
    """A network with the steps around it: images in, labels or probabilities, and logits out.

    Args:
        network: which is copied.
        output: the first output: ``labels``, ``probabilities`` or ``logits``. Logits are the last one in any case: an
            image that was resized for the network has its labels at its own size from resized logits.
        image: ``uint8``, which is normalised here, or ``float``.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, network: SegmentationNetwork, output: str = "labels", image: str = "uint8") -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().to(memory_format=torch.contiguous_format)
        self.network.channels_last = False
        self.network.requires_grad_(False)
        _replace_layers(self.network)
        self.output, self.image = output, image
        for name, values in zip(("scale", "offset"), scale_and_offset(), strict=True):
            self.register_buffer(name, torch.from_numpy(values)[:, None, None])
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs at the size of the input; see :meth:`vocseg.exported.ExportedModel.__call__`."""
        if self.image == "uint8":
            image = image.to(torch.float32) * self.scale - self.offset
        logits = self.network(image)
        if self.output == "labels":
            return logits.argmax(1).to(torch.uint8), logits
        return (logits.softmax(1), logits) if self.output == "probabilities" else (logits,)


class PoolingByProduct(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as a product of matrices, which depends on the image's size by no loop.

    Args:
        size: rows and columns of the pooled grid.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pools, float [B, C, h, w] -> [B, C, rows, columns]."""
        rows, columns = (self._weights(x, -2), self._weights(x, -1))
        return rows @ x @ columns.T

    def _weights(self, x: Tensor, dim: int) -> Tensor:
        """The share of each pixel in each cell: [cells, pixels]."""
        pixels, cells = x.shape[dim], self.size[dim]
        cell, pixel = torch.arange(cells, device=x.device)[:, None], torch.arange(pixels, device=x.device)
        first, end = cell * pixels // cells, ((cell + 1) * pixels + cells - 1) // cells
        return ((pixel >= first) & (pixel < end)).to(x.dtype) / (end - first).to(x.dtype)


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
        checks = _verify(ExportedModel(file), task, size)
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
    try:
        evaluation = describe_resizing(make_eval_transforms(settings))
    except (NotImplementedError, TypeError) as error:
        raise VocsegError(
            f"An exported file cannot describe the eval_transforms of the data: {' '.join(str(error).split())}"
        ) from error
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
        "evaluation": evaluation,
        "bit_depth": settings.get("bit_depth"),
        "exif_rotation": settings.get("exif_rotation", True),
        "stride": task.network.stride,
    }


def _replace_layers(module: nn.Module) -> None:
    """Puts layers that compute the same in the place of those that exporters cannot handle at any size, or only slowly.

    Of adaptive pooling to several cells ONNX has no operator, and torch writes one for the traced size alone.
    TensorFlow's padding (timm's ``Conv2dSame``) depends on the size, in expressions that torch takes minutes to follow.
    But images are padded to multiples of the stride, so all features have sizes that the next stride divides.
    """
    for name, child in module.named_children():
        if type(child) is nn.AdaptiveAvgPool2d:
            size: Any = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            if rows and columns and (rows, columns) != (1, 1):
                setattr(module, name, PoolingByProduct((rows, columns)))
        elif isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":
            setattr(module, name, _padded_alike(child))
        else:
            _replace_layers(child)


def _padded_alike(convolution: nn.Conv2d) -> nn.Sequential:
    """Padding and convolution, as ``Conv2dSame`` computes them where the stride divides the size."""
    sizes = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    rows, columns = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, stride, dilation in sizes)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,  # type: ignore[arg-type]  # of two numbers
        convolution.stride,  # type: ignore[arg-type]
        dilation=convolution.dilation,  # type: ignore[arg-type]
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    plain.weight, plain.bias = convolution.weight, convolution.bias
    return nn.Sequential(nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), plain)


def _sides(stride: int) -> tuple[int, int]:
    """A multiple of the stride of about 100 pixels, and one that is larger by a stride."""
    side = max(-(-96 // stride), 3) * stride
    return side, side + max(stride, 16)


def _program(network: ExportableNetwork, stride: int, size: tuple[int, int] | None) -> ExportedProgram:
    type_ = torch.uint8 if network.image == "uint8" else torch.float32
    example = torch.zeros(2, 3, *(size or _sides(stride)), dtype=type_)
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


def _verify(model: ExportedModel, task: SegmentationTask, size: tuple[int, int] | None) -> list[Check]:
    """Compares a file with its task on images of several sizes.

    Raises:
        VocsegError: they do not compute the same.
    """
    side, other = _sides(task.network.stride)
    shapes = [(1, *size), (2, *size)] if size else [(1, side, other), (1, side + 5, other + 11), (2, other, side)]
    checks = []
    for images, height, width in shapes:
        pixels = _test_images(images, height, width)
        with torch.no_grad():
            image = normalise(pixels)
            expected = task(image).numpy()
        found = model((pixels if model.metadata["input"] == "uint8" else image).numpy())
        logits = found["logits"]
        labels = found.get("labels", found.get("probabilities", logits).argmax(1))
        labels = labels if labels.ndim == 3 else labels.argmax(1)
        difference = float(np.abs(logits - expected).max())
        check = Check((images, height, width), float((labels == expected.argmax(1)).mean()), difference)
        allowed = max(LARGEST_DIFFERENCE, 1e-5 * float(np.abs(expected).max()))
        if not (check.equal >= LEAST_EQUAL and check.difference <= allowed):  # NaN fails, too
            raise VocsegError(
                f"The exported network does not compute what the checkpoint does, and no file is left: {check}. A "
                "network of your own may change its result with the image's size: try --size HEIGHT WIDTH."
            )
        checks.append(check)
    return checks


def _test_images(images: int, height: int, width: int) -> Tensor:
    """Coarse and fine patterns, uint8 [B, 3, H, W]; always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(images, 3, 6, 6, generator=generator)
    fine = torch.rand(images, 3, height, width, generator=generator)
    mixed = 0.8 * F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.2 * fine
    return (255 * mixed).to(torch.uint8)


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


def command_parser() -> ArgumentParser:
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
        VocsegError: a mistake in them; see :func:`export_task`.
    """
    given = command_parser().parse_args(args)
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
