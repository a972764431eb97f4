"""Folders of images and masks as tools and public data sets have them, through FolderDataModule's loaders."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vocseg import FolderDataModule, VocsegError

NAMES = ["background", "cat", "dog"]
SIZE = (12, 16)


def labels_of(number):
    labels = np.roll(np.arange(SIZE[0] * SIZE[1]) % len(NAMES), number).reshape(SIZE)
    labels[: number % 5] = 0
    return labels.astype(np.uint8)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def write_mask(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels_of(number)).save(path)


def write_split(root, images, masks, stems):
    """Writes one image and one mask per stem, into places such as ``images/train/{}.jpg``."""
    for stem in stems:
        write_image(root / images.format(stem))
        write_mask(root / masks.format(stem), int(stem.rpartition("x")[2]))


def build(root, **settings):
    defaults = {"num_workers": 0, "batch_size": 2, "image_size": 16, "class_names": NAMES}
    return FolderDataModule(root=str(root), **{**defaults, **settings})


def check(root, roles, **settings):
    """Checks that the loaders yield the samples of each role with their own masks."""
    data = build(root, **settings)
    data.setup("fit")
    data.setup("test")
    for role, stems in roles.items():
        samples = data.datasets[role].samples
        assert [f"x{sample.name.rpartition('x')[2]}" for sample in samples] == stems
        for sample in samples:
            number = int(sample.name.rpartition("x")[2])
            assert np.array_equal(data.mask_reader.read(sample.mask), labels_of(number))
    loaders = {"val": data.val_dataloader(), "test": data.test_dataloader()}
    for role, loader in loaders.items():
        masks = [mask.numpy() for batch in loader for mask in batch["original_mask"]]
        assert len(masks) == len(roles.get(role, masks))
    assert len(next(iter(data.train_dataloader()))["image"])
    return data


ROLES = {"train": ["x0", "x1", "x2"], "val": ["x3", "x4"], "test": ["x5"]}
LAYOUTS = {
    "images/train": ("images/{split}/{{}}.jpg", "masks/{split}/{{}}.png"),
    "train/images": ("{split}/images/{{}}.jpg", "{split}/masks/{{}}.png"),
    "train_images": ("{split}_images/{{}}.jpg", "{split}_masks/{{}}.png"),
    "train and train_masks": ("{split}/{{}}.jpg", "{split}_masks/{{}}.png"),
    "train and trainannot": ("{split}/{{}}.png", "{split}annot/{{}}.png"),
    "train and train_labels": ("{split}/{{}}.png", "{split}_labels/{{}}_L.png"),
    "beside each other": ("{split}/{{}}.jpg", "{split}/{{}}_mask.png"),
    "Images/Train": ("Images/{split:title}/{{}}.JPG", "Labels/{split:title}/{{}}.PNG"),
    "imgs and annotations": ("imgs/{split}/{{}}.jpeg", "annotations/{split}/{{}}.tif"),
    "JPEGImages and mask": ("JPEGImages/{split}/{{}}.bmp", "mask/{split}/{{}}.png"),
    "image and label": ("{split}/image/image_{{}}.png", "{split}/label/label_{{}}.png"),
    "repeated ending": ("images/{split}/{{}}.jpg", "masks/{split}/{{}}_segmentation.png"),
    "GIF masks": ("{split}/{{}}.jpg", "{split}_masks/{{}}_mask.gif"),
    "sub-folders": ("images/{split}/one/{{}}.jpg", "masks/{split}/one/{{}}.png"),
    "nested": ("archive/data set/images/{split}/{{}}.jpg", "archive/data set/masks/{split}/{{}}.png"),
}


class Split(str):
    """A split's name that a layout may ask for with a capital: ``{split:title}``."""

    def __format__(self, spec):
        return self.title() if spec == "title" else str(self)


@pytest.mark.parametrize(
    "words", [("train", "val", "test"), ("training", "validation", "testing"), ("train", "valid", "test")]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_a_folder_per_split(tmp_path, layout, words):
    for (_, stems), word in zip(ROLES.items(), words, strict=True):
        images, masks = (place.format(split=Split(word)) for place in LAYOUTS[layout])
        write_split(tmp_path, images, masks, stems)
    check(tmp_path, ROLES)


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images/{}.jpg", "masks/{}.png"), ("img/a/{}.jpg", "gt/a/{}.png"), ("{}.jpg", "{}_mask.png")],
    ids=["images and masks", "sub-folders", "beside each other"],
)
def test_undivided_folders_are_split_by_val_share(tmp_path, images, masks):
    stems = [f"x{number}" for number in range(10)]
    write_split(tmp_path, images, masks, stems)
    data = check(tmp_path, {}, val_share=0.3)
    parts = [[sample.name for sample in data.samples(role)] for role in ("train", "val", "test")]
    assert (len(parts[0]), len(parts[1])) == (7, 3)
    assert sorted(name.rpartition("/")[2] for name in parts[0] + parts[1]) == stems
    assert parts[2] == parts[1]
    again = FolderDataModule(**data.hparams)
    assert [sample.name for sample in again.samples("val")] == parts[1]
    with pytest.raises(VocsegError, match=r"no folders of train images.*--data\.val_share 0\.2"):
        build(tmp_path).samples("train")


