"""Confusion matrices against dense ones, and the scores that follow from them."""

import math

import numpy as np
import pytest
import torch

from vocseg.confusion import ConfusionMatrices, confusion_matrix, iou_of, scores_of


def random_matrices(seed=0, number=30, classes=4):
    """Dense matrices, int64 [N, C+1, C], of which most cells are zero, and the same as ConfusionMatrices."""
    rng = np.random.default_rng(seed)
    shape = (number, classes + 1, classes)
    dense = np.where(rng.random(shape) < 0.3, rng.integers(1, 100, shape), 0)
    return dense, ConfusionMatrices.from_dense(dense)


def same(first, second):
    """Whether two ConfusionMatrices have equal arrays of equal types."""
    pairs = zip(first.to_arrays().values(), second.to_arrays().values(), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_confusion_matrix_has_a_row_for_void():
    matrix = confusion_matrix(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]]), 2)
    assert matrix.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_labels_outside_the_classes_count_as_void():
    target = torch.tensor([[-1, -100, 3, 4, 255, 1000, 2**40, -(2**40), 2]])
    matrix = confusion_matrix(torch.ones_like(target), target, 3)
    assert matrix.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 8, 0]]


@pytest.mark.parametrize("classes", [3, 255, 300])
def test_every_integer_type_counts_the_same(classes):
    target = torch.tensor([[0, 1, 2, 2, 254, 255]])
    prediction = torch.tensor([[0, 2, 2, 1, 0, 0]])
    expected = confusion_matrix(prediction, target, classes)
    assert expected.sum() == 6
    for target_type in (torch.uint8, torch.int16, torch.int32, torch.int64):
        for prediction_type in (torch.uint8, torch.int32, torch.int64):
            counted = confusion_matrix(prediction.to(prediction_type), target.to(target_type), classes)
            assert torch.equal(counted, expected), (target_type, prediction_type)


def test_sparse_matrices_equal_the_dense_ones():
    dense, matrices = random_matrices()
    dense[7] = 0  # an image without pixels
    matrices = ConfusionMatrices.from_dense(dense)
    assert len(matrices) == len(dense)
    assert np.array_equal(np.stack(list(matrices)), dense)
    assert np.array_equal(matrices[-1], dense[-1])
    with pytest.raises(IndexError):
        matrices[len(dense)]
    assert np.array_equal(matrices.total(), dense.sum(0))
    assert matrices.total().dtype == matrices[0].dtype == np.int64
    background = np.zeros_like(dense)
    background[..., 0] = dense.sum(-1)
    assert same(matrices.all_background(), ConfusionMatrices.from_dense(background))
    hits, union = matrices.marginals()
    valid = dense[:, :-1]
    assert np.array_equal(hits, valid.diagonal(axis1=1, axis2=2))
    assert np.array_equal(union, valid.sum(1) + valid.sum(2) - hits)


def test_arrays_in_a_file_come_back_as_the_same_matrices(tmp_path):
    _, matrices = random_matrices()
    np.savez(tmp_path / "a.npz", **matrices.to_arrays("val_"))
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert same(ConfusionMatrices.from_arrays(file, "val_"), matrices)
        with pytest.raises(KeyError):
            ConfusionMatrices.from_arrays(file)
    none = ConfusionMatrices.from_dense(np.zeros((0, 4, 3), dtype=np.int64))
    assert len(ConfusionMatrices.from_arrays(none.to_arrays())) == 0
    assert none.total().tolist() == [[0] * 3] * 4


def test_miou_per_image_is_the_score_of_each_matrix():
    dense, _ = random_matrices()
    dense[3, :-1] = 0  # all void
    expected = [scores_of(matrix)["miou"] for matrix in dense]
    assert math.isnan(expected[3])
    assert np.array_equal(ConfusionMatrices.from_dense(dense).miou_per_image(), expected, equal_nan=True)


def test_scores_per_image_are_those_of_each_matrix():
    dense, sparse = random_matrices()
    expected = [iou_of(matrix) for matrix in dense]
    assert np.array_equal(sparse.iou_per_image(), expected, equal_nan=True)
    expected = [scores_of(matrix)["pixel_accuracy"] for matrix in dense]
    assert np.array_equal(sparse.pixel_accuracy_per_image(), expected, equal_nan=True)
