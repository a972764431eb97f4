"""Class names and the files that hold them."""

import pytest

from vocseg import SegmentationDataModule, VOCDataModule
from vocseg.data.classes import check_class_names, find_classes, names_and_settings, read_classes
from vocseg.errors import VocsegError

LABELMAP = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83:head,tail:sitting\nbig dog:10, 20, 30::\n"
)
COLOURS = {"background": [0, 0, 0], "cat": [250, 50, 83], "big dog": [10, 20, 30]}


def write(folder, name, content):
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("given", ["a,b,c", "[a, b, c]", " a , b,c ", ["a", "b", "c"], ("a", " b", "c ")])
def test_names_are_read_from_lists_and_words(given):
    assert check_class_names(given) == ["a", "b", "c"]


@pytest.mark.parametrize("value", [False, True, 1, 1.5, None])
def test_names_that_yaml_converted_need_quotes(value):
    with pytest.raises(VocsegError, match=f"has {value!r} at position 1.*put the name in quotes"):
        check_class_names(["background", value])
    assert check_class_names(["background", str(value)])[1] == str(value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "'a' more than once"),
        ("a,b,b,c,c", "'b', 'c' more than once"),
        (["a", "b", "b "], "'b' more than once"),
        (["a", " "], "empty name at position 1"),
        ("a,,b", "empty name at position 1"),
        (["a"], r"2 to 254 classes, got 1 \('a'\)"),
        ([], "2 to 254 classes, got 0"),
        ([str(n) for n in range(255)], "2 to 254 classes, got 255.*8 bits, and 255 is void"),
    ],
)
def test_unusable_names_are_refused(names, message):
    with pytest.raises(VocsegError, match=message):
        check_class_names(names)
    with pytest.raises(VocsegError, match=message):
        VOCDataModule(root="none", class_names=names)


def test_254_classes_are_accepted():
    assert len(VOCDataModule(root="none", class_names=[f"c{n}" for n in range(254)]).class_names) == 254


@pytest.mark.parametrize("written", ["[background, no]", "[background, on, 7]", "[yes, b]", "[background, null]"])
def test_command_line_asks_for_quotes(vocseg, tmp_path, written):
    config = write(tmp_path, "own.yaml", f"data: {{root: {tmp_path}, class_names: {written}}}\n")
    for words in (["--config", config], ["--data.root", tmp_path, "--data.class_names", written]):
        status, _, err = vocseg("fit", "--config", "quickstart", "--data", "VOCDataModule", *words)
        assert status == 1
        assert "put the name in quotes" in err
        assert len(err.strip().splitlines()) == 1


def test_names_of_other_data_modules_are_checked_too():
    for names in (["a", "b", "a"], ["a", False]):
        with pytest.raises(VocsegError, match="class_names has"):
            SegmentationDataModule(names)


# --- files


def test_labelmap_has_names_and_colours(tmp_path):
    classes = read_classes(write(tmp_path, "labelmap.txt", LABELMAP))
    assert classes.names == ["background", "cat", "big dog"]
    assert classes.colours == COLOURS


def test_labelmap_names_the_pixels_to_ignore(tmp_path):
    classes = read_classes(write(tmp_path, "labelmap.txt", LABELMAP + "ignored:224,224,192::\n"))
    assert classes.names == ["background", "cat", "big dog"]
    assert classes.colours["void"] == [224, 224, 192]


