"""What predictions are written as; what the command does with them is in test_run.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.callbacks import PredictionWriter
from vocseg.data.datasets import PredictionDataset


@pytest.mark.parametrize(
    ("left", "right", "caption"), [(0, 0, "background"), (0, 2, "cat"), (2, 2, "cat"), (1, 2, "bird, cat")]
)
def test_the_page_names_every_class_that_was_found(left, right, caption, tmp_path):
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
