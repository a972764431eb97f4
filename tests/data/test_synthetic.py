import os

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.confusion import confusion_matrix, scores_of
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.synthetic import SYNTHETIC_CLASSES, render_sample, write_tree
from vocseg.errors import VocsegError

CLASSES = len(SYNTHETIC_CLASSES)


def render_samples(split, count):
    return [render_sample(0, split, index) for index in range(count)]


def test_images_are_deterministic_and_all_different():
    for first, second in zip(render_samples("train", 3), render_samples("train", 3), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    rendered = [image.tobytes() for split in ("train", "val", "test") for image, _ in render_samples(split, 40)]
    assert len(set(rendered)) == len(rendered)
    assert render_sample(1, "train", 0)[0].tobytes() not in rendered


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_and_void_occur_in_each_split(split):
    labels = np.unique(np.concatenate([mask.ravel() for _, mask in render_samples(split, 14)]))
    assert labels.tolist() == [*range(CLASSES), 255]


def test_void_separates_different_labels():
    for _, mask in render_samples("train", 20):
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert not ((first != second) & (first != VOID) & (second != VOID)).any()
        assert 0.005 < (mask == VOID).mean() < 0.15  # thin


def test_tree_has_jpeg_images_and_palette_png_masks_in_voc_layout(tmp_path):
    tree = write_tree(tmp_path / "root", train=4, val=2, test=2) / "VOCdevkit" / "VOC2007"
    lists = {path.stem: path.read_text().split() for path in (tree / "ImageSets" / "Segmentation").iterdir()}
    assert {split: len(names) for split, names in lists.items()} == {"train": 4, "val": 2, "trainval": 6, "test": 2}
    for name in lists["trainval"] + lists["test"]:
        with Image.open(tree / "JPEGImages" / f"{name}.jpg") as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            size = image.size
        with Image.open(tree / "SegmentationClass" / f"{name}.png") as mask:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "P", size)
            assert mask.getpalette() == VOC_PALETTE.ravel().tolist()
            assert set(np.unique(np.array(mask))) <= {*range(CLASSES), 255}


def test_existing_tree_is_kept_and_other_folders_are_refused(tmp_path):
    root = write_tree(tmp_path / "root", train=2, val=1, test=1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_tree(root, train=2, val=1, test=1)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(VocsegError, match="something other"):
        write_tree(root, train=3, val=1, test=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(VocsegError, match="mine"):
        write_tree(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "root"]  # no temporary folders left


def test_two_processes_can_write_the_same_tree(tmp_path, monkeypatch):
    """Another process renames its folder just before this one does."""
    root, rename = tmp_path / "root", os.rename

    def rename_second(temporary, target):
        monkeypatch.setattr(os, "rename", rename)
        write_tree(root, train=2, val=1, test=1)
        rename(temporary, target)

    monkeypatch.setattr(os, "rename", rename_second)
    assert write_tree(root, train=2, val=1, test=1) == root
    assert len(list(root.rglob("*.jpg"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.fixture(scope="module")
def splits():
    """Training and validation samples, rendered once for all four cases."""
    return render_samples("train", 160), render_samples("val", 48)


@pytest.mark.parametrize(("bits", "balanced"), [(3, False), (3, True), (4, False), (4, True)])
def test_colour_does_not_predict_the_class(bits, balanced, splits):
    """A classifier that looks up the most frequent label of each colour scores below one perfectly known class.

    Its mIoU is at least 0.2 if a single class has a colour of its own, and the limit lies below that.
    """
    counts = np.zeros((CLASSES, 8**bits))
    for image, mask in splits[0]:
        valid = mask != 255
        np.add.at(counts, (mask[valid], colour_bins(image, bits)[valid]), 1)
    if balanced:
        counts /= counts.sum(1, keepdims=True)
    best = counts.argmax(0)
    total = 0
    for image, mask in splits[1]:
        prediction, target = (torch.from_numpy(labels) for labels in (best[colour_bins(image, bits)], mask.astype(int)))
        total = total + confusion_matrix(prediction, target, CLASSES).numpy()
    assert scores_of(total)["miou"] < 1 / CLASSES


def colour_bins(image, bits):
    """One integer per pixel: the upper ``bits`` bits of each channel."""
    channels = (image >> (8 - bits)).astype(np.int64)
    return (channels[..., 0] << (2 * bits)) | (channels[..., 1] << bits) | channels[..., 2]
