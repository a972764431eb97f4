import os

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.synthetic import SYNTHETIC_CLASSES, draw_scene, write_tree
from vocseg.errors import VocsegError
from vocseg.metrics import confusion_matrix, scores_of

CLASSES = len(SYNTHETIC_CLASSES)


def scenes(split, count):
    return [draw_scene(0, split, index) for index in range(count)]


def test_scenes_are_deterministic_and_all_different():
    for first, second in zip(scenes("train", 3), scenes("train", 3), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    drawn = [image.tobytes() for split in ("train", "val", "test") for image, _ in scenes(split, 40)]
    assert len(set(drawn)) == len(drawn)
    assert draw_scene(1, "train", 0)[0].tobytes() not in drawn


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_class_and_void_occur(split):
    labels = np.unique(np.concatenate([mask.ravel() for _, mask in scenes(split, 14)]))
    assert labels.tolist() == [*range(CLASSES), 255]


def test_void_parts_unlike_labels():
    for _, mask in scenes("train", 20):
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert not ((first != second) & (first != VOID) & (second != VOID)).any()
        assert 0.005 < (mask == VOID).mean() < 0.15  # thin


def test_the_tree_is_jpeg_and_palette_png_in_voc_layout(tmp_path):
    tree = write_tree(tmp_path / "root", train=4, val=2, test=2) / "VOCdevkit" / "VOC2007"
    lists = {path.stem: path.read_text().split() for path in (tree / "ImageSets" / "Segmentation").iterdir()}
    assert {split: len(names) for split, names in lists.items()} == {"train": 4, "val": 2, "trainval": 6, "test": 2}
    for name in lists["trainval"] + lists["test"]:
        with Image.open(tree / "JPEGImages" / f"{name}.jpg") as photograph:
            assert (photograph.format, photograph.mode) == ("JPEG", "RGB")
            size = photograph.size
        with Image.open(tree / "SegmentationClass" / f"{name}.png") as mask:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "P", size)
            assert mask.getpalette() == VOC_PALETTE.ravel().tolist()
            assert set(np.unique(np.array(mask))) <= {*range(CLASSES), 255}


def test_a_second_write_does_nothing_and_a_strangers_folder_is_refused(tmp_path):
    root = write_tree(tmp_path / "root", train=2, val=1, test=1)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_tree(root, train=2, val=1, test=1)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(VocsegError, match="something other"):
        write_tree(root, train=3, val=1, test=1)
    (tmp_path / "mine").mkdir()
    with pytest.raises(VocsegError, match="mine"):
        write_tree(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "root"]  # no drafts left


def test_writers_at_the_same_moment_both_end_well(tmp_path, monkeypatch):
    """Another process moves its tree into place just before this one does."""
    root, rename = tmp_path / "root", os.rename

    def beaten(draft, target):
        monkeypatch.setattr(os, "rename", rename)
        write_tree(root, train=2, val=1, test=1)
        rename(draft, target)

    monkeypatch.setattr(os, "rename", beaten)
    assert write_tree(root, train=2, val=1, test=1) == root
    assert len(list(root.rglob("*.jpg"))) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.fixture(scope="module")
def drawn():
    """Scenes to learn from and scenes to score on, drawn once for all four cases."""
    return scenes("train", 160), scenes("val", 48)


@pytest.mark.parametrize(("bits", "balanced"), [(3, False), (3, True), (4, False), (4, True)])
def test_colour_does_not_give_the_class_away(bits, balanced, drawn):
    """The best label for each colour, learnt from many scenes, does no better on others than to know one class.

    One class in a colour of its own scores 0.2 to 0.27, so a limit above that would not see it.
    """
    counts = np.zeros((CLASSES, 8**bits))
    for image, mask in drawn[0]:
        valid = mask != 255
        np.add.at(counts, (mask[valid], colour_bins(image, bits)[valid]), 1)
    if balanced:
        counts /= counts.sum(1, keepdims=True)
    best = counts.argmax(0)
    total = 0
    for image, mask in drawn[1]:
        prediction = torch.from_numpy(best[colour_bins(image, bits)])
        total = total + confusion_matrix(prediction, torch.from_numpy(mask.astype(np.int64)), CLASSES)
    assert scores_of(total)["miou"] < 1 / CLASSES


def colour_bins(image, bits):
    channels = (image >> (8 - bits)).astype(np.int64)
    return (channels[..., 0] << (2 * bits)) | (channels[..., 1] << bits) | channels[..., 2]
