"""Plots: colours of labels and errors, panels and their legends, figures."""

import numpy as np
import pytest
from PIL import Image

from vocseg.data.labels import VOC_CLASSES, VOC_PALETTE
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
    save_png,
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
