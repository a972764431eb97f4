"""Data that would train or score a wrong network without an error, as real files."""

import numpy as np
import pytest
from PIL import Image

from vocseg.data.checks import check_labels
from vocseg.data.files import Sample, check_samples
from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE
from vocseg.data.masks import MaskReader
from vocseg.data.voc import VOCDataModule
from vocseg.errors import VocsegError

TWO = ["background", "defect"]
THREE = ["background", "cat", "dog"]


def write_sample(folder, name, shares, mode="P"):
    """Writes an image, and a mask of 20 x 20 pixels with the given percent of each value."""
    values = np.repeat(list(shares), [4 * share for share in shares.values()]).astype(np.uint8).reshape(20, 20)
    mask = Image.fromarray(values)
    if mode == "P":
        mask.putpalette(VOC_PALETTE.tobytes())
    folder.mkdir(parents=True, exist_ok=True)
    sample = Sample(folder / f"{name}.jpg", folder / f"{name}.png")
    Image.new("RGB", (20, 20)).save(sample.image)
    mask.convert(mode).save(sample.mask)
    return sample


@pytest.fixture
def check(tmp_path):
    """Writes the masks of each role, reads them back and checks them; returns the notes as one text."""

    def call(class_names, mode="P", default_classes=False, settings=None, **roles):
        reader = MaskReader.from_settings(class_names, **(settings or {}))
        found = {
            role: check_samples(
                [write_sample(tmp_path / role, str(number), shares, mode) for number, shares in enumerate(masks)],
                reader,
            )
            for role, masks in roles.items()
        }
        return "\n".join(check_labels(found, reader, default_classes=default_classes))

    return call


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_masks_of_0_and_255_are_refused_with_the_setting_that_reads_them(check, mode):
    masks = {"train": [{0: 97, 255: 3}, {0: 100}], "val": [{0: 90, 255: 10}]}
    with pytest.raises(VocsegError, match=r"0 \(background\) and 255.*--data.labels \"\{255: defect\}\""):
        check(TWO, mode, **masks)
    assert check(TWO, mode, settings={"labels": {255: "defect"}}, **masks) == ""


def test_the_message_names_the_class_without_a_pixel_whichever_it_is(check):
    with pytest.raises(VocsegError, match=r"1 \(defect\) and 255.*\{255: background\}"):
        check(TWO, train=[{1: 10, 255: 90}])
    with pytest.raises(VocsegError, match=r"\{255: 'no'\}"):  # YAML reads a bare no as False
        check(["yes", "no"], train=[{0: 10, 255: 90}])


def test_masks_of_0_and_255_without_class_names_get_both_settings(check):
    with pytest.raises(VocsegError, match=r"--data.class_names \"\[background, object\]\" --data.labels"):
        check(VOC_CLASSES, default_classes=True, train=[{0: 90, 255: 10}], val=[{0: 90, 255: 10}])


def test_scoring_on_masks_of_0_and_255_is_refused_too(check):
    with pytest.raises(VocsegError, match=r"The test masks .*255: defect"):
        check(TWO, test=[{0: 90, 255: 10}])


def test_a_class_that_may_occur_as_void_is_named(check):
    notes = check(THREE, train=[{0: 60, 1: 20, 255: 20}])
    assert "no pixel of 1 of 3 classes: dog." in notes
    assert '--data.labels "{255: <class>}"' in notes
    assert "255" not in check(THREE, train=[{0: 75, 1: 20, 255: 5}])  # void borders, and a rare class


@pytest.mark.parametrize("labels", [(0, 1, 2), (1, 2, 3)])
def test_own_labels_with_vocs_default_classes_are_refused(check, labels):
    masks = {"train": [{labels[0]: 80, labels[1]: 20}], "val": [{labels[0]: 80, labels[2]: 20}]}
    with pytest.raises(VocsegError, match=f"{labels[0]} to {labels[2]}, .*--data.class_names.*{labels[2] + 1} names"):
        check(VOC_CLASSES, default_classes=True, **masks)
    assert "no pixel of 19 of 21 classes" in check(VOC_CLASSES, **masks)  # a list that the user named


def test_own_labels_with_gaps_are_refused_if_the_masks_are_many(check):
    masks = [{0: 80, 2: 20}, {0: 80, 7: 20}]
    assert check(VOC_CLASSES, default_classes=True, train=masks)
    with pytest.raises(VocsegError, match="only the labels 0, 2, 7, "):
        check(VOC_CLASSES, default_classes=True, train=masks * 10)


def test_a_small_part_of_voc_is_only_noted(check):
    train = [{0: 70, 15: 25, 255: 5}, {0: 60, 8: 35, 255: 5}, {0: 65, 15: 20, 9: 10, 255: 5}]
    notes = check(VOC_CLASSES, default_classes=True, train=train, val=[{0: 70, 3: 30}, {0: 60, 20: 40}])
    assert "17 of 21 classes" in notes
    assert "Other splits have pixels of bird, tvmonitor." in notes


