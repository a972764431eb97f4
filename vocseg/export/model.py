"""Networks that ``vocseg export`` wrote: read and applied to images, without Lightning, and ONNX also without torch."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2  # albumentations' own dependency
import numpy as np

from vocseg.data.images import ImageReader
from vocseg.errors import VocsegError

NAME = "vocseg.json"
"""The metadata's name in a file of ``torch.export``."""
TEXTS = ("vocseg", "checkpoint", "input", "output")
"""Metadata that is text; all other entries are JSON."""


class ExportedModel:
    """A network in a file that ``vocseg export`` wrote.

    An ONNX file is run by onnxruntime on the CPU, a file of ``torch.export`` by torch.

    Args:
        path: of the file.
        threads: that compute a layer; None: as many as the machine has cores.

    Attributes:
        metadata: what the file says of itself: ``class_names``, ``palette``, ``ignore_index``, ``mean`` and ``std``,
            ``input`` and ``output`` (their kinds), ``evaluation`` (how images are resized, see :func:`prepare`),
            ``bit_depth``, ``exif_rotation``, ``stride``, ``size`` (of all images, or None), ``checkpoint`` and
            ``vocseg`` (the version).
        class_names: one name per label.
        outputs: names of the outputs; the last one is ``logits``.
        image_reader: how image files become RGB.

    Raises:
        VocsegError: the file does not exist, or vocseg did not write it, or the package that runs it is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = Path(path).expanduser()
        if threads is not None and threads < 1:
            raise VocsegError(f"threads must be at least 1; got {threads}.")
        if self.path.is_dir():
            files = [str(each) for each in sorted(self.path.iterdir()) if each.suffix in (".onnx", ".pt2")]
            raise VocsegError(
                f"{self.path} is a folder: name the exported file in it"
                + (f", {' or '.join(files)}." if files else "; vocseg export --ckpt_path CKPT writes one.")
            )
        if not self.path.is_file():
            raise VocsegError(f"There is no exported model {self.path}: vocseg export --ckpt_path CKPT writes one.")
        load = self._load_program if zipfile.is_zipfile(self.path) else self._load_onnx
        self._run, self.metadata = load(threads)
        self.class_names: list[str] = list(self.metadata["class_names"])
        self.outputs = list(dict.fromkeys([str(self.metadata["output"]), "logits"]))
        self.image_reader = ImageReader(self.metadata.get("bit_depth"), self.metadata.get("exif_rotation", True))

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Applies the network to a batch, as it is in the file.

        Args:
            image: RGB uint8 [B, 3, H, W]; where ``metadata["input"]`` is ``float``, normalised float32.

        Returns:
            The outputs by name, at the size of the input: ``logits`` float32 [B, C, H, W], and ``labels`` uint8
            [B, H, W] or ``probabilities`` float32 [B, C, H, W].

        Raises:
            VocsegError: the network does not take images of this size or type, or the memory does not suffice.
        """
        try:
            return dict(zip(self.outputs, self._run(np.ascontiguousarray(image)), strict=True))
        except VocsegError:
            raise
        except Exception as error:  # each runtime has its own
            reason = " ".join(str(error).split())[:300]
            if isinstance(error, MemoryError) or any(word in reason for word in ("alloc", "memory")):
                reason = "there is not enough memory"
            shape = "x".join(map(str, image.shape))
            raise VocsegError(f"{self.path} cannot be applied to images {image.dtype} {shape}: {reason}") from error

    def logits(self, image: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """Prepares one image as the network's training did for evaluation, and applies the network.

        Args:
            image: a path, a PIL image, or an array [H, W, 3] (RGB) or [H, W] (grey).

        Returns:
            float32 [C, h, w], at the size of the prepared image; and height and width of the image itself.

        Raises:
            VocsegError: the image cannot be read, or the network cannot be applied to it.
        """
        pixels = self.image_reader.convert(image)
        prepared = prepare(pixels, self.metadata["evaluation"])
        if self.metadata["input"] == "float":
            mean, std = (np.array(self.metadata[name], np.float32) for name in ("mean", "std"))
            prepared = (prepared * (1.0 / (255.0 * std)) - mean / std).astype(np.float32)
        size = self.metadata.get("size")
        if size and prepared.shape[:2] != tuple(size):
            raise VocsegError(
                f"{self.path} takes images of {size[0]}x{size[1]} alone, and this one is prepared as "
                f"{prepared.shape[0]}x{prepared.shape[1]}: export it without --size, or with that size."
            )
        return self(prepared.transpose(2, 0, 1)[None])["logits"][0], (pixels.shape[0], pixels.shape[1])

    def segment(self, image: Any) -> np.ndarray:
        """Segments one image, as :meth:`vocseg.task.SegmentationTask.segment` does and ``vocseg test`` scores.

        Args:
            image: as of :meth:`logits`.

        Returns:
            Its label map at its own size, uint8 [H, W].

        Raises:
            VocsegError: as of :meth:`logits`.
        """
        return label_map(*self.logits(image))

    def _load_onnx(self, threads: int | None) -> tuple[Any, dict[str, Any]]:
        try:
            import onnxruntime  # an optional dependency
        except ModuleNotFoundError as error:
            raise VocsegError(f'{self.path} needs onnxruntime: pip install "vocseg[export]"') from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, too
        options.intra_op_num_threads = threads or 0
        options.enable_mem_pattern = False  # a plan of the memory for every size of images
        try:
            session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # half a dozen kinds, that derive from nothing narrower
            self._refuse(error)
        metadata = self._metadata(session.get_modelmeta().custom_metadata_map)
        return lambda image: session.run(None, {"image": image}), metadata

    def _load_program(self, threads: int | None) -> tuple[Any, dict[str, Any]]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                name = next((name for name in archive.namelist() if name.endswith(f"/extra/{NAME}")), None)
                if name is None:
                    self._refuse()
                text = archive.read(name)
                damaged = archive.testzip()  # torch would compute with whatever is there
        except zipfile.BadZipFile as error:
            self._refuse(error)
        if damaged is not None:
            raise VocsegError(f"{self.path} is damaged ({damaged}): copy or export it again.")
        try:
            entries = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            self._refuse(error)
        metadata = self._metadata(entries)
        import torch  # ONNX files do without

        if threads is not None:
            torch.set_num_threads(threads)
        try:
            module = torch.export.load(self.path).module()
        except Exception as error:  # torch raises half a dozen kinds
            self._refuse(error)

        def run(image: np.ndarray) -> list[np.ndarray]:
            if min(image.shape[2:]) <= metadata["stride"]:
                raise VocsegError(
                    f"{self.path} takes images larger than {metadata['stride']} pixels; got {image.shape[2]}x"
                    f"{image.shape[3]}. A file of --format onnx takes smaller ones, too."
                )
            with torch.inference_mode():
                return [output.numpy() for output in module(torch.from_numpy(image))]

        return run, metadata

    def _metadata(self, entries: Mapping[str, str]) -> dict[str, Any]:
        try:
            metadata = {name: text if name in TEXTS else json.loads(text) for name, text in entries.items()}
        except ValueError as error:
            self._refuse(error)
        if not {"vocseg", "class_names", "evaluation", "input", "output"} <= set(metadata):
            self._refuse()
        return metadata

    def _refuse(self, error: Exception | None = None) -> NoReturn:
        raise VocsegError(
            f"{self.path} is no model that vocseg exported: vocseg export --ckpt_path CKPT writes one, and a "
            "checkpoint is given with --ckpt_path."
        ) from error


def prepare(pixels: np.ndarray, evaluation: Mapping[str, Any]) -> np.ndarray:
    """Resizes an image as the data module that a network was evaluated with did.

    Args:
        pixels: RGB uint8 [H, W, 3].
        evaluation: ``longest_side`` (pixels) or ``size`` (height, width), with OpenCV's ``interpolation`` and whether
            images are made smaller by averaging (``area``); ``albumentations``, other transforms as that library writes
            them; or nothing: images keep their size.
    """
    height, width = pixels.shape[:2]
    if "albumentations" in evaluation:
        from vocseg.data.transforms import transform_as_described  # brings albumentations, and that torch

        return transform_as_described(pixels, evaluation["albumentations"])
    if "longest_side" in evaluation:
        scale = evaluation["longest_side"] / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        is_smaller = scale < 1
    elif "size" in evaluation:
        size = tuple(evaluation["size"])
        is_smaller = size[0] < height or size[1] < width
    else:
        return pixels
    if size == (height, width):
        return pixels
    interpolation = cv2.INTER_AREA if evaluation["area"] and is_smaller else evaluation["interpolation"]
    return cv2.resize(pixels, size[::-1], interpolation=interpolation)


def label_map(logits: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes one image's logits, float32 [C, h, w], bilinearly to ``size`` and takes the argmax: uint8 [H, W].

    Of equal values the lowest class is the label. It is :func:`vocseg.inference.label_map` in NumPy and OpenCV.
    """
    best, labels = _resized(logits[0], size), np.zeros(tuple(size), np.uint8)
    for label in range(1, len(logits)):  # one class at a time takes less memory
        scores = _resized(logits[label], size)
        labels[scores > best] = label
        np.maximum(best, scores, out=best)
    return labels


def probability_map(logits: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes one image's logits, float32 [C, h, w], bilinearly to ``size`` and takes the softmax: [C, H, W]."""
    resized = np.stack([_resized(of_class, size) for of_class in logits])
    exponentials = np.exp(resized - resized.max(0))
    return exponentials / exponentials.sum(0)


def _resized(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    if values.shape == tuple(size):
        return values.copy()
    return cv2.resize(values, (int(size[1]), int(size[0])), interpolation=cv2.INTER_LINEAR)
