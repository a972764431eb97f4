"""Mask files of every kind that annotation tools write become the right labels, or an error that names a setting."""

import json
import logging
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from vocseg import VocsegError
from vocseg.data.base import SegmentationDataModule
from vocseg.data.datasets import SegmentationDataset
from vocseg.data.files import Sample, check_samples, read_sample
from vocseg.data.images import ImageReader
from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE, VOID
from vocseg.data.masks import MaskReader
from vocseg.data.transforms import Pipeline

NAMES = ["background", "scratch", "dent", "hole"]
LABELS = np.array([[0, 0, 1, 1, 2], [3, 3, 255, 255, 0], [0, 1, 2, 3, 255]], np.uint8)
TWO = (LABELS % 255 % 2).astype(np.uint8)
COLOURS = {
    "background": [10, 20, 30],
    "scratch": [255, 0, 0],
    "dent": [0, 255, 0],
    "hole": [7, 7, 9],
    "void": [1, 1, 1],
}
OWN_PALETTE = np.zeros((256, 3), np.uint8)
OWN_PALETTE[[0, 1, 2, 3, 255]] = list(COLOURS.values())
GREYS = np.arange(256)[:, None].repeat(3, 1)
VOC = MaskReader(VOC_CLASSES)


def reader(names=NAMES, **settings) -> MaskReader:
    return MaskReader.from_settings(names, **settings)


def grey(path, pixels=LABELS):
    Image.fromarray(pixels).save(path)


def with_palette(path, indices, palette):
    image = Image.fromarray(indices)
    image.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    image.save(path)


def permuted(path, labels, order, palette=VOC_PALETTE):
    """A palette PNG of the right colours, in which the label order[i] has the index i."""
    indices = np.zeros_like(labels)
    for index, label in enumerate(order):
        indices[labels == label] = index
    with_palette(path, indices, palette[list(order)])


def with_alpha(path, mode, alpha=255):
    pixels = LABELS if mode == "LA" else VOC_PALETTE[LABELS]
    image = Image.fromarray(pixels)
    image.putalpha(Image.fromarray(np.full_like(LABELS, alpha)))
    image.save(path)


def low_bits(path, labels, bits):
    """Writes a grey PNG with 1, 2 or 4 bits a pixel by hand: Pillow and OpenCV only read them."""
    per_byte = 8 // bits
    padded = np.pad(labels, ((0, 0), (0, -labels.shape[1] % per_byte))).astype(int)
    weights = [1 << (bits * (per_byte - 1 - place)) for place in range(per_byte)]
    rows = (padded.reshape(len(labels), -1, per_byte) * weights).sum(2).astype(np.uint8)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def deep_rgb(path, pixels):
    cv2.imwrite(str(path), pixels.astype(np.uint16)[..., ::-1])


WITHOUT_VOID = np.where(LABELS == 255, 0, LABELS)
COUNTED = np.where(LABELS == 255, 0, LABELS + 1).astype(np.uint8)  # from 1; 0 is not labelled
FROM_ONE = {"labels": {0: "void", 1: "background", 2: "scratch", 3: "dent", 4: "hole"}}