def test_labelmap_without_colours_has_those_of_vocs_palette(tmp_path):
    classes = read_classes(write(tmp_path, "labelmap.txt", "background:::\ncat:::\n"))
    assert classes.colours == {"background": [0, 0, 0], "cat": [128, 0, 0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("background:0,0,0::\ncat:1,2::\n", "line 2.*name:red,green,blue"),
        ("background:0,0,0::\ncat:1,2,300::\n", "line 2.*0 to 255"),
        ("background:0,0,0::\ncat:a,b,c::\n", "line 2"),
        ("background:0,0,0::\ncat:::\n", "without one"),
        ("background:0,0,0::\ncat:1,1,1::\ndog:1,1,1::\n", r"\[1, 1, 1\] to cat and to dog"),
        ("background:0,0,0::\ncat:1,1,1::\ncat:2,2,2::\n", "'cat' more than once"),
        ("# label:color_rgb:parts:actions\n", "got 0"),
    ],
)
def test_broken_labelmaps_are_reported(tmp_path, content, message):
    with pytest.raises(VocsegError, match=f"labelmap.txt.*{message}"):
        read_classes(write(tmp_path, "labelmap.txt", content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("class_names.txt", "__ignore__\n_background_\ncat\nno\n"),
        ("class_names.txt", "_background_\ncat\nno"),
        ("classes.txt", "0 _background_\n1 cat\n2 no\n"),
        ("classes.txt", "0: _background_\r\n1: cat\r\n2: no\r\n"),
        ("_classes.csv", "Pixel Value, Class\n0, _background_\n1, cat\n2, no\n"),
        ("_classes.csv", "Pixel Value,Class\n1,cat\n0,_background_\n2,no\n"),
        ("classes.json", '["_background_", "cat", "no"]'),
        ("class_names.json", '{"0": "_background_", "2": "no", "1": "cat"}'),
    ],
)
def test_files_of_names(tmp_path, name, content):
    classes = read_classes(write(tmp_path, name, content))
    assert (classes.names, classes.colours, classes.values) == (["_background_", "cat", "no"], {}, {})
    assert find_classes([tmp_path / "none", tmp_path]) == classes


def test_names_that_begin_with_numbers_are_kept(tmp_path):
    assert read_classes(write(tmp_path, "classes.txt", "background\n1 euro\n2 euro\n")).names[1] == "1 euro"


def test_table_of_colours(tmp_path):
    classes = read_classes(write(tmp_path, "class_dict.csv", "name,r,g,b\nsky,128,0,1\nroad,0,0,0\n"))
    assert classes.names == ["sky", "road"]
    assert classes.colours == {"sky": [128, 0, 1], "road": [0, 0, 0]}


def test_pixel_values_with_gaps_are_kept(tmp_path):
    classes = read_classes(write(tmp_path, "_classes.csv", "Pixel Value, Class\n0, background\n127, cat\n255, dog\n"))
    assert classes.values == {0: "background", 127: "cat", 255: "dog"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_classes.csv", "filename, cat, dog\nx.jpg, 1, 0\n"),
        ("_classes.csv", "Pixel Value, Class\nzero, cat\n"),
        ("_classes.csv", ""),
        ("class_dict.csv", "name,r,g,b\nsky,1,2\n"),
        ("_classes.csv", "Pixel Value, Class\n0, a\n0, b\n"),
        ("classes.json", "[1, 2]"),
        ("classes.json", "{"),
        ("classes.json", '{"cat": 0}'),
        ("classes.txt", "one\n"),
    ],
)
def test_broken_files_of_names_are_reported(tmp_path, name, content):
    with pytest.raises(VocsegError, match=name):
        read_classes(write(tmp_path, name, content))


def test_own_names_take_the_colours_of_a_file(tmp_path):
    write(tmp_path, "labelmap.txt", LABELMAP)
    names, found = names_and_settings([tmp_path], None, {})
    assert (names, found["colours"]) == (["background", "cat", "big dog"], COLOURS)
    names, found = names_and_settings([tmp_path], ["big dog", "background", "cat"], {})  # another order
    assert (names, found["colours"]) == (["big dog", "background", "cat"], COLOURS)
    names, found = names_and_settings([tmp_path], "nothing,Katze,Hund", {})  # renamed
    assert found["colours"] == {"nothing": [0, 0, 0], "Katze": [250, 50, 83], "Hund": [10, 20, 30]}
    assert names_and_settings([tmp_path], None, {"colours": {"cat": [1, 2, 3]}})[1] == {}  # the user's win
    for other in ("background,cat", "background,cat,bird", "a,b"):
        with pytest.raises(VocsegError, match="does not fit"):
            names_and_settings([tmp_path], other, {})
