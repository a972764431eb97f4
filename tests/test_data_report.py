"""``vocseg inspect`` on real files."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vocseg.data.labels import VOC_PALETTE
from vocseg.data.synthetic import SYNTHETIC_CLASSES

NAMES = f"[{','.join(SYNTHETIC_CLASSES)}]"


def save_mask(path, values):
    mask = Image.fromarray(values.astype(np.uint8))
    mask.putpalette(VOC_PALETTE.tobytes())
    mask.save(path)


@pytest.fixture
def tree(tmp_path):
    """Writes a VOC tree of 8 training and 4 validation images, whose masks have two values; returns its folder."""

    def write(object_value=1, number=8, suffix=""):
        tree = tmp_path / "data" / "VOCdevkit" / "VOC2007"
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (tree / folder).mkdir(parents=True)
        for split, count in (("train", number), ("val", 4)):
            names = [f"{split}_{index}{suffix}" for index in range(count)]
            (tree / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
            for index, name in enumerate(names):
                size = 30 + 2 * index
                Image.new("RGB", (size, 20), (90, 90, 200)).save(tree / "JPEGImages" / f"{name}.jpg")
                values = np.zeros((20, size))
                values[:5, :10] = object_value
                save_mask(tree / "SegmentationClass" / f"{name}.png", values)
        return tree

    return write


def row(out, name):
    """The cells of a printed table's row."""
    line = next(line for line in out.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_and_page_show_what_was_found(vocseg, voc_root, tmp_path):
    status, out, err = vocseg("inspect", "--data.root", voc_root, "--data.class_names", NAMES)
    assert (status, err) == (0, "")
    assert [row(out, split)[1] for split in ("train", "val", "test")] == ["10", "5", "4"]
    masks = voc_root / "VOCdevkit" / "VOC2007" / "SegmentationClass"
    discs = [(np.array(Image.open(path)) == 1).any() for path in sorted(masks.glob("train_*.png"))]
    assert row(out, "disc")[:2] == ["disc", "1"]
    assert row(out, "disc")[3] == str(sum(discs))
    sizes = sorted((Image.open(path).size for path in masks.glob("val_*.png")), key=lambda size: size[0] * size[1])
    assert row(out, "val")[2:5] == ["{}x{}".format(*sizes[index]) for index in (0, 2, 4)]
    page = (tmp_path / "inspect" / "index.html").read_text()
    assert page.count('<img src="data:image/jpeg') == page.count('<img src="data:image/png') == 12
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # self-contained
    for label, name in enumerate(SYNTHETIC_CLASSES):
        assert f"rgb{tuple(VOC_PALETTE[label].tolist())}" in page
        assert f" {label} {name}" in page


def test_a_config_gives_the_data_and_the_rest_of_it_is_ignored(vocseg, voc_root, tmp_path):
    (tmp_path / "own.yaml").write_text(
        f"model: {{unknown: 1}}\ntrainer: {{max_epochs: x}}\nseed_everything: 3\ndata:\n  root: {voc_root}\n"
        f"  class_names: {list(SYNTHETIC_CLASSES)}\n  labels: {{9: void}}\n"
    )
    status, out, _ = vocseg("inspect", "--config", "own.yaml", "--to", "here")
    assert (status, row(out, "train")[1]) == (0, "10")
    assert (tmp_path / "here" / "index.html").is_file()


def test_a_data_module_of_ones_own_is_inspected(vocseg, voc_root, tmp_path):
    (tmp_path / "own_data.py").write_text(
        "from vocseg import SegmentationDataModule\n"
        "from vocseg.data.lists import read_split\n"
        "from pathlib import Path\n"
        "class Own(SegmentationDataModule):\n"
        f"    def __init__(self, **settings):\n        super().__init__({SYNTHETIC_CLASSES}, **settings)\n"
        "    def samples(self, role):\n"
        f"        return read_split(Path({str(voc_root)!r}, 'VOCdevkit', 'VOC2007'), 'val')\n"
    )
    status, out, _ = vocseg("inspect", "--data", "own_data.Own", "--data.image_size", "32")
    assert (status, row(out, "train")[1]) == (0, "5")
    status, _, err = vocseg("inspect", "--data", "lightning.pytorch.demos.boring_classes.BoringDataModule")
    assert status == 1
    assert "SegmentationDataModule" in err


def test_the_data_modules_are_known_by_name_in_a_fresh_process(voc_root, tmp_path):
    """In this process other tests have imported them."""
    names = f"[{', '.join(SYNTHETIC_CLASSES)}]"
    folders = ["inspect", "--data", "FolderDataModule", "--data.root", str(voc_root), "--data.class_names", names]
    code = (
        f"from vocseg.cli import main; main({folders}); from vocseg.data_report import make_parser; "
        "print(make_parser().parse_args(['--data', 'SyntheticDataModule']).data.class_path)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "vocseg.SyntheticDataModule\n"
    assert "Hold out a part of the images" in done.stderr  # of the folders
    assert "there is no class" not in done.stderr


def test_all_odd_files_are_counted_and_five_of_a_kind_named(vocseg, tree, tmp_path):
    folder = tree()
    for index in range(7):
        save_mask(folder / "SegmentationClass" / f"train_{index}.png", np.full((20, 30 + 2 * index), 9))
    save_mask(folder / "SegmentationClass" / "val_0.png", np.ones((5, 5)))
    (folder / "JPEGImages" / "val_1.jpg").write_bytes(b"nothing")
    status, out, err = vocseg("inspect", "--data.root", folder, "--data.class_names", "[background, thing]")
    assert status == 1
    assert (row(out, "train")[-1], row(out, "val")[-1]) == ("7", "2")
    assert len(re.findall(r"train_\d.png has label 9", err)) == 5
    assert "and 2 more train files like these (7 in all)" in err
    assert "differ in size" in err
    assert "val_1.jpg is not an image" in err
    assert "differ in size" in (tmp_path / "inspect" / "index.html").read_text()


def test_masks_of_0_and_255_get_the_setting_that_reads_them(vocseg, tree):
    flags = ["inspect", "--data.root", tree(255), "--data.class_names", "[background, defect]"]
    status, out, err = vocseg(*flags)
    assert status == 1
    setting = re.search(r"--data.labels \"(.*?)\"", err).group(1)
    assert row(out, "defect")[3] == "0"
    status, out, err = vocseg(*flags, "--data.labels", setting)
    assert (status, err) == (0, "")
    assert row(out, "defect")[3] == "8"


def test_own_labels_with_vocs_default_classes_are_an_error(vocseg, tree):
    folder = tree()
    status, _, err = vocseg("inspect", "--data.root", folder)
    assert status == 1
    assert '--data.class_names "[background, ...]", 2 names' in err
    status, _, _ = vocseg("inspect", "--data.root", folder, "--data.class_names", "[background, thing]")
    assert status == 0


def test_a_small_part_of_voc_has_notes_and_no_errors(vocseg, tree):
    folder = tree(15, number=5)
    status, out, err = vocseg("inspect", "--data.root", folder)
    assert (status, err) == (0, "")
    assert re.search(r"Note .*no pixel of 19 of 21 classes", out)


def test_a_missing_test_list_is_a_note_and_a_missing_val_list_an_error(vocseg, tree):
    folder = tree(15)
    status, out, _ = vocseg("inspect", "--data.root", folder)
    assert status == 0
    assert "no split 'test'" in out
    (folder / "ImageSets" / "Segmentation" / "val.txt").unlink()
    status, out, err = vocseg("inspect", "--data.root", folder)
    assert status == 1
    assert "no split 'val'" in err
    assert row(out, "train")[1] == "8"


def test_no_file_of_others_is_replaced(vocseg, tree, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    flags = ["inspect", "--data.root", tree(15), "--to"]
    status, _, err = vocseg(*flags, "site")
    assert (status, (tmp_path / "site" / "index.html").read_text()) == (1, "mine")
    assert "--to" in err
    assert [vocseg(*flags, "own")[0] for _ in range(2)] == [0, 0]


def test_class_names_are_shown_as_they_are(vocseg, tree, tmp_path):
    status, out, _ = vocseg("inspect", "--data.root", tree(), "--data.class_names", '["[red]", "<b>"]')
    assert status == 0
    assert row(out, "[red]")[0] == "[red]"
    assert "&lt;b&gt;" in (tmp_path / "inspect" / "index.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.rot", "x"], "root"),
        (["--data.root", "missing"], "missing"),
        (["--data", "VOCDataModul", "--data.root", "x"], "Did you mean 'VOCDataModule'"),
        (["--config", "quickstrat"], "Did you mean 'quickstart'"),
        (["--data.root", "x", "--data.image_size", "0"], "image_size"),
    ],
)
def test_mistakes_are_explained_in_words(vocseg, words, message):
    status, out, err = vocseg("inspect", *words)
    assert (status, out) == (1, "")
    assert message in err
    assert "Traceback" not in err


def test_of_fewer_training_images_only_these_are_inspected(vocseg, tree):
    status, out, _ = vocseg("inspect", "--data.root", tree(15), "--data.train_images", "3")
    assert (status, row(out, "train")[1], row(out, "val")[1]) == (0, "3", "4")
    assert "no pixel of 19 of 21 classes" in out
