import numpy as np
import pytest
from PIL import Image

from vocseg.data.files import check_samples, read_mask
from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE
from vocseg.data.lists import find_tree, read_split
from vocseg.data.masks import MaskReader
from vocseg.errors import VocsegError

VOC_MASKS = MaskReader(VOC_CLASSES)


@pytest.fixture
def tree(tmp_path):
    """A VOC tree with one valid sample, ``a``."""
    tree = tmp_path / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tree / folder).mkdir(parents=True)
    (tree / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    noise = np.random.default_rng(0).integers(0, 21, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tree / "JPEGImages" / "a.jpg")
    save_mask(tree / "SegmentationClass" / "a.png", noise[..., 0])
    return tree


def save_mask(path, labels):
    mask = Image.fromarray(labels)
    mask.putpalette(VOC_PALETTE.tobytes())
    mask.save(path)


def test_masks_are_read_as_labels_with_void_255(tree):
    labels = np.array([[0, 1, 20, 255]], np.uint8)
    save_mask(tree / "m.png", labels)
    assert np.array_equal(read_mask(tree / "m.png"), labels)


def test_palette_equals_vocs():
    assert VOC_PALETTE[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_find_tree_accepts_three_layouts(tree):
    assert find_tree(tree.parent.parent, "2007") == find_tree(tree.parent, "2007") == find_tree(tree, "2007") == tree
    assert find_tree(tree.parent.parent, "2012") is None


def test_images_can_be_png(tree):
    (tree / "JPEGImages" / "a.jpg").unlink()
    Image.new("RGB", (80, 60)).save(tree / "JPEGImages" / "a.png")
    assert len(check_samples(read_split(tree, "train"), VOC_MASKS, keep=True)) == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-500])


BROKEN_FILES = {
    "missing image": (lambda tree: (tree / "JPEGImages/a.jpg").unlink(), r"a\.jpg does not exist"),
    "missing mask": (lambda tree: (tree / "SegmentationClass/a.png").unlink(), r"a\.png does not exist"),
    "truncated image": (lambda tree: truncate(tree / "JPEGImages/a.jpg"), r"a\.jpg cannot be read"),
    "truncated mask": (lambda tree: truncate(tree / "SegmentationClass/a.png"), r"a\.png cannot be read"),
    "not an image": (lambda tree: (tree / "JPEGImages/a.jpg").write_text("hello"), r"a\.jpg is not an image"),
    "empty mask": (lambda tree: (tree / "SegmentationClass/a.png").write_bytes(b""), r"a\.png is not an image"),
    "different sizes": (
        lambda tree: save_mask(tree / "SegmentationClass/a.png", np.zeros((60, 81), np.uint8)),
        r"differ in size: .*a\.jpg is 80x60, .*a\.png is 81x60",
    ),
    "unexpected label": (
        lambda tree: save_mask(tree / "SegmentationClass/a.png", np.full((60, 80), 21, np.uint8)),
        r"a\.png has label 21",
    ),
    "colour mask": (
        lambda tree: Image.new("RGB", (80, 60), (1, 2, 3)).save(tree / "SegmentationClass/a.png"),
        r"a\.png has colours of no class: \[1, 2, 3\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files_are_named_in_the_error(tree, case):
    break_it, message = BROKEN_FILES[case]
    break_it(tree)
    with pytest.raises(VocsegError, match=message):
        check_samples(read_split(tree, "train"), VOC_MASKS, keep=False)


def test_damage_to_any_byte_of_mask_pixels_is_detected(tmp_path):
    """Some damaged bytes decode without an error; only the checksums of the PNG file reveal them."""
    labels = np.zeros((60, 80), np.uint8)
    labels[10:50, 20:60] = 5
    path = tmp_path / "a.png"
    save_mask(path, labels)
    intact = path.read_bytes()
    for position in range(intact.index(b"IDAT") + 4, intact.index(b"IEND") - 4):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 1]) + intact[position + 1 :])
        with pytest.raises(VocsegError, match=r"a\.png cannot be read"):
            read_mask(path)


def test_error_counts_further_broken_files(tree):
    (tree / "ImageSets/Segmentation/train.txt").write_text("".join(f"x{i}\n" for i in range(8)))
    with pytest.raises(VocsegError, match="3 more broken files"):
        check_samples(read_split(tree, "train"), VOC_MASKS, keep=False)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd"])
def test_lists_that_name_files_outside_the_tree_are_refused(tree, name):
    (tree / "ImageSets/Segmentation/train.txt").write_text(f"{name}\n")
    with pytest.raises(VocsegError, match="outside the tree"):
        read_split(tree, "train")


def test_empty_and_unknown_splits_raise(tree):
    (tree / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(VocsegError, match="is empty"):
        read_split(tree, "val")
    with pytest.raises(VocsegError, match="Did you mean 'train'"):
        read_split(tree, "trian")
