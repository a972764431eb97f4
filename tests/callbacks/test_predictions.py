"""The files that predictions and test masks are written to; the command is tested in test_lightning_cli.py."""

import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.callbacks import PredictionWriter, TestMasks
from vocseg.data.datasets import PredictionDataset
from vocseg.data.labels import VOC_PALETTE
from vocseg.overlays import OVERLAY_COLOURS
from vocseg.saving import OwnedFolder, write_mask


def predict(folder, images, labels, given=None, **settings):
    """Writes predictions, as a trainer would, of the images at these paths; the writer."""
    data = SimpleNamespace(datasets={"predict": PredictionDataset(images, None)}, predict_path=given)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, ckpt_path=None)
    task = SimpleNamespace(class_names=["background", "bird", "cat"])
    writer = PredictionWriter(str(folder), **settings)
    writer.setup(trainer, task, "predict")
    batch = {"path": [str(path) for path in images], "unreadable": []}
    writer.write_on_batch_end(trainer, task, [labels] * len(images), None, batch, 0, 0)
    writer.on_predict_end(trainer, task)
    return writer


@pytest.mark.parametrize(
    ("left", "right", "names"), [(0, 0, ["background"]), (0, 2, ["cat"]), (2, 2, ["cat"]), (1, 2, ["bird", "cat"])]
)
def test_the_page_names_every_predicted_class(left, right, names, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(path)
    labels = torch.full((4, 6), left, dtype=torch.uint8)
    labels[:, 3:] = right
    predict(tmp_path / "out", [path], labels)
    page = (tmp_path / "out" / "index.html").read_text()
    card = page[page.index("<h2>photo.png</h2>") :]
    assert re.findall(r'</span>(\w+) <span class="share">', card) == names
    assert ("Only background was predicted" in page) == (names == ["background"])
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "photo.png")), labels.numpy())


def test_thumbnails_show_photograph_overlay_and_mask(tmp_path):
    path, labels = tmp_path / "photo.png", torch.zeros((720, 1200), dtype=torch.uint8)
    Image.fromarray(np.full((720, 1200, 3), 200, dtype=np.uint8)).save(path)
    labels[:, 600:] = 2
    predict(tmp_path / "out", [path], labels, overlays=False)
    small = {file.parent.name: Image.open(file) for file in (tmp_path / "out" / "thumbnails").rglob("*.jpg")}
    assert {name: picture.size for name, picture in small.items()} == dict.fromkeys(
        ("photograph", "overlay", "mask"), (480, 288)
    )
    pixels = {name: np.array(picture)[20, [100, 460]].astype(int) for name, picture in small.items()}
    assert np.abs(pixels["photograph"] - 200).max() < 4
    assert np.abs(pixels["mask"] - VOC_PALETTE[[0, 2]]).max() < 4
    assert np.abs(pixels["overlay"][0] - 200).max() < 4
    assert np.abs(pixels["overlay"][1] - (0.6 * 200 + 0.4 * OVERLAY_COLOURS[2])).max() < 4
    assert ">Overlay</a>" not in (tmp_path / "out" / "index.html").read_text()  # none to link to


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["a/x.png", "b/x.png", "b/c/y.png"], ["x", "x.png", "c/y"]),  # below a folder of another file
        (["b/c/y.png", "a/x.png", "b/x.png"], ["x", "x.png", "y"]),  # a file of the first folder that contains it
        ([".", "b"], ["a/x", "b/x", "b/c/y"]),
        (["b", "."], ["a/x", "x", "c/y"]),
        (["elsewhere"], ["x", "x.png", "y"]),
    ],
    ids=" ".join,
)
def test_names_are_relative_to_the_first_given_folder_that_contains_the_file(given, names, tmp_path):
    images = [tmp_path / "in" / name for name in ("a/x.png", "b/x.png", "b/c/y.png")]
    for path in images:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(path)
    labels = torch.zeros((4, 6), dtype=torch.uint8)
    writer = predict(tmp_path / "out", images, labels, [tmp_path / "in" / name for name in given], overlays=False)
    assert {Path(path): name for name, path in writer.written.items()} == dict(zip(images, names, strict=True))


def test_a_writer_keeps_no_pictures(tmp_path):
    rng, sizes = np.random.default_rng(0), []
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(path)
    writer = predict(tmp_path / "out", [path], torch.ones((60, 80), dtype=torch.uint8))
    sizes = [len(pickle.dumps(one)) for one in writer._files.shown]
    assert len(sizes) == 1
    assert sizes[0] < 400


@pytest.fixture
def trainer(tmp_path):
    """A trainer that tests one image, in a run folder with the mask of an earlier test."""
    write_mask(tmp_path / "test_masks" / "earlier.png", np.zeros((1, 2)), OwnedFolder(tmp_path, "test", "").write)
    samples = [SimpleNamespace(image=Path("a.jpg")), SimpleNamespace(image=Path("b.jpg"))]
    return SimpleNamespace(
        loggers=["any"],
        log_dir=str(tmp_path),
        is_global_zero=True,
        strategy=SimpleNamespace(barrier=lambda name: None),
        test_dataloaders=SimpleNamespace(dataset=SimpleNamespace(samples=samples)),
    )


@pytest.mark.parametrize(
    ("outputs", "written"),
    [
        ({"index": [1], "labels": [torch.tensor([[0, 2]])], "logits": [torch.zeros(3, 1, 2)]}, ["b.png"]),
        ({"loss": torch.tensor(0.0)}, []),  # of a user's own task
        (None, []),
    ],
)
def test_test_masks_replace_those_of_an_earlier_test(outputs, written, trainer, tmp_path):
    masks = TestMasks()
    masks.on_test_start(trainer, None)
    masks.on_test_batch_end(trainer, None, outputs, None, 0)
    assert [path.name for path in (tmp_path / "test_masks").iterdir()] == written
    if written:
        assert np.array(Image.open(tmp_path / "test_masks" / "b.png")).tolist() == [[0, 2]]


def test_a_fast_dev_run_writes_no_test_masks(trainer, tmp_path):
    trainer.fast_dev_run = True
    masks = TestMasks()
    masks.on_test_start(trainer, None)
    masks.on_test_batch_end(trainer, None, {"index": [1], "labels": [torch.zeros(1, 2)]}, None, 0)
    assert [path.name for path in (tmp_path / "test_masks").iterdir()] == ["earlier.png"]
