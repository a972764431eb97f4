"""Images of the same name in several folders: what is written of them keeps the list's or the folder's path."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vocseg.callbacks import PredictionWriter
from vocseg.errors import VocsegError
from vocseg.paper.tables import draw_masks
from vocseg.run_folder import RunFolder, read_run

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
NAMES = ["one/0004", "two/0004", "two/deep er/0004"]


@pytest.fixture(scope="module")
def root(voc_root, tmp_path_factory):
    """The small tree, with a split of three images that have one name."""
    root = shutil.copytree(voc_root, tmp_path_factory.mktemp("names") / "root")
    tree = root / "VOCdevkit" / "VOC2007"
    for number, name in enumerate(NAMES):
        for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
            target = tree / folder / f"{name}.{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tree / folder / f"test_{number:04}.{suffix}", target)
    (tree / "ImageSets" / "Segmentation" / "folders.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def tested(root, tmp_path_factory, fit_flags, succeed_in):
    """A run that was tested on these images."""
    folder = tmp_path_factory.mktemp("tested")
    run = folder / "lightning_logs" / "quickstart" / "version_0"
    fit = [*fit_flags, "--trainer.max_epochs", "1", "--previews.images", "0", "--data.root", root]
    test = ["test", "--ckpt_path", run / "checkpoints" / "best.ckpt", "--data.test_split", "folders", *QUIET]
    succeed_in(folder, fit, test)
    return RunFolder(run)


def test_test_masks_keep_the_lists_paths(tested, root):
    masks = tested.test_masks.rglob("*.png")
    assert sorted(path.relative_to(tested.test_masks).with_suffix("").as_posix() for path in masks) == NAMES
    for name in NAMES:
        with (
            Image.open(tested.test_masks / f"{name}.png") as mask,
            Image.open(root / "VOCdevkit" / "VOC2007" / "JPEGImages" / f"{name}.jpg") as image,
        ):
            assert mask.size == image.size
    assert [sample["name"] for sample in json.loads(tested.scores("test").read_text())["samples"]] == NAMES


def shown_in(page):
    """Names of the images that a report shows."""
    return re.findall(r'<div class="facts"><b>([^<]*)</b> mIoU', page.read_text())


def test_a_report_shows_each_of_them(tested, vocseg, tmp_path):
    status, _, err = vocseg("report", tested.path, "--to", tmp_path / "report")
    assert (status, err) == (0, "")
    assert sorted(shown_in(tmp_path / "report" / "report.html")) == NAMES


def test_a_report_shows_a_run_without_names(tested, vocseg, tmp_path):
    """As vocseg 0.1.0 wrote it: masks by the names of the images alone."""
    run = RunFolder(shutil.copytree(tested.path, tmp_path / "lightning_logs" / "old" / "version_0"))
    shutil.move(run.test_masks / "one" / "0004.png", run.test_masks / "0004.png")
    scores = json.loads(run.scores("test").read_text())
    scores["samples"] = [{name: sample[name] for name in ("image", "mask")} for sample in scores["samples"]]
    run.scores("test").write_text(json.dumps(scores))
    status, _, err = vocseg("report", "old")
    assert status == 1
    assert err.count("0004.png has not the size of") == 2  # all three images had one mask
    assert shown_in(run.report / "report.html") == ["0004"]


def test_a_report_reads_the_masks_as_the_test_did(tested, vocseg, tmp_path):
    """The first mask has colours, which the run's settings gave to classes; the others have labels."""
    run = RunFolder(shutil.copytree(tested.path, tmp_path / "lightning_logs" / "new" / "version_0"))
    scores = json.loads(run.scores("test").read_text())
    with Image.open(scores["samples"][0]["mask"]) as mask:
        colours = np.zeros((*mask.size[::-1], 3), dtype=np.uint8)
        colours[np.array(mask) > 0] = (1, 2, 3)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    scores["samples"][0]["mask"] = str(tmp_path / "colours.png")
    scores["data"]["colours"] = {"background": [0, 0, 0], "star": [1, 2, 3]}
    run.scores("test").write_text(json.dumps(scores))
    _, _, err = vocseg("report", "new")
    assert "colours.png" not in err
    assert "one/0004" in shown_in(run.report / "report.html")


def test_the_papers_figures_find_them_by_their_path(tested, root, tmp_path):
    draw_masks(read_run(tested), "title", root / "VOCdevkit" / "VOC2007", tmp_path / "masks.png")
    assert (tmp_path / "masks.png").is_file()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20, 30 + number, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
    return folder


def names_of(given, paths, tmp_path):
    data = SimpleNamespace(datasets={"predict": SimpleNamespace(paths=paths)}, predict_path=given)
    writer = PredictionWriter(str(tmp_path / "out"))
    writer.setup(SimpleNamespace(datamodule=data), SimpleNamespace(), "predict")
    return list(writer._files.names.values())


