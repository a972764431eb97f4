from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch

from vocseg.data.datasets import SegmentationDataset, collate
from vocseg.data.files import Sample
from vocseg.data.transforms import (
    EVAL_PIPELINES,
    MEAN,
    STD,
    TRAIN_PIPELINES,
    Pipeline,
    check_only_resizes,
    make_transforms,
    normalise,
    normalise_batch,
    to_tensor,
    transform_to_config,
)
from vocseg.errors import VocsegError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
MASK = np.full((60, 80), 7, dtype=np.uint8)


@pytest.mark.parametrize(
    "transform",
    [
        A.Affine(translate_percent=0.4, p=1),
        A.Rotate((45, 45), p=1),
        A.PadIfNeeded(100, 120),
        A.ShiftScaleRotate(shift_limit=(0.4, 0.4), p=1, border_mode=0),
        A.Affine(translate_percent=0.4, p=1, fill_mask=255),
        A.RandomCrop(90, 90, pad_if_needed=True),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_pixels_that_a_transform_adds_are_void(transform):
    labels = Pipeline([transform], num_classes=21)(IMAGE, MASK)["mask"]
    assert set(labels.unique().tolist()) == {7, 255}


def test_labels_are_unchanged_without_transforms():
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask[(mask > 20) & (mask < 255)] = 0
    item = Pipeline([], num_classes=21)(IMAGE[:16, :16], mask)
    assert item["mask"].dtype == torch.int64
    assert np.array_equal(item["mask"].numpy(), mask)


def test_normalisation_equals_albumentations():
    expected = A.Normalize(MEAN, STD)(image=IMAGE)["image"].transpose(2, 0, 1)
    result = to_tensor(IMAGE)
    assert result.dtype == torch.float32
    assert np.allclose(result.numpy(), expected, atol=1e-5)


def test_random_draws_depend_only_on_seed_epoch_and_index():
    def draw(seed, epoch, index):
        return Pipeline(TRAIN_PIPELINES["crop"](32, 32), 21, seed)(IMAGE, MASK, epoch, index)["image"]

    assert torch.equal(draw(0, 1, 2), draw(0, 1, 2))
    pipeline = Pipeline(TRAIN_PIPELINES["crop"](32, 32), 21, 0)
    for _ in range(3):  # earlier draws have no influence
        pipeline(IMAGE, MASK, 9, 9)
    assert torch.equal(pipeline(IMAGE, MASK, 1, 2)["image"], draw(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not torch.equal(draw(0, 1, 2), draw(*other))


@pytest.mark.parametrize("name", TRAIN_PIPELINES)
def test_train_pipelines_return_the_image_size(name):
    item = Pipeline(make_transforms(name, TRAIN_PIPELINES, (32, 48), "train_transforms"), 21)(IMAGE, MASK)
    assert item["image"].shape == (3, 32, 48)
    assert item["mask"].shape == (32, 48)


def test_eval_pipelines_only_resize():
    for name, size in (("resize", (32, 48)), ("keep_ratio", (36, 48))):
        transforms = make_transforms(name, EVAL_PIPELINES, (32, 48), "eval_transforms")
        check_only_resizes(transforms)
        assert Pipeline(transforms, 21)(IMAGE, MASK)["mask"].shape == size


@pytest.mark.parametrize(
    "transform",
    [A.HorizontalFlip(p=1), A.VerticalFlip(p=1), A.CenterCrop(90, 90), A.PadIfNeeded(300, 300), A.Transpose(p=1)],
    ids=lambda transform: type(transform).__name__,
)
def test_eval_transforms_that_move_pixels_are_refused(transform):
    with pytest.raises(VocsegError, match="move pixels"):
        check_only_resizes([A.Resize(100, 120), transform])


@pytest.mark.parametrize(
    "transform",
    [
        A.HorizontalFlip(p=0.01),
        A.Compose([A.OneOf([A.VerticalFlip(p=0.01), A.Transpose(p=0.01)], p=0.01)], p=0.01),
        A.PadIfNeeded(160, 160),
        A.PadIfNeeded(600, 600),
        A.RandomCrop(180, 240, pad_if_needed=True),
        A.CenterCrop(512, 512, pad_if_needed=True),
        A.ShiftScaleRotate(p=0.1),
    ],
    ids=lambda transform: type(transform).__name__,
)
def test_eval_transforms_that_move_pixels_of_some_images_or_sometimes_are_refused(transform):
    probability = transform.p
    with pytest.raises(VocsegError, match="move pixels"):
        check_only_resizes([transform])
    assert transform.p == probability


def test_eval_transforms_that_resize_at_random_and_change_colours_are_allowed():
    check_only_resizes(
        [A.RandomScale(0.3), A.ColorJitter(), A.GaussianBlur(p=0.1), A.SmallestMaxSize(300), A.ToGray(p=0.1)]
    )


def test_eval_transforms_that_fail_for_some_images_are_refused():
    with pytest.raises(VocsegError, match="fail for an image of 240x180"):
        check_only_resizes([A.CenterCrop(500, 500)])


def test_transforms_can_be_names_configurations_or_objects():
    transforms = [
        "HorizontalFlip",
        {"class_path": "albumentations.Rotate", "init_args": {"limit": [5, 5]}},
        {"class_path": "OneOf", "init_args": {"p": 0.5, "transforms": [{"class_path": "albumentations.Blur"}]}},
        A.Resize(8, 8),
    ]
    built = make_transforms(transforms, TRAIN_PIPELINES, (8, 8), "train_transforms")
    assert [type(transform).__name__ for transform in built] == ["HorizontalFlip", "Rotate", "OneOf", "Resize"]


def test_configuration_rebuilds_the_same_transform():
    original = [A.OneOf([A.Rotate((10, 20), p=1), A.HorizontalFlip(p=1)], p=0.7), A.RandomResizedCrop((16, 16))]
    rebuilt = make_transforms([transform_to_config(t) for t in original], TRAIN_PIPELINES, (16, 16), "train_transforms")
    for index in range(5):
        first, second = (Pipeline(transforms, 21)(IMAGE, MASK, 0, index) for transforms in (original, rebuilt))
        assert torch.equal(first["image"], second["image"])


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ("corp", "Did you mean 'crop'"),
        (["HorizontalFlipp"], "Did you mean 'HorizontalFlip'"),
        ([{"class_path": "HorizontalFlip", "init_args": {"prob": 1}}], "prob"),
        ([A.Normalize()], "take it out"),
        ([{"class_path": "os.system", "init_args": {}}], r"os\.system"),
    ],
)
def test_wrong_transforms_raise_helpful_errors(transforms, message):
    with pytest.raises(VocsegError, match=message):
        make_transforms(transforms, TRAIN_PIPELINES, (8, 8), "train_transforms")


@pytest.mark.parametrize("name", TRAIN_PIPELINES)
def test_named_pipelines_return_the_image_size_and_known_labels(name):
    for index in range(10):
        item = Pipeline(TRAIN_PIPELINES[name](48, 40), num_classes=21)(IMAGE, MASK, index=index)
        assert item["image"].shape == (3, 48, 40)
        assert set(item["mask"].unique().tolist()) <= {7, 255}


@pytest.mark.parametrize(
    ("name", "variants"), [("resize", 1), ("flip", 2), ("flip_both", 4), ("affine", 10), ("paper", 10), ("jitter", 10)]
)
def test_named_pipelines_produce_the_expected_number_of_variants(name, variants):
    images = {
        Pipeline(TRAIN_PIPELINES[name](60, 80), 21)(IMAGE, MASK, index=index)["image"].numpy().tobytes()
        for index in range(40)
    }
    assert len(images) == variants if variants < 10 else len(images) > 30


def test_pixels_that_a_transform_adds_stay_void_if_void_is_background():
    mask = MASK.copy()
    mask[:, 40:] = 255
    labels = Pipeline([A.Affine(translate_percent={"x": 0.25, "y": 0.0}, p=1)], 21, void_label=0)(IMAGE, mask)["mask"]
    assert set(labels[:, :20].unique().tolist()) == {255}
    assert set(labels[:, 60:].unique().tolist()) == {0}
    assert mask[0, 79] == 255  # the given array is not changed


@pytest.mark.parametrize(("name", "largest"), [("jitter", 2.0), ("jitter_strong", 1.5)])
def test_jitter_scales_an_object_by_at_least_half_and_pads_small_images_with_void(name, largest):
    image, mask = np.full((60, 80, 3), 128, np.uint8), np.zeros((60, 80), np.uint8)
    mask[20:40, 20:50] = 7
    scales, voids = [], []
    for index in range(60):
        labels = Pipeline(TRAIN_PIPELINES[name](200, 200), 21)(image, mask, index=index)["mask"].numpy()
        height, width = (int((labels == 7).any(axis).sum()) for axis in (1, 0))
        assert abs(height / 20 - width / 30) <= 0.1  # the aspect ratio is kept
        scales.append(height / 20)
        voids.append((labels == 255).mean())
        assert (labels == 255).mean() == pytest.approx(
            1 - min(200, 60 * scales[-1]) * 80 * scales[-1] / 200**2, abs=0.04
        )
    assert 0.45 <= min(scales) < 0.6
    assert largest - 0.15 < max(scales) <= largest + 0.05
    assert max(voids) > 0.8


@pytest.mark.parametrize("size", [(7, 9), (3, 3), (1, 300)])
def test_normalising_a_batch_equals_normalising_each_image(size):
    images = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = torch.stack([to_tensor(image) for image in images])
    for given in (batch, batch.contiguous()):
        assert torch.equal(normalise(given), expected)
    assert torch.equal(normalise(batch[0]), expected[0])
    masks = torch.full((4, *size), 255, dtype=torch.uint8)
    given = {"image": batch, "mask": masks, "index": 3}
    changed = normalise_batch(given)
    assert changed["mask"].dtype == torch.int64
    assert (changed["mask"] == 255).all()
    assert given["image"] is batch  # the given batch is not changed
    assert torch.equal(normalise_batch(changed)["image"], expected)  # what is normalised stays so


def test_pipeline_is_its_transform_and_normalisation():
    pipeline = Pipeline(TRAIN_PIPELINES["crop"](32, 40), 21)
    stored, ready = pipeline.transform(IMAGE, MASK, 2, 5), pipeline(IMAGE, MASK, 2, 5)
    assert stored["image"].dtype == stored["mask"].dtype == torch.uint8
    assert torch.equal(ready["image"], to_tensor(stored["image"].permute(1, 2, 0).numpy()))
    assert torch.equal(ready["mask"], stored["mask"].long())


class SometimesFloat(A.ImageOnlyTransform):
    """Gives floats of 0 to 255, for every second image on average."""

    def apply(self, img, **params):
        return img.astype(np.float32)


def test_transforms_that_give_floats_are_normalised_at_once_and_can_share_a_batch():
    arrays = [(IMAGE, MASK)] * 8
    samples = [Sample(Path(f"{index}.jpg"), Path(f"{index}.png")) for index in range(8)]
    pipeline = Pipeline([SometimesFloat(p=0.5)], 21)
    for copy_paste in (0.0, 1.0):
        data = SegmentationDataset(samples, pipeline, evaluates=False, arrays=arrays, copy_paste=copy_paste)
        items = [data[0, index] for index in range(8)]
        assert {item["image"].dtype for item in items} == {torch.uint8, torch.float32} or copy_paste
        image = normalise_batch(collate(items))["image"]
        assert all(torch.equal(each, to_tensor(IMAGE)) for each in image)
