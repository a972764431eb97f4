import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE

QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, fit_flags, succeed_in):
    """A checkpoint of VOC's 21 classes."""
    folder = tmp_path_factory.mktemp("fit")
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--name", "voc"]
    succeed_in(folder, [*fit_flags, *few, "--data.class_names", f"[{','.join(VOC_CLASSES)}]"])
    return folder / "lightning_logs" / "voc" / "version_0" / "checkpoints" / "best.ckpt"


@pytest.fixture
def devkit(voc_root, tmp_path):
    """VOC2012's test devkit has images and a list, and no masks."""
    tree, source = tmp_path / "devkit" / "VOC2012", voc_root / "VOCdevkit" / "VOC2007"
    (tree / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tree / "JPEGImages").mkdir()
    names = ["test_0002", "test_0000", "test_0003"]
    for name in names:
        shutil.copy(source / "JPEGImages" / f"{name}.jpg", tree / "JPEGImages")
    (tree / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(names))
    return tree


def test_the_archive_has_every_listed_image_in_the_servers_layout(checkpoint, devkit, vocseg, tmp_path):
    flags = ["--ckpt_path", checkpoint, "--data.root", devkit.parent, "--data.year", "2012", "--to", "out", *QUIET]
    for more in ([], ["--inference.flip", "true"]):  # the second replaces the first
        status, out, err = vocseg("submit", *flags, *more)
        assert status == 0, err
    assert "results.tgz: 3 masks" in out
    inside = "results/VOC2012/Segmentation/comp6_test_cls"
    with tarfile.open(tmp_path / "out" / "results.tgz") as tar:
        assert sorted(tar.getnames()) == [f"{inside}/test_{number:04}.png" for number in (0, 2, 3)]
        tar.extractall(tmp_path / "unpacked", filter="data")
    for path in (tmp_path / "unpacked" / inside).iterdir():
        mask = Image.open(path)
        assert mask.mode == "P"
        assert mask.size == Image.open(devkit / "JPEGImages" / f"{path.stem}.jpg").size
        assert mask.getpalette()[: 3 * 21] == VOC_PALETTE.ravel().tolist()[: 3 * 21]
        assert np.array(mask).max() < 21
        assert path.read_bytes() == (tmp_path / "out" / inside / path.name).read_bytes()


def test_mistakes_get_one_line(checkpoint, devkit, vocseg, tmp_path):
    flags = ["submit", "--ckpt_path", checkpoint, "--data.root", devkit.parent, "--to", "out", "--data.year"]
    cases = {
        "Did you mean 'test'": [*flags, "2012", "--data.split", "tets"],
        "no VOC2007 tree": [*flags, "2007"],
        "--ckpt_path": ["submit"],
    }
    for message, args in cases.items():
        status, _, err = vocseg(*args)
        assert (status, err.count("\n")) == (1, 1)
        assert message in err
    (devkit / "JPEGImages" / "test_0002.jpg").unlink()
    assert "test_0002.jpg of" in vocseg(*flags, "2012")[2]
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_classes_is_refused(fit_flags, vocseg, tmp_path):
    assert vocseg(*fit_flags, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1)[0] == 0
    checkpoint = tmp_path / "lightning_logs" / "quickstart" / "version_0" / "checkpoints" / "best.ckpt"
    assert "scores its own 21 classes, but the checkpoint has 7" in vocseg("submit", "--ckpt_path", checkpoint)[2]
