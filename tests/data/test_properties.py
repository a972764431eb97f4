"""Property-based tests: any file becomes a correct item, or an error that names the file."""

import importlib.util
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vocseg import VocsegError
from vocseg.data.datasets import SegmentationDataset, collate
from vocseg.data.files import Sample
from vocseg.data.images import read_image
from vocseg.data.transforms import EVAL_PIPELINES, TRAIN_PIPELINES, Pipeline

MODES = ["RGB", "L", "P", "RGBA", "LA", "CMYK", "YCbCr", "1", "I", "I;16", "F"]
SUFFIX = {"CMYK": ".jpg", "YCbCr": ".jpg", "F": ".tiff", "I": ".tiff"}
TRANSFORMS = [
    A.HorizontalFlip(p=1),
    A.Rotate((-180, 180), p=1),
    A.Perspective(p=1),
    A.GaussianBlur(p=1),
    A.RandomScale((-0.5, 0.5), p=1),
    A.PadIfNeeded(50, 50, p=1),
    A.ElasticTransform(p=1),
    A.CoarseDropout(p=1),
]
SIDES = st.integers(1, 40)
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def write_sample(folder: Path, image_mode: str, mask_mode: str, size, mask_size, labels, rng) -> Sample:
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    if image_mode in ("I", "I;16", "F"):
        image = Image.fromarray(rng.integers(0, 256, size).astype({"I": "i4", "I;16": "u2", "F": "f4"}[image_mode]))
    else:
        image = image.convert(image_mode)
    image_path = folder / f"image{SUFFIX.get(image_mode, '.png')}"
    image.save(image_path)
    mask = Image.fromarray(rng.choice(labels, mask_size).astype(np.uint8), mode="L")
    if mask_mode == "P":
        mask.putpalette(list(range(256)) * 3)
    elif mask_mode == "I;16":
        mask = Image.fromarray(np.array(mask).astype(np.uint16))
    elif mask_mode != "L":
        mask = mask.convert(mask_mode)
    mask.save(folder / "mask.png")
    return Sample(image_path, folder / "mask.png")


def is_brighter_than_one(path: Path) -> bool:
    with Image.open(path) as file:
        return np.array(file).max() > 1


@SETTINGS
@given(
    image_mode=st.sampled_from(MODES),
    mask_mode=st.sampled_from(["P", "L", "P", "L", "RGB", "1", "I;16", "LA"]),
    size=st.tuples(SIDES, SIDES),
    shift=st.sampled_from([0, 0, 0, 1]),
    labels=st.lists(st.sampled_from([0, 1, 2, 5, 20, 21, 100, 254, 255]), min_size=1, max_size=5),
    num_classes=st.sampled_from([2, 3, 21, 101, 254]),
    void_label=st.sampled_from([0, 255]),
    pipeline=st.sampled_from([*TRAIN_PIPELINES, *EVAL_PIPELINES]),
    seed=st.integers(0, 2**32 - 1),
)
def test_files_give_correct_items_or_errors_that_name_them(
    image_mode, mask_mode, size, shift, labels, num_classes, void_label, pipeline, seed, tmp_path_factory
):
    assume(not pipeline.startswith("jitter") or min(size) > 1)  # half of one pixel is none
    rng = np.random.default_rng(seed)
    mask_size = (size[0] + shift, size[1])
    sample = write_sample(tmp_path_factory.mktemp("files"), image_mode, mask_mode, size, mask_size, labels, rng)
    transforms = {**TRAIN_PIPELINES, **EVAL_PIPELINES}[pipeline](24, 32)
    data = SegmentationDataset([sample], Pipeline(transforms, num_classes, seed, void_label), evaluates=True)
    with Image.open(sample.mask) as file:
        stored = np.array(file)
    if stored.ndim == 3:
        stored = stored[..., 0]
    is_known = set(np.unique(stored).tolist()) <= {*range(num_classes), 255}
    unreadable_image = image_mode == "I" or (image_mode == "F" and is_brighter_than_one(sample.image))
    if shift or not is_known or unreadable_image:
        with pytest.raises(VocsegError, match=r"image\.tif" if unreadable_image else r"mask\.png"):
            data[3, 0]
        return
    item = data[3, 0]
    assert item["image"].dtype == item["mask"].dtype == torch.uint8
    assert item["mask"].shape == item["image"].shape[1:]
    assert set(item["mask"].unique().tolist()) <= {*stored.ravel().tolist(), void_label, 255}
    assert np.array_equal(item["original_mask"].numpy(), stored)
    batch = collate([item, data[4, 0]])
    assert batch["image"].shape[0] == len(batch["original_mask"]) == 2


@SETTINGS
@given(
    size=st.tuples(SIDES, SIDES),
    chosen=st.lists(st.sampled_from(range(len(TRANSFORMS))), max_size=3),
    num_classes=st.sampled_from([2, 21, 254]),
    epoch=st.integers(0, 1000),
    seed=st.integers(0, 2**32 - 1),
)
def test_transforms_add_only_void_labels_and_repeat_their_draws(size, chosen, num_classes, epoch, seed):
    """The transformed mask has only labels of the given mask, which has no background, and void."""
    rng = np.random.default_rng(seed)
    labels = np.unique(rng.integers(1, num_classes, 3))
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = rng.choice(labels, size).astype(np.uint8)
    pipeline = Pipeline([TRANSFORMS[index] for index in chosen], num_classes, seed)
    data = SegmentationDataset(
        [Sample(Path("a.png"), Path("b.png"))], pipeline, evaluates=False, arrays=[(image, mask)]
    )
    try:
        first, again = (data[epoch, 0] for _ in range(2))
    except VocsegError as error:  # some transforms fail on images of a few pixels
        assert f"cannot handle a.png ({size[1]}x{size[0]})" in str(error)  # noqa: PT017
        assert min(size) < 4
        return
    assert set(first["mask"].unique().tolist()) <= {*labels.tolist(), 255}
    assert first["image"].shape[1:] == first["mask"].shape
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["mask"], again["mask"])


@pytest.fixture(scope="module")
def fuzz():
    """The module benchmarks/fuzz.py."""
    path = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
    spec = importlib.util.spec_from_file_location("fuzz", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_files_are_read_correctly_or_refused(fuzz, tmp_path):
    outcomes = list(fuzz.run_cases(200, tmp_path, seed=1))
    assert {outcome for _, outcome in outcomes} == {"read", "refused"}
    assert len(outcomes) >= 200


def test_decompression_bomb_is_refused(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(VocsegError, match=r"bomb\.png is refused: Image size \(400000000 pixels\)"):
        read_image(tmp_path / "bomb.png")
