import numpy as np
import pytest
import torch

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, inference
from vocseg.data.datasets import collate
from vocseg.inference import batch_logits, label_map, preprocess, probability_map
from vocseg.network import resize


def test_batch_logits_groups_images_by_size_and_removes_their_padding():
    images = torch.rand(3, 3, 24, 24)
    sizes = torch.tensor([[16, 24], [24, 16], [16, 24]])
    seen = []

    def network(image):
        seen.append(image)
        return image

    groups = list(batch_logits(network, images, sizes))
    assert [indices for indices, _ in groups] == [[0, 2], [1]]
    assert [tuple(image.shape) for image in seen] == [(2, 3, 16, 24), (1, 3, 24, 16)]
    assert torch.equal(groups[0][1], images[[0, 2], :, :16])


def test_a_batch_without_input_sizes_is_one_group():
    images = torch.rand(3, 3, 5, 7)
    ((indices, logits),) = batch_logits(lambda image: image, images)
    assert indices == [0, 1, 2]
    assert torch.equal(logits, images)


def test_a_prediction_does_not_depend_on_the_batch_of_the_image():
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["background", "a", "b"]).eval()
    images = [torch.rand(3, *size) for size in ((16, 24), (24, 16), (16, 24))]
    batch = collate([{"image": image, "input_size": image.shape[-2:], "original_size": (30, 40)} for image in images])
    together = task.predict_step(batch, 0)
    for image, prediction in zip(images, together, strict=True):
        (alone,) = task.predict_step({"image": image[None], "original_size": [(30, 40)]}, 0)
        assert prediction.shape == (30, 40)
        assert prediction.dtype == torch.uint8
        assert torch.equal(prediction, alone)


def test_the_labels_of_a_large_image_do_not_depend_on_how_many_classes_are_resized_at_once(monkeypatch):
    logits = torch.randn(21, 9, 7)
    whole = label_map(logits, (90, 130))
    assert torch.equal(whole, resize(logits[None], (90, 130))[0].argmax(0))
    for at_once in (1, 4):
        monkeypatch.setattr(inference, "LOGITS_AT_ONCE", at_once * 90 * 130)
        assert torch.equal(label_map(logits, (90, 130)), whole)


def test_the_lowest_of_equally_likely_classes_is_the_label(monkeypatch):
    logits = torch.zeros(5, 4, 4)
    monkeypatch.setattr(inference, "LOGITS_AT_ONCE", 2 * 16)
    assert torch.equal(label_map(logits, (4, 4)), torch.zeros(4, 4, dtype=torch.int64))


def test_logits_of_no_class_have_no_label():
    with pytest.raises(ValueError, match="no class"):
        label_map(torch.zeros(0, 4, 4), (4, 4))


def test_probabilities_sum_to_one_and_agree_with_the_labels():
    logits = torch.randn(4, 6, 6)
    probabilities = probability_map(logits, torch.tensor([11, 13]))
    assert probabilities.shape == (4, 11, 13)
    assert torch.allclose(probabilities.sum(0), torch.ones(11, 13))
    assert torch.equal(probabilities.argmax(0), label_map(logits, (11, 13)))


@pytest.mark.parametrize("pipeline", ["resize", "keep_ratio"])
def test_preprocess_prepares_an_image_as_the_data_module_does(pipeline, voc_root):
    from PIL import Image

    from vocseg import VOCDataModule
    from vocseg.data.synthetic import SYNTHETIC_CLASSES

    data = VOCDataModule(
        voc_root, class_names=SYNTHETIC_CLASSES, image_size=40, num_workers=0, eval_transforms=pipeline
    )
    data.setup("validate")
    with Image.open(data.datasets["val"].samples[0].image) as image:
        pixels = np.array(image.convert("RGB"))
    prepared = preprocess(pixels, dict(data.hparams), len(SYNTHETIC_CLASSES))
    assert torch.equal(prepared[0], data.datasets["val"][0]["image"])


def test_without_settings_of_a_data_module_an_image_keeps_its_size():
    pixels = np.zeros((7, 9, 3), dtype=np.uint8)
    assert preprocess(pixels, {}, 3).shape == (1, 3, 7, 9)
