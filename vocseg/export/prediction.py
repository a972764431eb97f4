"""``vocseg predict --model FILE``: predictions of an exported network, without Lightning in the process."""

import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from vocseg.data.images import ImageReader
from vocseg.data.lists import expand, find_images
from vocseg.errors import ArgumentParser, VocsegError, check_choice
from vocseg.export.model import ExportedModel, label_map, probability_map
from vocseg.prediction_files import PredictionFiles


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg predict --model FILE ...``; the options are those of ``vocseg predict --ckpt_path``.

    Args:
        args: the words after ``vocseg predict``.

    Raises:
        VocsegError: a mistake in them, the file is no exported model, or an image could not be predicted.
    """
    parser = ArgumentParser(
        prog="vocseg predict --model FILE",
        description="Applies a network that vocseg export wrote to photographs, and writes what vocseg predict "
        "--ckpt_path does: masks, overlays and a page. It imports no Lightning, and for an ONNX file no torch.",
    )
    parser.add_argument("--model", required=True, help="the exported file")
    parser.add_argument(
        "--data.predict_path",
        dest="images",
        nargs="+",
        action="extend",
        help="images, folders, glob patterns, or text files",
    )
    parser.add_argument("--data.recursive", dest="recursive", default="false", help="true: also folders below a folder")
    parser.add_argument("--data.bit_depth", dest="bit_depth", type=int, help="bits that deep images really use")
    parser.add_argument("--data.exif_rotation", dest="exif_rotation", help="false: read images as they are stored")
    parser.add_argument(
        "--to", "--predictions.output_dir", dest="to", help="folder to write (default: predictions beside the file)"
    )
    parser.add_argument("--predictions.overlays", dest="overlays", default="true", help="false: no overlays")
    parser.add_argument("--predictions.probabilities", dest="probabilities", default="false", help="true: write them")
    parser.add_argument("--predictions.contact_sheet", dest="contact_sheet", default="true", help="false: no page")
    parser.add_argument("--threads", type=int, help="threads that compute (default: one per core)")
    given = parser.parse_args(args)
    flags = {
        name: _is_true(name, getattr(given, name))
        for name in ("recursive", "overlays", "probabilities", "contact_sheet")
    }
    model = ExportedModel(expand(given.model), given.threads)
    rotation = model.image_reader.exif_rotation
    if given.exif_rotation is not None:
        rotation = _is_true("exif_rotation", given.exif_rotation)
    model.image_reader = ImageReader(
        model.image_reader.bit_depth if given.bit_depth is None else given.bit_depth, rotation
    )
    folder = expand(given.to) if given.to else model.path.parent / "predictions"
    images = [path for word in given.images or [] for path in _listed(word)]
    predict(model, images, folder, **flags)


def predict(
    model: ExportedModel,
    images: Sequence[str | Path],
    folder: Path,
    *,
    recursive: bool = False,
    overlays: bool = True,
    probabilities: bool = False,
    contact_sheet: bool = True,
) -> PredictionFiles:
    """Predicts images, and prints where the masks are.

    Args:
        model: the exported network.
        images: paths, folders, glob patterns and text files that list images.
        folder: to write.
        recursive: also search the folders below a folder.
        overlays: write overlays.
        probabilities: write probabilities.
        contact_sheet: write pages.

    Returns:
        What was written.

    Raises:
        VocsegError: there are no images, a file is in the way, or some could not be predicted; the others are.
    """
    paths = find_images(list(images), recursive)
    files = PredictionFiles(
        folder,
        paths,
        list(images),
        overlays=overlays,
        probabilities=probabilities,
        contact_sheet=contact_sheet,
        reader=model.image_reader,
    )
    files.owned.check(files.paths, paths)
    problems = []
    for path in paths:
        try:
            logits, size = model.logits(path)
        except VocsegError as error:
            problems.append(str(error))
            continue
        scores = probability_map(logits, size) if probabilities else None
        files.write(str(path), label_map(logits, size), model.class_names, scores)
    if contact_sheet and files.shown:
        files.write_pages(files.shown, model.class_names, model.metadata.get("checkpoint", ""), problems)
    print(f"Masks written to {folder}: {len(files.written)}")
    if contact_sheet and files.written:
        print(f"All of them  {folder}/index.html")
    sys.stdout.flush()
    if problems:
        raise VocsegError("\n".join([f"Not predicted: {len(problems)}", *problems]))
    return files


def _listed(word: str) -> list[str]:
    """What ``[a.jpg, b.jpg]`` lists, as the options of ``vocseg predict --ckpt_path`` do; another word is a path."""
    if not (word.startswith("[") and word.endswith("]")) or Path(word).exists():
        return [word]
    try:
        return [str(path) for path in yaml.safe_load(word)]
    except yaml.YAMLError as error:
        raise VocsegError(f"--data.predict_path: {word!r} is no list, such as [a.jpg, b.jpg].") from error


def _is_true(name: str, word: str) -> bool:
    check_choice(name, word.lower(), ("true", "false"))
    return word.lower() == "true"