KINDS = {
    "grey": (grey, {}, LABELS),
    "grey, 1 bit": (lambda path: Image.fromarray(TWO.astype(bool)).save(path), {"names": ["no", "yes"]}, TWO),
    "grey, 2 bits": (lambda path: low_bits(path, WITHOUT_VOID, 2), {}, WITHOUT_VOID),
    "grey, 4 bits": (lambda path: low_bits(path, WITHOUT_VOID, 4), {}, WITHOUT_VOID),
    "grey, 16 bits": (lambda path: cv2.imwrite(str(path), LABELS.astype(np.uint16)), {}, LABELS),
    "grey, 16 bits, 65535 void": (
        lambda path: cv2.imwrite(str(path), np.where(LABELS == 255, 65535, LABELS).astype(np.uint16)),
        {"labels": {65535: "void"}},
        LABELS,
    ),
    "three equal channels": (lambda path: grey(path, LABELS[..., None].repeat(3, 2)), {}, LABELS),
    "three equal channels, 16 bits": (lambda path: deep_rgb(path, LABELS[..., None].repeat(3, 2)), {}, LABELS),
    "grey with alpha": (lambda path: with_alpha(path, "LA"), {}, LABELS),
    "grey with alpha 0": (lambda path: with_alpha(path, "LA", 0), {}, LABELS),
    "palette of VOC": (lambda path: with_palette(path, LABELS, VOC_PALETTE), {}, LABELS),
    "palette of other colours": (lambda path: with_palette(path, LABELS, OWN_PALETTE), {}, LABELS),
    "palette of grey values": (
        lambda path: with_palette(path, LABELS, GREYS),
        {},
        LABELS,
    ),
    "palette of VOC in another order": (lambda path: permuted(path, LABELS, [2, 0, 255, 3, 1]), {}, LABELS),
    "palette of own colours in another order": (
        lambda path: permuted(path, LABELS, [255, 3, 0, 1, 2], OWN_PALETTE),
        {"colours": COLOURS},
        LABELS,
    ),
    "palette in another order with named indices": (
        lambda path: permuted(path, LABELS, [0, 2, 255, 3, 1]),
        {"labels": {0: 0, 1: "dent", 2: "void", 3: "hole", 4: "scratch"}},
        LABELS,
    ),
    "colours of VOC": (lambda path: grey(path, VOC_PALETTE[LABELS]), {}, LABELS),
    "colours of VOC with alpha": (lambda path: with_alpha(path, "RGBA"), {}, LABELS),
    "own colours": (lambda path: grey(path, OWN_PALETTE[LABELS]), {"colours": COLOURS}, LABELS),
    "own colours, 16 bits": (
        lambda path: deep_rgb(path, OWN_PALETTE[LABELS].astype(int) * 257),
        {"colours": COLOURS},
        LABELS,
    ),
    "black and white colours": (
        lambda path: grey(path, TWO * 255),
        {"names": ["good", "bad"], "colours": {"good": [0, 0, 0], "bad": [255, 255, 255]}},
        TWO,
    ),
    "white for the first class": (
        lambda path: grey(path, (255 - TWO * 255)[..., None].repeat(3, 2)),
        {"names": ["good", "bad"], "colours": {"good": [255, 255, 255], "bad": [0, 0, 0]}},
        TWO,
    ),
    "counted from 1": (lambda path: grey(path, COUNTED), FROM_ONE, LABELS),
    "counted from 1, palette": (lambda path: with_palette(path, COUNTED, VOC_PALETTE), FROM_ONE, LABELS),
    "0 and 255": (lambda path: grey(path, TWO * 255), {"names": ["good", "bad"], "labels": {255: "bad"}}, TWO),
    "0 and 255 in three channels": (
        lambda path: grey(path, (TWO * 255)[..., None].repeat(3, 2)),
        {"names": ["good", "bad"], "labels": {255: 1}},
        TWO,
    ),
    "0, 127 and 255": (
        lambda path: grey(path, np.array([0, 127, 255, 255, 0], np.uint8)[LABELS % 5]),
        {"labels": {127: "scratch", 255: "hole"}},
        np.array([0, 1, 3, 3, 0], np.uint8)[LABELS % 5],
    ),
    "float TIFF": (lambda path: Image.fromarray(LABELS.astype(np.float32)).save(path, format="TIFF"), {}, LABELS),
    "int32 TIFF, -1 void": (
        lambda path: Image.fromarray(np.where(LABELS == 255, -1, LABELS).astype(np.int32)).save(path, format="TIFF"),
        {"labels": {-1: "void"}},
        LABELS,
    ),
    "ignored class": (grey, {"ignore_classes": ["dent"]}, np.where(LABELS == 2, 255, LABELS)),
    "ignored class, colours": (
        lambda path: grey(path, VOC_PALETTE[LABELS]),
        {"ignore_classes": ["dent", "hole"]},
        np.where((LABELS == 2) | (LABELS == 3), 255, LABELS),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_every_kind_give_the_same_labels(tmp_path, kind):
    write, settings, expected = KINDS[kind]
    write(tmp_path / "mask.png")
    labels = reader(**settings).read(tmp_path / "mask.png")
    assert labels.dtype == np.uint8
    assert labels.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_every_reading_of_a_sample_has_these_labels(tmp_path, kind):
    """Training, the checks before it, the class counts, and a reader sent to a worker process."""
    write, settings, expected = KINDS[kind]
    sample = Sample(tmp_path / "image.png", tmp_path / "mask.png")
    write(sample.mask)
    Image.new("RGB", (5, 3)).save(sample.image)
    masks = reader(**settings)
    copy = pickle.loads(pickle.dumps(masks))
    data = SegmentationDataset([sample], Pipeline([], len(masks.class_names)), evaluates=True, masks=copy)
    counts = np.bincount(expected.ravel(), minlength=256)
    (checked,) = check_samples([sample], masks, keep=True)
    assert data[0]["mask"].tolist() == data[0]["original_mask"].tolist() == expected.tolist()
    assert checked.arrays[1].tolist() == expected.tolist()
    assert checked.size == (3, 5)
    assert checked.counts.tolist() == counts.tolist()


def test_the_files_values_are_reported(tmp_path):
    Image.new("RGB", (5, 3)).save(tmp_path / "image.png")
    sample = Sample(tmp_path / "image.png", tmp_path / "mask.png")
    grey(sample.mask, TWO * 255)
    (checked,) = check_samples([sample], reader(["good", "bad"]))
    assert (checked.read_by, checked.values) == ("value", (0, 255))
    grey(sample.mask, OWN_PALETTE[TWO])
    (checked,) = check_samples([sample], reader(colours=COLOURS))
    assert (checked.read_by, checked.values) == ("colour", ((10, 20, 30), (255, 0, 0)))


# palettes -----------------------------------------------------------------------------------------------------------


def test_red_of_the_aeroplane_is_its_label_in_any_order(tmp_path):
    labels = np.array([[0, 1, 1, 255]], np.uint8)
    permuted(tmp_path / "mask.png", labels, [0, 2, 1, 255])
    assert VOC.read(tmp_path / "mask.png").tolist() == labels.tolist()


def test_colours_left_by_quantising_are_read_by_colour(tmp_path):
    """Pillow orders the palette of a quantised image by itself, and fills it with black or not at all."""
    labels = np.random.default_rng(0).choice([0, 1, 15, 20, 255], (40, 50)).astype(np.uint8)
    Image.fromarray(VOC_PALETTE[labels]).quantize(5).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as image:
        assert (np.array(image) != labels).any()
    assert np.array_equal(VOC.read(tmp_path / "mask.png"), labels)


@pytest.mark.parametrize(
    ("used", "palette"),
    [
        ([0, 1], [[0, 0, 0], [255, 255, 255]]),  # white is no class's colour
        ([0, 255], np.zeros((256, 3))),  # filled with black: 255 is void, not background
        ([0, 1, 255], [[0, 0, 0], [128, 0, 0], *[[0, 0, 0]] * 254]),  # filled after the classes
        ([1, 2], [[0, 0, 0], [0, 128, 0], [0, 99, 0]]),  # one colour is unknown
        ([0, 2], GREYS),
    ],
)
def test_other_palettes_keep_their_indices(tmp_path, caplog, used, palette):
    labels = np.array([used], np.uint8)
    with_palette(tmp_path / "mask.png", labels, palette)
    with caplog.at_level(logging.INFO):
        assert VOC.read(tmp_path / "mask.png").tolist() == labels.tolist()
    assert "palette" not in caplog.text


def test_unused_palette_entries_decide_too(tmp_path):
    """A mask is read by index if another mask with its palette is, although its own colours are classes' colours."""
    palette = [[0, 0, 0], [0, 128, 0], [128, 0, 0], [99, 99, 0]]  # not VOC's palette: its third class has a new colour
    for labels in ([0, 1, 2, 3], [0, 1, 2], [1]):
        with_palette(tmp_path / "mask.png", np.array([labels], np.uint8), palette)
        assert reader().read(tmp_path / "mask.png").tolist() == [labels]


@pytest.mark.parametrize(
    ("masks", "palette"),
    [
        (reader(), VOC_PALETTE[[1, 0, 9]]),  # 9 is no class here
        (reader(colours={"background": [0, 0, 0], "hole": [5, 5, 0]}), [[5, 5, 0], [0, 0, 0], [1, 2, 3]]),
    ],
)
def test_palettes_that_are_partly_in_another_order_are_refused(tmp_path, masks, palette):
    with_palette(tmp_path / "mask.png", np.array([[0, 1, 2]], np.uint8), palette)
    with pytest.raises(VocsegError, match=r"mask\.png has colours of no class: \[(1, 2, 3|192, 0, 0)\]\."):
        masks.read(tmp_path / "mask.png")


def test_reading_by_colour_is_said_once_with_the_file(tmp_path, caplog):
    for name in ("a", "b"):
        permuted(tmp_path / f"{name}.png", LABELS, [2, 0, 255, 3, 1])
        Image.new("RGB", (5, 3)).save(tmp_path / f"{name}.jpg")
    masks = reader()
    with caplog.at_level(logging.INFO):
        check_samples([Sample(tmp_path / f"{name}.jpg", tmp_path / f"{name}.png") for name in "ab"], masks)
        masks.read(tmp_path / "b.png")
    (line,) = [record.getMessage() for record in caplog.records if "palette" in record.getMessage()]
    assert str(tmp_path) in line
    assert "read by colour" in line
    assert '--data.labels "{0: background, 1: scratch, ...}"' in line


# errors -------------------------------------------------------------------------------------------------------------

BLURRED = np.arange(60, dtype=np.uint8).reshape(3, 20) * 3
ERRORS = {
    "unknown label": (
        lambda path: grey(path, np.where(LABELS == 3, 38, LABELS).astype(np.uint8)),
        {},
        r"has label 38, but there are 4 classes \(0 to 3, and 255 for void\). Its values are 0, 1, 2, 38, 255\. .*"
        r"--data\.class_names; .*--data\.labels \"\{38: <class>\}\"",
    ),
    "counted from 1": (
        lambda path: grey(path, np.where(LABELS == 255, 255, LABELS + 1).astype(np.uint8)),
        {},
        r"--data\.labels \"\{1: background, 2: scratch, 3: dent, 4: hole\}\"",
    ),
    "0 and 1-based labels": (lambda path: grey(path, COUNTED), {"labels": {1: 0, 2: 1, 3: 2, 4: 3}}, r"has value 0"),
    "another value of two classes": (
        lambda path: grey(path, TWO * 200),
        {"names": ["good", "bad"]},
        r"has label 200.*--data\.labels \"\{200: bad\}\"",
    ),
    "0 and 65535": (
        lambda path: cv2.imwrite(str(path), TWO.astype(np.uint16) * 65535),
        {"names": ["good", "bad"]},
        r"has label 65535.*--data\.labels \"\{65535: bad\}\"",
    ),
    "unlisted value": (
        lambda path: grey(path, TWO + (LABELS == 2) * np.uint8(255)),
        {"names": ["good", "bad"], "labels": {255: "bad"}},
        r"has value 1, which labels does not list, and the label 1 \(bad\) already stands for another value.*"
        r"\"\{255: bad, 1: <class>\}\"",
    ),
    "unknown colours": (
        lambda path: grey(path, OWN_PALETTE[LABELS]),
        {},
        r"has colours of no class: \[0, 255, 0\], \[1, 1, 1\], .*--data\.colours \"\{<class>: \[0, 255, 0\]\}\"",
    ),
    "one colour is missing": (
        lambda path: grey(path, OWN_PALETTE[LABELS]),
        {"colours": {name: colour for name, colour in COLOURS.items() if name != "hole"}},
        r"has colours of no class: \[7, 7, 9\]\.",
    ),
    "blurred edges": (lambda path: grey(path, BLURRED), {}, r"look like an image, or like blurred edges"),
    "JPEG": (lambda path: Image.fromarray(BLURRED).save(path, format="JPEG"), {}, r"JPEG, which changes values"),
    "JPEG of colours": (
        lambda path: Image.fromarray(OWN_PALETTE[LABELS]).save(path, format="JPEG"),
        {"colours": COLOURS},
        r"JPEG, which changes colours",
    ),
    "labels in alpha": (
        lambda path: Image.fromarray(np.dstack([np.zeros_like(LABELS)] * 3 + [LABELS])).save(path),
        {},
        r"only its alpha channel \(transparency\) varies",
    ),
    "fractions": (
        lambda path: Image.fromarray(LABELS / np.float32(255)).save(path, format="TIFF"),
        {},
        r"not whole numbers, for example 0\.00392157",
    ),
    "CMYK": (lambda path: Image.new("CMYK", (5, 3)).save(path, format="TIFF"), {}, r"has mode CMYK"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_other_masks_are_refused_with_the_file_and_a_setting(tmp_path, case):
    write, settings, message = ERRORS[case]
    write(tmp_path / "mask.png")
    with pytest.raises(VocsegError, match=message) as error:
        reader(**settings).read(tmp_path / "mask.png")
    assert str(tmp_path / "mask.png") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": {255: "scrach"}}, "labels: there is no class 'scrach'.*Did you mean 'scratch'"),
        ({"labels": {255: 4}}, "labels: there is no class 4"),
        ({"labels": {255: True}}, "put the class name in quotes"),
        ({"labels": {"white": "dent"}}, "whole numbers; got 'white'"),
        ({"colours": {"dents": [1, 2, 3]}}, "colours: there is no class 'dents'.*Did you mean 'dent'"),
        ({"colours": {"dent": [1, 2]}}, "colours: dent must have red, green and blue"),
        ({"colours": {"dent": [1, 2, 256]}}, "colours: dent must have red, green and blue"),
        ({"colours": {"dent": [1, 2, 3], "hole": [1, 2, 3]}}, r"two classes have the colour \[1, 2, 3\]"),
        ({"ignore_classes": ["dnet"]}, "ignore_classes: there is no class 'dnet'.*Did you mean 'dent'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(VocsegError, match=message):
        reader(**settings)


@pytest.mark.parametrize("kind", KINDS)
def test_stored_settings_give_the_same_reader(tmp_path, kind):
    write, settings, expected = KINDS[kind]
    write(tmp_path / "mask.png")
    names = settings.get("names", NAMES)
    data = SegmentationDataModule(names, **{name: value for name, value in settings.items() if name != "names"})
    stored = json.loads(json.dumps(dict(data.hparams)))
    past = reader(names, **{name: stored[name] for name in ("labels", "colours", "ignore_classes", "exif_rotation")})
    assert past.read(tmp_path / "mask.png").tolist() == expected.tolist()
    assert data.mask_reader.read(tmp_path / "mask.png").tolist() == expected.tolist()


def test_a_class_may_be_called_void():
    assert reader(["void", "road"], labels={7: "void"}).labels == {7: 0}
    assert reader(labels={7: "void"}).labels == {7: VOID}


# EXIF ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rotated(tmp_path):
    """A sample whose image EXIF rotates, and whose mask has the size before the rotation."""
    image = Image.new("RGB", (5, 3))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "image.jpg", exif=exif)
    grey(tmp_path / "mask.png")
    return Sample(tmp_path / "image.jpg", tmp_path / "mask.png")


def test_masks_of_raw_pixels_are_reported_with_the_setting_that_reads_them(rotated):
    with pytest.raises(VocsegError, match=r"image\.jpg is 3x5, .*mask\.png is 5x3.*EXIF.*--data\.exif_rotation false"):
        check_samples([rotated], reader())
    image, mask = read_sample(rotated, reader(exif_rotation=False), ImageReader(exif_rotation=False))
    assert image.shape == (3, 5, 3)
    assert mask.tolist() == LABELS.tolist()


def test_masks_of_rotated_pixels_are_reported_if_raw_pixels_are_read(rotated):
    grey(rotated.mask, LABELS.T)
    assert read_sample(rotated, reader())[1].tolist() == LABELS.T.tolist()
    with pytest.raises(VocsegError, match=r"EXIF.*--data\.exif_rotation true"):
        read_sample(rotated, reader(), ImageReader(exif_rotation=False))


def test_a_mask_with_the_same_orientation_is_rotated_too(rotated):
    mask = Image.fromarray(LABELS)
    exif = mask.getexif()
    exif[274] = 6
    mask.save(rotated.mask, exif=exif)
    assert read_sample(rotated, reader())[1].tolist() == np.rot90(LABELS, -1).tolist()


def test_other_sizes_do_not_blame_exif(rotated):
    grey(rotated.mask, LABELS[:2])
    with pytest.raises(VocsegError, match=r"differ in size") as error:
        read_sample(rotated, reader())
    assert "EXIF" not in str(error.value)
