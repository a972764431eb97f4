"""A small checkpoint, and the application that serves it."""

import io

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from vocseg import LinearHead, SegmentationTask, StridedEncoder, VOCDataModule
from vocseg.data.synthetic import SYNTHETIC_CLASSES


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, voc_root):
    """A network of random weights, which predicts several classes; its images are resized to 32x48."""
    torch.manual_seed(3)
    task = SegmentationTask(StridedEncoder(widths=(8, 16)), LinearHead, SYNTHETIC_CLASSES)
    data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=(32, 48), num_workers=0)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    trainer = L.Trainer(max_epochs=0, logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(task, data)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def task(checkpoint):
    return SegmentationTask.from_run(checkpoint)


@pytest.fixture(scope="session")
def pixels():
    """A photograph of smooth colours, RGB uint8 [60, 90, 3]."""
    small = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((90, 60), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def encoded():
    """Encodes pixels or a PIL image as a file's bytes."""

    def encode(image, kind="PNG", **settings):
        file = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **settings)
        return file.getvalue()

    return encode
