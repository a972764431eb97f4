"""``vocseg submit``: predictions in the form that VOC's evaluation server takes."""

import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from vocseg.checkpoints import checkpoint_settings
from vocseg.data.labels import VOC_CLASSES
from vocseg.data.lists import IMAGES, expand, find_tree, list_splits
from vocseg.data.text import read_lines
from vocseg.errors import ArgumentParser, VocsegError, nearest
from vocseg.initialization import checkpoint_of
from vocseg.run_folder import RunFolder
from vocseg.saving import OwnedFolder


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg submit ...``.

    Args:
        args: the words after ``vocseg submit``.

    Raises:
        VocsegError: a mistake in them, or in the tree, or a checkpoint of other classes than VOC's.
    """
    given, options = make_parser().parse_known_args(args)
    checkpoint = str(checkpoint_of(given.ckpt_path))
    data = checkpoint_settings(checkpoint)["data"].get("init_args", {})
    names = data.get("class_names")
    if names is not None and list(names) != list(VOC_CLASSES):
        raise VocsegError(
            f"VOC's server scores its own {len(VOC_CLASSES)} classes, but the checkpoint has {len(names)}: "
            f"{', '.join(map(str, names[:4]))}, ..."
        )
    year = given.year or str(data.get("year", "2012"))
    root = given.root or data.get("root")
    if root is None:
        raise VocsegError("vocseg submit needs the folder of the VOC tree: --data.root")
    images = listed_images(expand(root), year, given.split)
    run = RunFolder.of_checkpoint(checkpoint)
    folder = expand(given.to) if given.to else run.submission if run else Path("submission")
    inside = f"results/VOC{year}/Segmentation/{given.competition}_{given.split}_cls"
    _predict_and_pack(images, folder, inside, checkpoint, options)


def make_parser() -> ArgumentParser:
    """The options of ``vocseg submit``; those of ``vocseg predict`` may follow them."""
    parser = ArgumentParser(
        prog="vocseg submit",
        usage="vocseg submit --ckpt_path CKPT [--data.split test] [--data.root ROOT] [--data.year YEAR] [--to FOLDER] "
        "[options of vocseg predict]",
        description="Predicts the images of a list, which need no masks, and packs the masks for VOC's evaluation "
        "server: results/VOC2012/Segmentation/comp6_test_cls/<image>.png, and results.tgz of them.",
    )
    parser.add_argument(
        "--ckpt_path", required=True, help="the checkpoint, or a run's folder or name; trained on VOC's 21 classes"
    )
    parser.add_argument("--data.split", dest="split", default="test", help="the list of images (default: %(default)s)")
    parser.add_argument("--data.root", dest="root", help="folder of the VOC tree (default: the checkpoint's)")
    parser.add_argument("--data.year", dest="year", help="2007 or 2012 (default: the checkpoint's)")
    parser.add_argument(
        "--competition",
        default="comp6",
        choices=("comp5", "comp6"),
        help="comp5: trained on VOC's own data alone; comp6: also on other data, as pretrained weights are (default)",
    )
    parser.add_argument("--to", help="folder to write (default: submission in the run's folder)")
    return parser


def listed_images(root: Path, year: str, split: str) -> list[Path]:
    """Finds the images of a list, ``ImageSets/Segmentation/<split>.txt``; masks need not exist.

    Raises:
        VocsegError: there is no such tree, list or image.
    """
    tree = find_tree(root, year)
    if tree is None:
        raise VocsegError(f"There is no VOC{year} tree in {root}. Name its folder with --data.root.")
    path = tree / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        known = list_splits(tree)
        raise VocsegError(
            f"There is no list {split!r} in {path.parent}: it has {', '.join(known) or 'none'}.{nearest(split, known)}"
        )
    images = [tree / IMAGES / f"{line}.jpg" for _, line in read_lines(path)]
    if not images:
        raise VocsegError(f"{path} lists no image.")
    missing = [image for image in images if image.parent != tree / IMAGES or not image.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise VocsegError(f"The image {missing[0]} of {path} does not exist{more}.")
    return list(dict.fromkeys(images))


def _predict_and_pack(
    images: Sequence[Path], folder: Path, inside: str, ckpt_path: str, options: Sequence[str]
) -> None:
    """Writes the masks below ``folder / inside``, and ``results.tgz`` of them."""
    from vocseg.lightning_cli import run

    archive = folder / "results.tgz"
    owned = OwnedFolder(folder, "submit", "Name another folder: --to")
    owned.check([archive])
    with tempfile.TemporaryDirectory() as temporary:
        listed = Path(temporary) / "images.txt"
        listed.write_text("".join(f"{image.resolve()}\n" for image in images), encoding="utf-8")
        flags = ["--data.predict_path", str(listed), "--predictions.output_dir", str(folder / inside)]
        flags += ["--predictions.overlays", "false", "--predictions.contact_sheet", "false"]
        cli = run(["predict", "--ckpt_path", ckpt_path, *options, *flags])
    if not cli.trainer.is_global_zero:
        return
    masks = [folder / inside / f"{image.stem}.png" for image in images]
    for image, mask in zip(images, masks, strict=True):
        if not mask.is_file() or Image.open(mask).size != Image.open(image).size:
            raise VocsegError(f"{mask} is missing or has not the size of {image}: nothing was packed.")

    def pack(file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for mask in masks:
                tar.add(mask, f"{inside}/{mask.name}")

    owned.write(archive, pack)
    print(f"Archive  {archive}: {len(masks)} masks")