def test_predictions_keep_the_paths_below_the_given_folders(images, tmp_path, monkeypatch):
    paths = [images / f"{name}.jpg" for name in NAMES]
    (tmp_path / "list.txt").touch()
    (images / "one" / "list.txt").touch()
    assert names_of(str(images), paths, tmp_path) == NAMES
    assert names_of([images / "one", images / "two"], paths, tmp_path) == ["0004", "0004.jpg", "deep er/0004"]
    assert names_of(str(tmp_path / "list.txt"), paths, tmp_path) == [f"images/{name}" for name in NAMES]
    other = images / "one" / ".." / "two" / "0004.jpg"
    assert names_of(images / "one" / "list.txt", [paths[0], other], tmp_path) == ["0004", "0004.jpg"]
    assert names_of(paths[0], paths[:1], tmp_path) == ["0004"]
    assert names_of(f"{images}/**/*.jpg", paths, tmp_path) == ["0004", "0004.jpg", "0004_2"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", "images")
    assert names_of("~/$PLACE", paths, tmp_path) == NAMES
    monkeypatch.chdir(images)
    relative = [Path(f"{name}.jpg") for name in NAMES]
    assert names_of(".", relative, tmp_path) == NAMES
    assert names_of("one/list.txt", relative, tmp_path) == ["0004", *NAMES[1:]]  # the lines begin at this folder


def test_predictions_of_a_recursive_glob_are_all_there(images, tested, vocseg, tmp_path):
    words = ["--data.predict_path", f"{images}/**/*.jpg", "--predictions.output_dir", "out", *QUIET]
    status, out, err = vocseg("predict", "--ckpt_path", tested.best, *words)
    assert (status, err) == (0, "")
    assert "Masks written to out: 3" in out
    sizes = [Image.open(tmp_path / "out" / f"{name}.png").size for name in ("0004", "0004.jpg", "0004_2")]
    assert sizes == [(30, 20), (31, 20), (32, 20)]


def test_overlays_show_the_pixels_that_were_predicted(tested, vocseg, tmp_path):
    """Of deep images, and of images whose EXIF rotation is not applied."""
    (tmp_path / "images").mkdir()
    orientation = Image.Exif()
    orientation[274] = 6
    Image.fromarray(np.full((20, 30, 3), 128, dtype=np.uint8)).save(tmp_path / "images" / "a.jpg", exif=orientation)
    Image.fromarray(np.full((20, 30), 2048, dtype=np.uint16)).save(tmp_path / "images" / "b.png")
    words = ["--data.predict_path", "images", "--predictions.output_dir", "out", "--data.exif_rotation", "false"]
    status, _, err = vocseg("predict", "--ckpt_path", tested.best, *words, "--data.bit_depth", "12", *QUIET)
    assert (status, err) == (0, "")
    for name in ("a", "b"):
        with (
            Image.open(tmp_path / "out" / f"{name}.png") as mask,
            Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as overlay,
        ):
            assert mask.size == overlay.size == (30, 20)
            background = np.array(overlay)[np.array(mask) == 0]
            assert len(background) == 0 or abs(background.mean() - 128) < 10


@pytest.mark.parametrize("given", ["folder", "list"])
def test_the_command_keeps_the_paths_of_a_folder_and_of_a_list(given, images, tested, vocseg, tmp_path):
    (images / "list.txt").write_text("".join(f"{name}.jpg\n" for name in NAMES))
    path = [images, "--data.recursive", "true"] if given == "folder" else [images / "list.txt"]
    words = ["--data.predict_path", *path, "--predictions.output_dir", "out", *QUIET]
    status, _, err = vocseg("predict", "--ckpt_path", tested.best, *words, "--predictions.probabilities", "true")
    assert (status, "Traceback" in err) == (0, False)
    out = tmp_path / "out"
    for folder, suffix in (("", "png"), ("overlays", "jpg"), ("probabilities", "npz")):
        assert all((out / folder / f"{name}.{suffix}").is_file() for name in NAMES)
    for number, name in enumerate(NAMES):
        with Image.open(out / f"{name}.png") as mask:
            assert mask.size == (30 + number, 20)
    page = (out / "index.html").read_text()
    assert all(f"<h2>{name}.jpg</h2>" in page for name in NAMES)


def test_the_page_counts_one_image(images, tested, vocseg, tmp_path):
    words = ["--data.predict_path", images / "one", "--predictions.output_dir", "out", *QUIET]
    assert vocseg("predict", "--ckpt_path", tested.best, *words)[0] == 0
    assert "<h1>Predictions: 1 image</h1>" in (tmp_path / "out" / "index.html").read_text()


def test_the_command_keeps_no_predictions_in_memory(images, tested, vocseg, monkeypatch):
    kept = []

    def on_predict_end(writer, trainer, task):
        kept.append((trainer.predict_loop.return_predictions, trainer.predict_loop.predictions))

    monkeypatch.setattr(PredictionWriter, "on_predict_end", on_predict_end)
    words = ["--data.predict_path", images / "one", "--predictions.output_dir", "out", *QUIET]
    assert vocseg("predict", "--ckpt_path", tested.best, *words)[0] == 0
    assert kept == [(False, [])]


@pytest.mark.parametrize("data", [None, SimpleNamespace(), SimpleNamespace(datasets={})])
def test_data_without_known_images_is_refused(data, tmp_path):
    trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(VocsegError, match="needs a data module with images to predict"):
        PredictionWriter(str(tmp_path)).setup(trainer, SimpleNamespace(), "predict")