def test_val_share_splits_the_training_folder_and_keeps_the_test_folder(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png", [f"x{number}" for number in range(10)])
    write_split(tmp_path, "images/test/{}.jpg", "masks/test/{}.png", ["x10"])
    data = check(tmp_path, {"test": ["x10"]}, val_share=0.2)
    assert (len(data.samples("train")), len(data.samples("val"))) == (8, 2)
    with pytest.raises(VocsegError, match="no folders of val images"):
        build(tmp_path).samples("val")
    write_split(tmp_path, "images/val/{}.jpg", "masks/val/{}.png", ["x11"])
    with pytest.raises(VocsegError, match="nothing to split"):
        build(tmp_path, val_share=0.2).samples("train")


def test_test_images_below_undivided_ones_are_not_trained_on(tmp_path):
    write_split(tmp_path, "images/{}.jpg", "masks/{}.png", ["x0", "x1", "x2", "x3"])
    write_split(tmp_path, "images/test/{}.jpg", "masks/test/{}.png", ["x4"])
    data = check(tmp_path, {"test": ["x4"]}, val_share=0.5)
    assert (len(data.samples("train")), len(data.samples("val"))) == (2, 2)


def test_validation_images_serve_as_test_images_if_there_are_none(tmp_path, caplog):
    for role in ("train", "val"):
        write_split(tmp_path, f"images/{role}/{{}}.jpg", f"masks/{role}/{{}}.png", ROLES[role])
    with caplog.at_level("INFO"):
        check(tmp_path, {"train": ROLES["train"], "val": ROLES["val"], "test": ROLES["val"]})
    assert "also the test images" in caplog.text


# --- Roboflow, "Semantic Segmentation Masks"


def write_roboflow(root, header="Pixel Value, Class", names=NAMES):
    for split, stems in (("train", ROLES["train"]), ("valid", ROLES["val"]), ("test", ROLES["test"])):
        full = [f"{stem}_jpg.rf.0a1b2c3d4e5f.x{stem[1:]}" for stem in stems]  # Roboflow's names have dots
        write_split(root, f"{split}/{{}}.jpg", f"{split}/{{}}_mask.png", full)
        lines = [header, *(f"{value}, {name}" for value, name in enumerate(names))]
        (root / split / "_classes.csv").write_text("\n".join(lines) + "\n")
    (root / "README.roboflow.txt").write_text("...")


def test_roboflow_export_needs_no_option(tmp_path):
    write_roboflow(tmp_path)
    data = build(tmp_path, class_names=None)
    assert data.class_names == NAMES
    data.setup("fit")
    assert [len(data.datasets[role]) for role in ("train", "val")] == [3, 2]
    assert all(sample.mask.name == f"{sample.image.stem}_mask.png" for sample in data.samples("train"))


def test_roboflow_splits_of_different_classes_are_refused(tmp_path):
    write_roboflow(tmp_path)
    (tmp_path / "valid" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, dog\n2, cat\n")
    with pytest.raises(VocsegError, match=r"different classes.*valid"):
        build(tmp_path, class_names=None)


def test_other_files_beside_images_and_masks_are_left_out(tmp_path):
    write_roboflow(tmp_path)
    for name in ("preview.gif", "notes.txt", ".hidden.jpg", "x.json"):
        (tmp_path / "train" / name).write_bytes(b"")
    assert len(build(tmp_path).samples("train")) == 3


def test_pixel_values_with_gaps_are_read_as_the_table_says(tmp_path):
    write_roboflow(tmp_path)
    for split in ("train", "valid", "test"):
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n127, cat\n255, dog\n")
    for mask in tmp_path.rglob("*_mask.png"):
        Image.fromarray(np.array([0, 127, 255], np.uint8)[np.array(Image.open(mask))]).save(mask)
    data = build(tmp_path, class_names=None)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert [
        np.array_equal(mask, labels_of(number)) for mask, number in zip(batch["original_mask"], (3, 4), strict=True)
    ]
    assert sorted(batch["original_mask"][0].unique().tolist()) == [0, 1, 2]


def test_names_of_samples_are_those_of_the_images(tmp_path):
    for number in range(3):
        write_image(tmp_path / "images" / "train" / "one" / f"image_{number}.png")
        write_mask(tmp_path / "masks" / "train" / "one" / f"label_{number}.png", number)
    samples = build(tmp_path).samples("train")
    assert [sample.name for sample in samples] == ["one/image_0", "one/image_1", "one/image_2"]
    assert [sample.mask.name for sample in samples] == ["label_0.png", "label_1.png", "label_2.png"]


def test_words_for_masks_in_image_names_are_kept(tmp_path):
    for role in ROLES:
        for stem in ("face_mask", "gt_car"):
            write_image(tmp_path / role / f"{stem}.jpg")
            write_mask(tmp_path / role / f"{stem}_mask.png", 1)
    assert [sample.name for sample in build(tmp_path).samples("val")] == ["face_mask", "gt_car"]


# --- names of classes


@pytest.mark.parametrize("place", ["", "images", "masks", "masks/train"])
@pytest.mark.parametrize("file", ["classes.txt", "class_names.txt"])
def test_class_names_come_from_a_file(tmp_path, place, file):
    for role in ("train", "val"):
        write_split(tmp_path, f"images/{role}/{{}}.jpg", f"masks/{role}/{{}}.png", ROLES[role])
    (tmp_path / place / file).write_text("\n".join(NAMES))
    assert build(tmp_path, class_names=None).class_names == NAMES


def test_colours_come_from_a_file(tmp_path):
    colours = np.array([(0, 0, 0), (64, 128, 64), (192, 0, 128)], np.uint8)
    for role in ("train", "val"):
        write_split(tmp_path, f"{role}/{{}}.png", f"{role}_labels/{{}}_L.png", ROLES[role])
        for mask in (tmp_path / f"{role}_labels").iterdir():
            Image.fromarray(colours[np.array(Image.open(mask))]).save(mask)
    rows = [f"{name},{','.join(map(str, colour))}" for name, colour in zip(NAMES, colours, strict=True)]
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\n" + "\n".join(rows))
    check(tmp_path, {"train": ROLES["train"], "val": ROLES["val"]}, class_names=None)


def test_missing_class_names_are_explained(tmp_path):
    write_split(tmp_path, "images/{}.jpg", "masks/{}.png", ["x0"])
    with pytest.raises(VocsegError, match=r"--data\.class_names.*classes\.txt"):
        build(tmp_path, class_names=None)
    with pytest.raises(VocsegError, match="does not exist"):
        build(tmp_path / "none", class_names=None)


# --- problems


def test_images_without_mask_and_masks_without_image_are_counted_and_named(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png", ["x0"])
    for number in range(7):
        write_image(tmp_path / "images" / "train" / f"lonely{number}.jpg")
    write_mask(tmp_path / "masks" / "train" / "other.png", 0)
    with pytest.raises(VocsegError) as error:
        build(tmp_path).samples("train")
    assert "7 images without a mask (lonely0.jpg" in str(error.value)
    assert "and 2 more)" in str(error.value)
    assert "1 masks without an image (other.png)" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_two_masks_of_one_image_are_refused(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png", ["x0"])
    write_mask(tmp_path / "masks" / "train" / "x0.tif", 0)
    with pytest.raises(VocsegError, match=r"x0\.png and x0\.tif"):
        build(tmp_path).samples("train")


def test_two_folders_of_masks_need_a_choice(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png", ["x0"])
    write_split(tmp_path, "images/train/{}.jpg", "labels/train/{}.png", ["x0"])
    with pytest.raises(VocsegError, match=r"labels/train.*masks/train.*--data\.mask_folder"):
        build(tmp_path)
    assert build(tmp_path, mask_folder="labels").samples("train")[0].mask.parts[-3] == "labels"


def test_text_labels_beside_masks_are_no_masks(tmp_path):
    write_split(tmp_path, "images/train/{}.jpg", "masks/train/{}.png", ["x0"])
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "x0.txt").write_text("0 0.1 0.1 0.2 0.2 0.3 0.3")
    assert build(tmp_path).samples("train")[0].mask.parts[-3] == "masks"


def test_folders_of_other_names_are_named_by_settings(tmp_path):
    write_split(tmp_path, "rgb frames/train/{}.jpg", "ground_truth/train/{}.png", ["x0", "x1"])
    with pytest.raises(VocsegError, match=r"holds ground_truth, rgb frames.*--data\.image_folder"):
        build(tmp_path).samples("train")
    data = build(tmp_path, image_folder="rgb frames", mask_folder="ground_truth", val_share=0.5)
    assert len(data.samples("train")) == 1
    assert data.hparams["image_folder"] == "rgb frames"


def test_unknown_places_are_explained(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(VocsegError, match=r"It holds stuff\. Looked for .*images/train.*--data VOCDataModule"):
        build(tmp_path).samples("train")
    with pytest.raises(VocsegError, match="does not exist"):
        build(tmp_path / "none").samples("train")


def test_two_data_sets_in_one_folder_are_refused(tmp_path):
    for name in ("mine", "yours"):
        write_split(tmp_path / name, "images/{}.jpg", "masks/{}.png", ["x0"])
    with pytest.raises(VocsegError, match=r"mine, .*yours"):
        build(tmp_path)


def test_command_line_takes_folders(tmp_path):
    """In a process of its own: this one has imported the class already."""
    for role, stems in ROLES.items():
        write_split(tmp_path / "own", f"images/{role}/{{}}.jpg", f"masks/{role}/{{}}.png", stems)
    (tmp_path / "own" / "classes.txt").write_text("\n".join(NAMES))
    words = [
        "fit",
        "--config",
        "quickstart",
        "--data",
        "FolderDataModule",
        "--data.root",
        "own",
        "--data.val_share",
        "2",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "vocseg", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("vocseg: --data.val_share must lie between 0 and 1")
