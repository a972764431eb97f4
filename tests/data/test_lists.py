"""Lists of samples, nested trees, splits without lists, and images to predict, on real files."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from vocseg.data.lists import (
    expand,
    find_images,
    find_tree,
    first_images,
    hold_out,
    index_images,
    pair_samples,
    read_split,
)
from vocseg.errors import VocsegError

LIST = "ImageSets/Segmentation/train.txt"


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(path)


def write_mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(4, 6, dtype=np.uint8)).save(path)


def write_samples(tree, names, image_ending=".jpg", masks="SegmentationClass", mask_ending=".png"):
    for name in names:
        write_image(tree / "JPEGImages" / f"{name}{image_ending}")
        write_mask(tree / masks / f"{name}{mask_ending}")


@pytest.fixture
def tree(tmp_path):
    """A tree with the images a, b, and é, and no list yet."""
    tree = tmp_path / "VOC2007"
    write_samples(tree, ["a", "b", "é"])
    (tree / LIST).parent.mkdir(parents=True)
    return tree


def names_in(tree, content, **settings):
    (tree / LIST).write_bytes(content)
    return [sample.name for sample in read_split(tree, "train", **settings)]


@pytest.mark.parametrize(
    "content",
    [
        b"a\r\nb\r\n",
        b"a\rb\r",
        b"\xef\xbb\xbfa\nb",
        "a\nb\n".encode("utf-16"),
        "\ufeffa\r\nb\r\n".encode("utf-16-be"),
        b"a \t\n\n  b  \n \n",
        b"a.jpg\nb.jpg\n",
        b"a.JPG\nb.png\n",
        b"JPEGImages/a.jpg\n/JPEGImages/b.jpg\n",
    ],
    ids=["CRLF", "CR", "UTF-8 BOM", "UTF-16", "UTF-16 BE", "spaces", "endings", "other endings", "with the folder"],
)
def test_lists_of_other_tools_are_read(tree, content):
    assert names_in(tree, content) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    ["é\n".encode("cp1252"), "é\n".encode(), unicodedata.normalize("NFD", "é\n").encode(), "é\n".encode("utf-16")],
    ids=["cp1252", "UTF-8 NFC", "UTF-8 NFD", "UTF-16"],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_match_the_files_in_every_encoding_and_form(tree, content, form):
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (tree / folder / f"é.{ending}").rename(tree / folder / unicodedata.normalize(form, f"é.{ending}"))
    assert names_in(tree, b"a\n" + content if content[:2] != b"\xff\xfe" else content)[-1] == "é"
    assert all(sample.image.is_file() and sample.mask.is_file() for sample in read_split(tree, "train"))


def test_lines_of_one_list_may_have_different_encodings(tree):
    assert names_in(tree, "a\né\n".encode() + "é\n".encode("cp1252")) == ["a", "é", "é"]


@pytest.mark.parametrize(
    "content",
    [b"a\nb\n\x81\xff\n", b"a\r\nb\r\n\x8d\r\n", b"a\nb\na\0\0\n", "a\nb\n".encode("utf-16") + b"\x00\xd8\n\0"],
)
def test_text_that_cannot_be_decoded_is_named_by_list_and_line(tree, content):
    with pytest.raises(VocsegError, match=r"train\.txt, line 3, cannot be decoded"):
        names_in(tree, content)


def test_names_may_have_folders_dots_spaces_and_backslashes(tree):
    names = ["one/0004", "two/0004", "scene.v2", "my image 1", "deep/er/x.y"]
    write_samples(tree, names)
    assert names_in(tree, "\n".join(names).encode()) == names
    assert names_in(tree, b"one\\0004\r\ntwo\\0004.jpg") == ["one/0004", "two/0004"]


@pytest.mark.parametrize(("image", "mask"), [(".JPG", ".PNG"), (".jpeg", ".tif"), (".TIFF", ".bmp"), (".Png", ".Tif")])
def test_endings_of_images_and_masks_are_found_in_any_case(tree, image, mask):
    write_samples(tree, ["x", "sub/y"], image, mask_ending=mask)
    names_in(tree, b"x\nsub/y.jpg\n")
    assert [(sample.image.suffix, sample.mask.suffix) for sample in read_split(tree, "train")] == [(image, mask)] * 2


def test_masks_may_repeat_the_image_ending(tree):
    write_image(tree / "JPEGImages" / "x.jpg")
    write_mask(tree / "SegmentationClass" / "x.jpg.png")
    names_in(tree, b"x.jpg")
    assert read_split(tree, "train")[0].mask.name == "x.jpg.png"


@pytest.mark.parametrize("between", [" ", "\t", " , ", ";"])
@pytest.mark.parametrize("start", ["/", ""])
def test_pair_lists_name_image_and_mask_relative_to_the_tree(tree, between, start):
    write_mask(tree / "SegmentationClassAug" / "a.png")
    write_samples(tree, ["my image", "one/x"], masks="SegmentationClassAug")
    pairs = [("a", "a"), ("my image", "my image"), ("one/x", "one/x")]
    lines = [f"{start}JPEGImages/{i}.jpg{between}{start}SegmentationClassAug/{m}.png" for i, m in pairs]
    assert names_in(tree, "\r\n".join(lines).encode()) == ["a", "my image", "one/x"]
    assert all(sample.mask.is_relative_to(tree / "SegmentationClassAug") for sample in read_split(tree, "train"))


@pytest.mark.parametrize(
    "line",
    [
        *("../../secret", "/etc/passwd", "/JPEGImages/../../x.jpg", "..\\..\\secret", "JPEGImages/../../../x"),
        *("/JPEGImages/a.jpg /../../x.png", "../a.jpg /SegmentationClass/a.png"),
    ],
)
def test_names_outside_the_tree_are_refused(tree, line):
    with pytest.raises(VocsegError, match=r"line 2, names .* outside the tree"):
        names_in(tree, f"a\n{line}\n".encode())


def test_a_leading_slash_in_a_pair_never_leaves_the_tree(tree, tmp_path):
    write_image(tmp_path / "other" / "x.jpg")
    with pytest.raises(VocsegError, match="does not exist"):
        names_in(tree, f"{tmp_path}/other/x.jpg /SegmentationClass/a.png\n".encode())


def test_missing_files_are_named_with_list_line_and_remedy(tree):
    write_image(tree / "JPEGImages" / "c.jpg")
    write_mask(tree / "SegmentationClassAug" / "c.png")
    with pytest.raises(VocsegError) as error:
        names_in(tree, b"a\nnone\nc\n")
    assert "JPEGImages/none.jpg does not exist" in str(error.value)
    assert "train.txt, line 2" in str(error.value)
    assert "c.png does not exist" in str(error.value)
    assert "--data.mask_folder SegmentationClassAug" in str(error.value)
    assert names_in(tree, b"a\nc\n", mask_folders=["SegmentationClass", "SegmentationClassAug"]) == ["a", "c"]


def test_two_files_of_one_name_are_refused_unless_the_list_says_which(tree):
    write_image(tree / "JPEGImages" / "a.png")
    with pytest.raises(VocsegError, match=r"a\.jpg and a\.png"):
        names_in(tree, b"a\n")
    assert names_in(tree, b"a.png\nb\n") == ["a", "b"]
    assert read_split(tree, "train")[0].image.name == "a.png"
    assert names_in(tree, b"a.png\na.jpg\n") == ["a.png", "a.jpg"]  # names of outputs must differ


def test_hidden_files_of_macos_are_no_images(tree):
    for folder in ("JPEGImages", "JPEGImages/__MACOSX", "JPEGImages/.cache"):
        (tree / folder).mkdir(exist_ok=True)
        (tree / folder / "._a.jpg").write_bytes(b"")
    (tree / "JPEGImages" / "__MACOSX" / "b.jpg").write_bytes(b"")
    assert sorted(index_images(tree / "JPEGImages")) == ["a", "b", "é"]


def test_symlinks_are_followed_and_loops_end(tree, tmp_path):
    write_image(tmp_path / "elsewhere" / "x.jpg")
    (tree / "JPEGImages" / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "JPEGImages" / "loop").symlink_to(tree / "JPEGImages")
    assert sorted(index_images(tree / "JPEGImages")) == ["a", "b", "linked/x", "é"]


# --- trees


@pytest.mark.parametrize(
    "place",
    [
        "VOC2012_train_val/VOC2012_train_val",
        "archive/VOCdevkit/VOC2012",
        "archive/voc/VOCdevkit/VOC2012",
        "data/my voc",
        "VOCtrainval_11-May-2012/VOCdevkit/VOC2012",
    ],
)
def test_nested_trees_are_found(tmp_path, place):
    write_samples(tmp_path / place, ["a"])
    (tmp_path / "readme").mkdir()
    assert find_tree(tmp_path, "2012") == tmp_path / place


def test_kaggle_tree_without_masks_is_passed_over(tmp_path):
    write_samples(tmp_path / "VOC2012_train_val" / "VOC2012_train_val", ["a"])
    write_image(tmp_path / "VOC2012_test" / "VOC2012_test" / "JPEGImages" / "b.jpg")
    assert find_tree(tmp_path, "2012") == tmp_path / "VOC2012_train_val" / "VOC2012_train_val"


def test_trees_of_another_year_and_deeper_trees_are_not_taken(tmp_path):
    write_samples(tmp_path / "x" / "VOC2012_train_val", ["a"])
    write_samples(tmp_path / "1" / "2" / "3" / "voc", ["a"])
    assert find_tree(tmp_path, "2007") is None


def test_several_nested_trees_are_refused(tmp_path):
    for name in ("mine", "yours"):
        write_samples(tmp_path / name, ["a"])
    with pytest.raises(VocsegError, match=r"mine.*yours"):
        find_tree(tmp_path, "2007")


def test_home_and_variables_are_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "sets")
    assert expand("~/x") == expand("$HOME/x") == tmp_path / "x"
    assert expand("~/${DATA}/y") == tmp_path / "sets" / "y"


# --- parts of lists


@pytest.fixture
def samples(tmp_path):
    write_samples(tmp_path, [f"{number:03d}" for number in range(100)])
    return pair_samples(index_images(tmp_path / "JPEGImages"), index_images(tmp_path / "SegmentationClass"), "here")


def test_fewer_images_are_a_part_of_more(samples):
    twenty, fifty = (first_images(samples, count, 0) for count in (20, 50))
    assert len(twenty) == 20
    assert set(twenty) < set(fifty)
    assert twenty == sorted(twenty, key=lambda sample: sample.name)
    assert twenty != samples[:20]
    assert twenty != first_images(samples, 20, 1)
    assert first_images(samples, None, 0) == first_images(samples, 100, 0) == samples
    for count in (0, 101):
        with pytest.raises(VocsegError, match="has 100 images"):
            first_images(samples, count, 0)


def test_held_out_images_depend_on_names_and_seed_only(samples):
    train, val = hold_out(samples, 0.2, 0)
    assert (len(train), len(val)) == (80, 20)
    assert set(train) | set(val) == set(samples)
    assert hold_out(samples[::-1], 0.2, 0)[1] == val[::-1]
    assert hold_out(samples, 0.2, 1)[1] != val
    # most stay where they are when images are added
    assert len(set(hold_out(samples[:90], 18 / 90, 0)[1]) & set(val)) >= 15
    with pytest.raises(VocsegError, match="leaves 0 for validation"):
        hold_out(samples[:3], 0.1, 0)


# --- images to predict


def test_images_to_predict_of_several_kinds(tmp_path, monkeypatch, caplog):
    for name in ("one/b.jpg", "one/a.PNG", "one/deep/c.tif", "two/d.jpeg"):
        write_image(tmp_path / name)
    for name in ("one/x.gif", "one/y.gif", "one/z.heic", "one/v.mp4", "one/s.svg", "one/.hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in find_images(str(tmp_path / "one"))]
    assert found == ["one/a.PNG", "one/b.jpg"]
    caplog.clear()
    with caplog.at_level("INFO"):
        assert len(find_images(tmp_path / "one", recursive=True)) == 3
    (line,) = [record.getMessage() for record in caplog.records if "Skipped" in record.getMessage()]
    for part in ("Skipped 5 files", "2 .gif", "1 .heic", "1 .mp4", "1 .svg", "v.mp4"):
        assert part in line
    monkeypatch.setenv("HOME", str(tmp_path))
    several = find_images(
        ["~/two", "$HOME/one/b.jpg", str(tmp_path / "one" / "*.jpg"), str(tmp_path / "one" / "*.gif")]
    )
    assert [path.name for path in several] == ["d.jpeg", "b.jpg"]  # each once


def test_list_of_images_to_predict(tmp_path, monkeypatch):
    write_image(tmp_path / "lists" / "near.jpg")
    write_image(tmp_path / "images" / "far.jpg")
    monkeypatch.chdir(tmp_path)
    paths = tmp_path / "lists" / "paths.txt"
    paths.write_bytes(f"near.jpg\r\nimages/far.jpg\r\n{tmp_path}/images/far.jpg\r\n".encode("utf-16"))
    assert [path.name for path in find_images(str(paths))][:2] == ["near.jpg", "far.jpg"]
    paths.write_text("near.jpg\nnone.jpg\n")
    with pytest.raises(VocsegError, match=r"paths\.txt, line 2: 'none\.jpg' does not exist"):
        find_images(str(paths))


def test_nothing_to_predict_says_what_is_there(tmp_path):
    write_image(tmp_path / "deep" / "a.jpg")
    (tmp_path / "x.heic").write_bytes(b"")
    with pytest.raises(VocsegError) as error:
        find_images(str(tmp_path))
    for part in ("holds no image", "1 .heic", "--data.recursive true"):
        assert part in str(error.value)
    for missing in (None, [], str(tmp_path / "none"), str(tmp_path / "*.webp"), [str(tmp_path / "none")]):
        with pytest.raises(VocsegError, match="predict"):
            find_images(missing)
