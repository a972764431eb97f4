"""Overlays: what is drawn over a photograph, and what is left as it was."""

import numpy as np
import pytest

import vocseg
from vocseg.data.labels import VOC_CLASSES
from vocseg.errors import VocsegError
from vocseg.overlays import OVERLAY_COLOURS


def scene(height=300, width=400, label=8):
    """A dark photograph with one large region."""
    image = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[height // 6 : -height // 6, width // 6 : -width // 6] = label
    return image, labels


def test_fill_and_contour_have_the_colour_of_the_class_and_background_is_unchanged():
    image, labels = scene()
    mixed = vocseg.overlay(image, labels, opacity=0.25)
    assert np.array_equal(mixed[labels == 0], image[labels == 0])
    assert np.array_equal(mixed[50, 100], OVERLAY_COLOURS[8])  # the region's first row
    inside = np.s_[60:240, 80:320]
    assert np.abs(mixed[inside] - (0.75 * image[inside] + 0.25 * OVERLAY_COLOURS[8])).max() <= 0.5


def test_touching_regions_have_a_contour_each():
    image, labels = np.zeros((20, 20, 3), dtype=np.uint8), np.full((20, 20), 3)
    labels[:, 10:] = 4
    mixed = vocseg.overlay(image, labels, opacity=0)
    assert np.array_equal(mixed[5, 9], OVERLAY_COLOURS[3])
    assert np.array_equal(mixed[5, 10], OVERLAY_COLOURS[4])
    assert not mixed[:, :8].any()  # the border of the image is no contour


@pytest.mark.parametrize("size", [(300, 400), (1500, 2000)])
def test_names_are_drawn_inside_of_their_regions(size):
    image, labels = scene(*size)
    without, mixed = vocseg.overlay(image, labels), vocseg.overlay(image, labels, class_names=VOC_CLASSES)
    rows, columns = np.nonzero((mixed != without).any(2))
    assert (mixed == 255).all(2).any()  # white letters
    assert np.array_equal(mixed[labels == 0], image[labels == 0])
    assert abs(rows.mean() - size[0] / 2) < size[0] / 50
    assert 0.02 * size[0] < np.ptp(rows) < 0.1 * size[0]  # as large for an image of any size
    assert columns.min() > size[1] / 6


def test_a_region_that_is_too_narrow_has_no_name():
    image, labels = scene()
    labels[:] = 0
    labels[:, 100:115] = 8
    assert np.array_equal(vocseg.overlay(image, labels), vocseg.overlay(image, labels, class_names=VOC_CLASSES))


@pytest.mark.parametrize("size", [(0, 3), (1, 1), (1, 900), (700, 2)])
@pytest.mark.parametrize("label", [0, 1, 40, 255])
def test_images_of_any_size_and_labels_without_a_name(size, label):
    image = np.zeros((*size, 3), dtype=np.uint8)
    mixed = vocseg.overlay(image, np.full(size, label), class_names=VOC_CLASSES)
    assert mixed.shape == image.shape
    assert mixed is not image


def test_colours_are_distinct_and_none_is_dark():
    colours = OVERLAY_COLOURS[:21].astype(int)
    distances = np.abs(colours[:, None] - colours).max(2) + 255 * np.eye(21, dtype=int)
    assert distances.min() > 25
    assert (colours @ (0.299, 0.587, 0.114)).min() > 78


@pytest.mark.parametrize(
    ("image", "labels", "opacity", "message"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((4, 5), np.uint8), 0.4, "needs an RGB image"),
        (np.zeros((4, 5, 3)), np.zeros((4, 5), np.uint8), 0.4, "float64"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8), 0.4, r"image's size, \[4, 5\]"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5)), 0.4, "integer labels"),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), -1), 0.4, "from 0 to 255; got -1"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8), 60, "opacity"),
    ],
)
def test_other_arrays_are_refused(image, labels, opacity, message):
    with pytest.raises(VocsegError, match=message):
        vocseg.overlay(image, labels, opacity)


def test_the_legend_is_public_and_takes_the_colours_of_overlays():
    labels = scene()[1]
    assert [name for name, _ in vocseg.legend([labels], VOC_CLASSES)] == ["background", "cat"]
    assert vocseg.legend([labels], VOC_CLASSES, OVERLAY_COLOURS)[1][1].tolist() == OVERLAY_COLOURS[8].tolist()
