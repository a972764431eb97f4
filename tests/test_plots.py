"""Plots: colours of labels and errors, panels and their legends, figures."""

import numpy as np
import pytest
from PIL import Image

from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE
from vocseg.errors import VocsegError
from vocseg.plots import (
    MISSED,
    RIGHT,
    WRONG,
    as_array,
    coloured,
    confusion_figure,
    errors,
    iou_figure,
    legend,
    losses_figure,
    panels,
    preview,
    row_fractions,
    save_png,
    shortened,
)


def test_errors_distinguish_missed_objects_from_other_errors_and_mask_void():
    prediction = np.array([[0, 1, 0, 1, 2, 0, 1]], dtype=np.uint8)
    truth = np.array([[0, 1, 1, 0, 1, 255, 255]], dtype=np.uint8)
    expected = [RIGHT, RIGHT, MISSED, WRONG, WRONG, VOC_PALETTE[255], VOC_PALETTE[255]]
    assert errors(prediction, truth)[0].tolist() == [list(colour) for colour in expected]


@pytest.mark.parametrize(("height", "width"), [(30, 40), (80, 20), (1, 1)])
def test_panels_contain_every_image_and_keep_label_colours(height, width):
    labels = np.full((height, width), 15, dtype=np.uint8)
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    page = panels([(image, coloured(labels))], ("image", "truth"), legend([labels], VOC_CLASSES), width=100)
    assert page.shape[1] == 4 + 2 * 104
    colours = {tuple(colour) for colour in page.reshape(-1, 3).tolist()}
    assert (200, 200, 200) in colours
    assert tuple(VOC_PALETTE[15].tolist()) in colours


def test_legend_contains_only_visible_classes():
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:10], labels[50, 50], labels[60:80] = 3, 7, 255
    assert [name for name, _ in legend([labels], VOC_CLASSES)] == ["background", "bird", "void"]


def test_figures_are_plotted_with_absent_classes(tmp_path):
    matrix = np.array([[5, 1, 0], [2, 2, 0], [0, 0, 0], [3, 0, 0]])
    names = ["background", "a", "b"]
    lines = [{"epoch": 0, "train/loss": 2.0}, {"epoch": 1, "train/loss": 1.0, "val/loss": 1.5}]
    figures = [
        confusion_figure(matrix, names),
        iou_figure({"test": [0.5, 0.2, float("nan")]}, names),
        iou_figure({"one": [0.5, 0.2, float("nan")], "two": [0.1, 0.9, 0.0]}, names),
        losses_figure(lines, "loss", 1),
        losses_figure([], "no epoch yet"),
    ]
    for number, figure in enumerate(figures):
        assert as_array(figure).std() > 5
        save_png(figure, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            assert image.mode == "RGB"


def test_confusion_figure_shows_percentages_of_each_true_class():
    figure = confusion_figure(np.array([[3, 1], [0, 8], [9, 9]]), ["background", "a"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100"]


def test_confusion_figure_of_many_classes_has_no_numbers_and_few_labels():
    names = [f"a class with a rather long name, number {number}" for number in range(150)]
    figure = confusion_figure(np.eye(150), names)
    axes = figure.axes[0]
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()[:2]] == [shortened(names[0]), shortened(names[3])]
    assert max(as_array(figure, dpi=80).shape) < 900
    below = confusion_figure(np.full((30, 30), 1) + 200 * np.eye(30), names[:30])
    assert len(below.axes[0].texts) == 30  # not the cells below 1 %
    assert len(below.axes[0].get_yticklabels()) == 30


def test_row_fractions_leave_out_void_and_classes_without_pixels():
    assert row_fractions(np.array([[3, 1], [0, 0], [9, 9]])).tolist() == [[0.75, 0.25], [0, 0]]


def test_a_preview_says_what_its_colours_mean():
    truth = np.zeros((40, 60), dtype=np.uint8)
    truth[:20] = 15
    picture = preview(np.full((40, 60, 3), 200, dtype=np.uint8), truth, np.zeros_like(truth), VOC_CLASSES)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {MISSED, WRONG, tuple(VOC_PALETTE[15].tolist())} <= colours  # wrong is in the legend alone


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (4,)])
def test_a_confusion_matrix_of_other_classes_is_refused(shape):
    with pytest.raises(VocsegError, match="of 2 classes has 2 or 3 rows and 2 columns; got"):
        confusion_figure(np.ones(shape), ["background", "a"])
