"""The files that predictions and test masks are written to; the command is tested in test_lightning_cli.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.callbacks import PredictionWriter, TestMasks
from vocseg.data.datasets import PredictionDataset
from vocseg.saving import OwnedFolder, write_mask


@pytest.mark.parametrize(
    ("left", "right", "caption"), [(0, 0, "background"), (0, 2, "cat"), (2, 2, "cat"), (1, 2, "bird, cat")]
)
def test_the_page_names_every_predicted_class(left, right, caption, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(path)
    datasets = {"predict": PredictionDataset([path], None)}
    trainer = SimpleNamespace(datamodule=SimpleNamespace(datasets=datasets), is_global_zero=True)
    task = SimpleNamespace(class_names=["background", "bird", "cat"])
    labels = torch.full((4, 6), left, dtype=torch.uint8)
    labels[:, 3:] = right
    writer = PredictionWriter(str(tmp_path / "out"))
    writer.setup(trainer, task, "predict")
    writer.write_on_batch_end(trainer, task, [labels], None, {"path": [str(path)], "unreadable": []}, 0, 0)
    writer.on_predict_end(trainer, task)
    assert f">photo.png: {caption}<" in (tmp_path / "out" / "index.html").read_text()
    assert np.array_equal(np.array(Image.open(tmp_path / "out" / "photo.png")), labels.numpy())


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
