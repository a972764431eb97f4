"""Exports of annotation tools and copies of VOC in VOC's layout, through VOCDataModule's loaders."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from vocseg import VOCDataModule, VocsegError
from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE

SIZE = (12, 16)
rng = np.random.default_rng(0)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def labels_of(number, classes=3):
    """Labels that differ from mask to mask, with every class."""
    labels = np.roll(np.arange(SIZE[0] * SIZE[1]) % classes, number).reshape(SIZE)
    labels[: number % 5] = 0
    return labels.astype(np.uint8)


def write_palette_mask(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels)
    mask.putpalette(VOC_PALETTE.tobytes())
    mask.save(path)


def write_list(tree, split, names, end="\n"):
    path = tree / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(name + end for name in names), newline="")


def build(root, **settings):
    return VOCDataModule(root=str(root), **{"num_workers": 0, "batch_size": 2, "image_size": 16, **settings})


def masks_of(data, stage="validate"):
    """The masks that a loader yields, by the names of the samples."""
    data.setup(stage)
    role = {"validate": "val", "test": "test"}[stage]
    loader = data.val_dataloader() if stage == "validate" else data.test_dataloader()
    masks = [mask.numpy() for batch in loader for mask in batch["original_mask"]]
    return {sample.name: mask for sample, mask in zip(data.datasets[role].samples, masks, strict=True)}


def names_of(data, role):
    return [sample.name for sample in data.used_samples(role)]


# --- CVAT, "Segmentation mask 1.1"

CVAT_COLOURS = np.array([(0, 0, 0), (250, 50, 83), (61, 245, 61)], np.uint8)


def write_cvat(root, count=10, labelmap=("background", "handle", "human"), mode="RGB"):
    """An export with images: RGB masks in the colours of labelmap.txt, and the list default.txt without endings."""
    root.mkdir(exist_ok=True)
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(labelmap, CVAT_COLOURS, strict=True)]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    names = [f"frame_{number:06d}" for number in range(count)]
    for number, name in enumerate(names):
        write_image(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(CVAT_COLOURS[labels_of(number)])
        for folder in ("SegmentationClass", "SegmentationObject"):
            (root / folder).mkdir(exist_ok=True)
            written = mask.quantize(3) if mode == "P" else mask.convert(mode)
            written.save(root / folder / f"{name}.png")
    write_list(root, "default", names)
    return names


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_cvat_export_needs_no_option_for_classes_and_colours(tmp_path, mode):
    names = write_cvat(tmp_path / "task", mode=mode)
    data = build(tmp_path, val_share=0.3)
    assert data.class_names == ["background", "handle", "human"]
    masks = masks_of(data)
    assert len(masks) == 3
    for name, mask in masks.items():
        assert np.array_equal(mask, labels_of(names.index(name)))
    data.setup("fit")
    assert len(data.datasets["train"]) == 7
    assert not has_common_names(data)


def has_common_names(data):
    return bool(set(names_of(data, "train")) & set(names_of(data, "val")))


def test_cvat_colours_stay_with_their_classes_under_other_names_and_orders(tmp_path):
    names = write_cvat(tmp_path)
    data = build(tmp_path, class_names=["human", "background", "handle"], val_share=0.3)
    for name, mask in masks_of(data).items():
        assert np.array_equal(mask, np.array([1, 2, 0])[labels_of(names.index(name))])
    with pytest.raises(VocsegError, match="does not fit"):
        build(tmp_path, class_names=["background", "handle"])


def test_cvat_hyperparameters_read_the_masks_without_labelmap(tmp_path):
    names = write_cvat(tmp_path)
    hparams = dict(build(tmp_path, val_share=0.3).hparams)
    (tmp_path / "labelmap.txt").unlink()
    for name, mask in masks_of(VOCDataModule(**{**hparams, "num_workers": 0})).items():
        assert np.array_equal(mask, labels_of(names.index(name)))


def test_cvat_subsets_are_lists_of_their_own(tmp_path):
    names = write_cvat(tmp_path)
    write_list(tmp_path, "Train", names[:6])
    write_list(tmp_path, "Validation", names[6:])
    data = build(tmp_path, train_split="Train", val_split="Validation")
    assert (names_of(data, "train"), names_of(data, "val")) == (names[:6], names[6:])
    with pytest.raises(VocsegError, match=r"Train.*--data\.train_split"):
        build(tmp_path, val_share=0.5).samples("train")


def test_one_list_without_val_share_is_explained(tmp_path):
    write_cvat(tmp_path)
    for role in ("train", "val", "test"):
        with pytest.raises(VocsegError, match=r"it has default\. .*--data\.val_share 0\.2"):
            build(tmp_path).samples(role)


def test_export_without_images_is_explained(tmp_path):
    write_cvat(tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "elsewhere")
    with pytest.raises(VocsegError, match=r"no folder JPEGImages.*Save images"):
        build(tmp_path, val_share=0.2).samples("train")


# --- labelme2voc


def write_labelme(root, masks="SegmentationClassPNG", ignore=True):
    """What labelme2voc.py writes: palette PNG masks, NumPy arrays, pictures, and no lists."""
    names = [f"2011_{number:06d}" for number in range(10)]
    for number, name in enumerate(names):
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_image(root / "SegmentationClassVisualization" / f"{name}.jpg")
        labels = labels_of(number)
        labels[-1, -1] = 255
        write_palette_mask(root / masks / f"{name}.png", labels)
        arrays = root / ("SegmentationClass" if masks != "SegmentationClass" else "SegmentationClassNpy")
        arrays.mkdir(exist_ok=True)
        np.save(arrays / f"{name}.npy", labels.astype(np.int32))
    lines = ["__ignore__"] * ignore + ["_background_", "aeroplane", "no"]
    (root / "class_names.txt").write_text("\n".join(lines))
    return names


@pytest.mark.parametrize("masks", ["SegmentationClass", "SegmentationClassPNG"])
@pytest.mark.parametrize("ignore", [False, True])
def test_labelme_export_is_read(tmp_path, masks, ignore):
    names = write_labelme(tmp_path, masks, ignore)
    data = build(tmp_path, val_share=0.2)
    assert data.class_names == ["_background_", "aeroplane", "no"]
    found = masks_of(data)
    assert len(found) == 2
    for name, mask in found.items():
        expected = labels_of(names.index(name))
        expected[-1, -1] = 255
        assert np.array_equal(mask, expected)


def test_no_list_without_val_share_is_explained(tmp_path):
    write_labelme(tmp_path)
    with pytest.raises(VocsegError, match=r"it has no lists\. .*--data\.val_share 0\.2"):
        build(tmp_path).samples("train")


def test_images_without_masks_and_masks_without_images_are_named(tmp_path):
    names = write_labelme(tmp_path)
    for name in names[:7]:
        (tmp_path / "SegmentationClassPNG" / f"{name}.png").unlink()
    (tmp_path / "JPEGImages" / f"{names[8]}.jpg").unlink()
    with pytest.raises(VocsegError) as error:
        build(tmp_path, val_share=0.2).samples("train")
    assert f"7 images without a mask ({', '.join(f'{name}.jpg' for name in names[:5])} and 2 more)" in str(error.value)
    assert f"1 masks without an image ({names[8]}.png)" in str(error.value)
    assert "Rename" in str(error.value)


# --- shares


def test_shares_do_not_depend_on_the_runs_seed_and_are_in_the_hyperparameters(tmp_path):
    write_labelme(tmp_path)
    data = build(tmp_path, val_share=0.3, seed=1)
    assert names_of(data, "val") == names_of(build(tmp_path, val_share=0.3, seed=2), "val")
    assert names_of(data, "val") != names_of(build(tmp_path, val_share=0.3, split_seed=5), "val")
    assert names_of(VOCDataModule(**data.hparams), "train") == names_of(data, "train")
    assert data.hparams["val_share"] == 0.3


def test_train_images_are_nested_and_leave_validation_alone(tmp_path):
    write_labelme(tmp_path)
    all_of, five, three = (build(tmp_path, val_share=0.3, train_images=count) for count in (None, 5, 3))
    assert set(names_of(three, "train")) < set(names_of(five, "train")) < set(names_of(all_of, "train"))
    assert names_of(three, "val") == names_of(all_of, "val")
    three.setup("fit")
    assert (len(three.datasets["train"]), len(three.datasets["val"])) == (3, 3)
    assert three.hparams["train_images"] == 3
    with pytest.raises(VocsegError, match="train_images is 8, but the training list has 7"):
        build(tmp_path, val_share=0.3, train_images=8).setup("fit")


def test_test_images_are_a_list_or_the_held_out_ones(tmp_path, caplog):
    names = write_labelme(tmp_path)
    data = build(tmp_path, val_share=0.3)
    with caplog.at_level("INFO"):
        assert names_of(data, "test") == names_of(data, "val")
    assert "also the test images" in caplog.text
    write_list(tmp_path, "train", names[:8])
    write_list(tmp_path, "test", names[8:])
    assert names_of(data, "test") == names[8:]
    assert sorted(names_of(data, "train") + names_of(data, "val")) == names[:8]


@pytest.mark.parametrize("share", [0, 1, 20, -0.1])
def test_shares_outside_0_to_1_are_refused(tmp_path, share):
    with pytest.raises(VocsegError, match="between 0 and 1"):
        build(tmp_path, val_share=share)


def test_a_share_of_divided_data_is_refused(tmp_path):
    names = write_labelme(tmp_path)
    for split in ("train", "val"):
        write_list(tmp_path, split, names)
    with pytest.raises(VocsegError, match="nothing to split"):
        build(tmp_path, val_share=0.2).samples("val")


# --- copies of VOC


def write_voc(tree, train=("2007_000001", "2007_000002"), val=("2007_000003",)):
    for number, name in enumerate((*train, *val)):
        write_image(tree / "JPEGImages" / f"{name}.jpg")
        write_palette_mask(tree / "SegmentationClass" / f"{name}.png", labels_of(number, 21))
    write_list(tree, "train", train)
    write_list(tree, "val", val)


@pytest.mark.parametrize("place", ["VOC2012_train_val/VOC2012_train_val", "voc/VOCdevkit/VOC2012"])
def test_kaggle_copies_are_found_and_nothing_is_written(tmp_path, place):
    write_voc(tmp_path / place, val=[f"2007_{n:06d}" for n in range(3, 9)])
    before = sorted(tmp_path.rglob("*"))
    data = build(tmp_path, year="2012")
    data.setup("fit")
    assert data.class_names == list(VOC_CLASSES)
    assert len(data.datasets["train"]) == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_tree_of_another_year_and_missing_folders_are_explained(tmp_path, monkeypatch):
    write_voc(tmp_path / "voc" / "VOC2012_train_val")
    with pytest.raises(VocsegError, match=r"tree of VOC2012: --data\.year 2012"):
        build(tmp_path).samples("train")
    with pytest.raises(VocsegError, match="none does not exist"):
        build(tmp_path / "none").samples("train")
    (tmp_path / "own" / "images").mkdir(parents=True)
    with pytest.raises(VocsegError, match="--data FolderDataModule"):
        build(tmp_path / "own").samples("train")


def test_root_may_have_home_variables_and_symlinks(tmp_path, monkeypatch):
    write_voc(tmp_path / "disk" / "VOC2007")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "voc").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for root in ("~/voc", "$HOME/voc", "${HOME}/voc/VOC2007"):
        assert names_of(build(root), "val") == ["2007_000003"]


# --- SBD


def write_sbd(folder, names):
    """The folder as SBDataset unpacks it: img, cls with MATLAB files, train.txt and val.txt."""
    for number, (name, label) in enumerate(names.items()):
        write_image(folder / "img" / f"{name}.jpg")
        (folder / "cls").mkdir(exist_ok=True)
        struct = {
            "Segmentation": np.full(SIZE, label, np.uint8),
            "Boundaries": np.zeros((20, 1)),
            "CategoriesPresent": 1,
        }
        scipy.io.savemat(folder / "cls" / f"{name}.mat", {"GTcls": struct})
        with (folder / ("val.txt" if number % 2 else "train.txt")).open("a") as lines:
            lines.write(f"{name}\n")


@pytest.fixture
def sbd_root(tmp_path):
    """VOC2012 with 2 train and 1 val images; SBD with 5 images: one of each, two new, one that VOC does not have."""
    tree = tmp_path / "VOCdevkit" / "VOC2012"
    write_voc(tree)
    for name in ("2008_000001", "2008_000002"):
        write_image(tree / "JPEGImages" / f"{name}.jpg")
    sbd = {"2007_000001": 9, "2008_000001": 5, "2007_000003": 9, "2008_000002": 6, "2011_999999": 7}
    write_sbd(tmp_path / "sbd", sbd)
    return tmp_path


def test_sbd_adds_masks_to_voc2012_as_the_field_merges_them(sbd_root):
    data = build(sbd_root, year="2012", download=True, train_split="trainaug")
    data.prepare_data()
    names = ["2007_000001", "2007_000002", "2008_000001", "2008_000002"]
    assert names_of(data, "train") == names  # without VOC's val image and the image that VOC does not have
    masks = [data.mask_reader.read(sample.mask) for sample in data.samples("train")]
    assert np.array_equal(masks[0], labels_of(0, 21))  # VOC's own mask, not SBD's
    assert [np.unique(mask).tolist() for mask in masks[2:]] == [[5], [6]]
    assert masks_of(data).keys() == {"2007_000003"}
    assert np.array_equal(masks_of(data)["2007_000003"], labels_of(2, 21))
    tree = sbd_root / "VOCdevkit" / "VOC2012"
    written = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    (sbd_root / "sbd" / "train.txt").unlink()  # would fail if read again
    data.prepare_data()
    assert written == {path: path.stat().st_mtime_ns for path in tree.rglob("*")}


def test_trainaug_from_elsewhere_is_read_with_and_without_its_folder(sbd_root):
    tree = sbd_root / "VOCdevkit" / "VOC2012"
    for number, name in enumerate(("2007_000001", "2007_000003", "2008_000001")):
        write_palette_mask(tree / "SegmentationClassAug" / f"{name}.png", np.full(SIZE, number + 1, np.uint8))
    write_list(tree, "trainaug", ["2007_000001", "2007_000002", "2008_000001"])
    data = build(sbd_root, year="2012", train_split="trainaug")
    folders = [sample.mask.parent.name for sample in data.samples("train")]
    assert folders == ["SegmentationClass", "SegmentationClass", "SegmentationClassAug"]  # VOC's own masks win
    write_list(tree, "trainaug", ["/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png"], end=" \r\n")
    assert data.samples("train")[0].mask.parent.name == "SegmentationClassAug"  # unless the list says otherwise
    explicit = build(sbd_root, year="2012", val_split="val", mask_folder="SegmentationClassAug")
    assert masks_of(explicit)["2007_000003"].max() == 2


def test_sbd_of_another_year_and_failed_downloads_are_reported(sbd_root, monkeypatch):
    write_voc(sbd_root / "VOCdevkit" / "VOC2007")
    with pytest.raises(VocsegError, match=r"trainaug belongs to VOC2012"):
        build(sbd_root, download=True, train_split="trainaug").prepare_data()
    monkeypatch.setattr("torchvision.datasets.SBDataset.url", "http://127.0.0.1:9/benchmark.tgz")
    (sbd_root / "sbd" / "train.txt").unlink()
    with pytest.raises(VocsegError, match=r"Adding SBD .* failed"):
        build(sbd_root, year="2012", download=True, train_split="trainaug").prepare_data()


def test_missing_scipy_is_explained(sbd_root, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(VocsegError, match="pip install scipy"):
        build(sbd_root, year="2012", download=True, train_split="trainaug").prepare_data()