def test_one_training_image_of_voc_is_only_noted(check):
    notes = check(
        VOC_CLASSES, default_classes=True, train=[{0: 70, 1: 30}], val=[{0: 60, label: 40} for label in (1, 15)]
    )
    assert "19 of 21 classes" in notes


def test_a_missing_rare_class_is_named(check):
    every = dict.fromkeys(range(20), 5)
    notes = check(VOC_CLASSES, default_classes=True, train=[every], val=[every])
    assert notes == ("The train masks have no pixel of 1 of 21 classes: tvmonitor. The network cannot learn these.")


@pytest.mark.parametrize("role", ["train", "val", "test"])
def test_a_split_without_a_pixel_that_counts_is_refused(check, role):
    masks = {"train": [{0: 40, 1: 30, 2: 30}], role: [{255: 100}]}
    with pytest.raises(VocsegError, match=f"The {role} masks are all void"):
        check(THREE, **masks)


def test_a_split_that_is_mostly_void_is_noted(check):
    share = {0: 10, 1: 10, 2: 10, 255: 70}
    notes = check(THREE, train=[share], val=[share])
    assert "The train and val masks are 70% void" in notes
    assert "read it as one" in notes
    assert check(THREE, train=[{0: 80, 1: 5, 2: 5, 255: 10}]) == ""


def test_training_masks_of_one_label_are_refused_and_others_noted(check):
    with pytest.raises(VocsegError, match=r"The train masks have only the label 0 \(background\): there is nothing"):
        check(THREE, train=[{0: 100}], val=[{0: 50, 1: 50}])
    with pytest.raises(VocsegError, match=r"255: <class>"):
        check(THREE, train=[{0: 90, 255: 10}])
    assert "The val masks have only the label 2 (dog)" in check(THREE, train=[{0: 40, 1: 30, 2: 30}], val=[{2: 100}])


def test_ignored_classes_are_void_on_purpose(check):
    ignored = {"settings": {"ignore_classes": ["cat"]}}
    notes = check(THREE, train=[{0: 20, 1: 60, 2: 20}], **ignored)
    assert notes == "The train masks are 60% void, which is ignored. Void are the pixels of cat, as set."
    assert check(THREE, train=[{0: 60, 1: 20, 2: 20}], **ignored) == ""


def test_scoring_needs_no_pixel_of_every_class(check):
    assert check(VOC_CLASSES, default_classes=True, test=[{0: 70, 1: 30}]) == ""


def write_tree(root, **splits):
    """Writes a VOC tree; a split is a list of the shares of each label."""
    tree = root / "VOCdevkit" / "VOC2007"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tree / folder).mkdir(parents=True)
    for split, masks in splits.items():
        names = [f"{split}_{number}" for number in range(len(masks))]
        (tree / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
        for name, shares in zip(names, masks, strict=True):
            write_sample(tree / "JPEGImages", name, shares)
            (tree / "JPEGImages" / f"{name}.png").rename(tree / "SegmentationClass" / f"{name}.png")
    return root


def test_setup_checks_the_splits_of_its_stage(tmp_path):
    own = {"train": [{0: 50, 1: 25, 2: 25}], "val": [{0: 100}], "test": [{255: 100}]}
    root = write_tree(tmp_path, **own)
    unnamed = VOCDataModule(str(root))
    for _ in range(2):  # not only the first time
        with pytest.raises(VocsegError, match=r"--data.class_names \"\[background, ...\]\", 3 names"):
            unnamed.setup("fit")
    named = VOCDataModule(str(root), class_names=THREE)
    named.setup("fit")
    with pytest.raises(VocsegError, match="The test masks are all void"):
        named.setup("test")


def test_fit_prints_notes_and_predict_needs_no_masks(tmp_path, vocseg, fit_flags, caplog):
    root = write_tree(tmp_path / "data", train=[{0: 60, 1: 40}] * 4, val=[{0: 60, 2: 40}])
    words = ["--data.root", root, "--data.class_names", f"[{','.join(THREE)}]", "--trainer.max_epochs", "1"]
    assert vocseg(*fit_flags, *words, "--name", "run", "--previews.images", "0")[0] == 0
    assert caplog.text.count("no pixel of 1 of 3 classes: dog.") == 1
    caplog.clear()
    for mask in (root / "VOCdevkit" / "VOC2007" / "SegmentationClass").iterdir():
        mask.unlink()
    status, _, _ = vocseg(
        *("predict", "--ckpt_path", tmp_path / "lightning_logs" / "run" / "version_0" / "checkpoints" / "best.ckpt"),
        *("--data.predict_path", root / "VOCdevkit" / "VOC2007" / "JPEGImages", "--trainer.accelerator", "cpu"),
    )
    assert (status, "no pixel" in caplog.text) == (0, False)
