import json
from itertools import pairwise

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from vocseg import Inference, SegmentationNetwork, SegmentationTask, SkipDecoder, StridedEncoder, VocsegError, inference
from vocseg.data.datasets import collate
from vocseg.inference import _windows, batch_logits, label_map, preprocess, probability_map
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
        monkeypatch.setattr(inference, "LOGITS_IN_CACHE", at_once * 90 * 130)
        assert torch.equal(label_map(logits, (90, 130)), whole)
        small = label_map(logits, (90, 130), torch.uint8)
        assert small.dtype == torch.uint8
        assert torch.equal(small.long(), whole)


def test_classes_that_are_compared_one_by_one_take_few_copies_of_the_map_and_leave_the_logits(monkeypatch):
    size = (640, 800)
    logits = torch.nn.functional.interpolate(torch.randn(1, 6, 8, 8), size, mode="bicubic")[0]
    monkeypatch.setattr(inference, "LOGITS_IN_CACHE", 1)
    before = logits.clone()
    with torch.profiler.profile(profile_memory=True) as profile:
        labels = label_map(logits, size, torch.uint8)
    assert torch.equal(logits, before)
    assert torch.equal(labels.long(), logits.argmax(0))
    # an int64 map of the size, as max returns with the indices, is larger than all that is allocated at once
    assert max(event.cpu_memory_usage for event in profile.events()) < 8 * size[0] * size[1]


def test_the_lowest_of_equally_likely_classes_is_the_label(monkeypatch):
    logits = torch.zeros(5, 4, 4)
    monkeypatch.setattr(inference, "LOGITS_IN_CACHE", 2 * 16)
    assert torch.equal(label_map(logits, (4, 4)), torch.zeros(4, 4, dtype=torch.int64))


def blobs(classes, occurring, size):
    """Logits as of a trained network: in large parts of the image most classes are far below the best."""
    generator = torch.Generator().manual_seed(occurring)
    coarse = torch.randn(1, classes, 5, 5, generator=generator)
    coarse[:, torch.randperm(classes, generator=generator)[occurring:]] -= 6
    return nn.functional.interpolate(coarse, size, mode="bicubic")[0]


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("size", [(224, 224), (61, 83), (7, 1), (8, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("target", [(375, 500), (140, 131), (30, 41), (300, 20)], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 21, 300])
def test_labels_are_those_of_resize_and_argmax(size, target, layout, classes):
    logits = blobs(classes, classes, (size[0] + 3, size[1] + 5))[None].contiguous(memory_format=layout)[0]
    logits = logits[:, : size[0], : size[1]]  # as without padding
    expected = resize(logits[None].contiguous(), target)[0].argmax(0)
    for dtype in (torch.int64, torch.uint8) if classes <= 256 else (torch.int64, torch.int16):
        labels = label_map(logits, target, dtype)
        assert labels.dtype == dtype
        assert torch.equal(labels.long(), expected)


def test_many_equal_values_give_the_labels_of_resize_and_argmax():
    logits = torch.nn.functional.interpolate(torch.randint(0, 3, (1, 6, 9, 7)).float(), (63, 49))[0]
    expected = resize(logits[None], (140, 131))[0].argmax(0)
    assert torch.equal(label_map(logits, (140, 131)), expected)
    assert torch.equal(label_map(logits.repeat(2, 1, 1), (140, 131)), expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_only_logits_at_borders_of_classes_are_resized(monkeypatch, layout):
    resized = []
    monkeypatch.setattr(inference, "resize", lambda part, to: resized.append(part.shape[1]) or resize(part, to))
    areas = blobs(21, 21, (120, 120))[None].contiguous(memory_format=layout)[0]
    noise = torch.randn(1, 21, 120, 120).contiguous(memory_format=layout)[0]
    label_map(areas, (240, 200))
    assert not resized
    # with a border nearly everywhere, resizing all is faster
    assert torch.equal(label_map(noise, (240, 200)), resize(noise[None].contiguous(), (240, 200))[0].argmax(0))
    assert sum(resized) == 21


@pytest.mark.parametrize("classes", [3, 4, 7, 8, 24, 150])
@pytest.mark.parametrize("most", [0, 1, 3, 4, 7, 21, 200])
def test_no_three_of_many_classes_are_resized_at_once(classes, most):
    at_once = inference._at_once(classes, most)
    sizes = [min(at_once, classes - first) for first in range(0, classes, at_once)]
    assert 3 not in sizes or classes == 3
    assert max(sizes) <= max(most, 1) or classes == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_labels_of_half_precision_logits_are_those_of_resize_and_argmax(dtype):
    for occurring in (3, 21):
        logits = blobs(21, occurring, (61, 83)).to(dtype)
        assert torch.equal(label_map(logits, (90, 131)), resize(logits[None], (90, 131))[0].argmax(0))


def test_logits_that_are_not_finite_are_resized_as_they_are():
    logits = blobs(5, 2, (40, 40))
    logits[1, 20, 20] = float("inf")
    logits[3, 5, 5] = float("-inf")
    assert torch.equal(label_map(logits, (80, 80)), resize(logits[None], (80, 80))[0].max(0).indices)
    logits[:] = float("nan")
    assert not label_map(logits, (80, 80)).any()


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
    from vocseg.data.transforms import normalise

    data = VOCDataModule(
        voc_root, class_names=SYNTHETIC_CLASSES, image_size=40, num_workers=0, eval_transforms=pipeline
    )
    data.setup("validate")
    with Image.open(data.datasets["val"].samples[0].image) as image:
        pixels = np.array(image.convert("RGB"))
    prepared = preprocess(pixels, dict(data.hparams), len(SYNTHETIC_CLASSES))
    assert torch.equal(prepared[0], normalise(data.datasets["val"][0]["image"]))


def test_without_settings_of_a_data_module_an_image_keeps_its_size():
    pixels = np.zeros((7, 9, 3), dtype=np.uint8)
    assert preprocess(pixels, {}, 3).shape == (1, 3, 7, 9)


class Features(nn.Module):
    """A network of stride 1 with a receptive field of 9 pixels, which a window therefore sees whole but at its rim."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image):
        return 4 * self.layers(image)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SegmentationNetwork(StridedEncoder(widths=(4, 8)), SkipDecoder([4, 8], [2, 4], 5, width=8)).eval()


def test_by_default_the_network_is_called_once(network):
    image, calls = torch.rand(2, 3, 21, 30), []
    logits = Inference()(lambda each: calls.append(each) or network(each), image, network.stride)
    assert calls[0] is image
    assert len(calls) == 1
    assert torch.equal(logits, network(image))
    assert Inference().is_plain
    assert str(Inference()) == ""


@pytest.mark.parametrize("size", [(21, 30), (3, 2), (64, 64)])
@pytest.mark.parametrize("more", [{}, {"scales": [0.5, 1.0], "flip": True}])
def test_windows_that_cover_the_image_change_nothing(more, size, network):
    image = torch.rand(2, 3, *size)
    whole = Inference(**more)(network, image, network.stride)
    assert torch.equal(Inference(window=64, **more)(network, image, network.stride), whole)
    assert torch.isfinite(whole).all()


def test_flip_and_scales_are_the_mean_of_the_probabilities(network):
    image = torch.rand(1, 3, 20, 33)
    expected = torch.zeros(1, 5, 20, 33)
    for size in ((15, 25), (20, 33), (25, 41)):
        resized = resize(image, size)
        expected += resize(network(resized).softmax(1), (20, 33)) / 6
        expected += resize(network(resized.flip(-1)).softmax(1), (20, 33)).flip(-1) / 6
    logits = Inference([0.75, 1, 1.25], flip=True)(network, image)
    assert torch.allclose(logits.softmax(1), expected, atol=1e-5)
    assert torch.allclose(logits.exp().sum(1), torch.ones(1, 20, 33), atol=1e-5)
    flipped = Inference(flip=True)(network, image).softmax(1)
    assert torch.allclose(flipped, (network(image).softmax(1) + network(image.flip(-1)).softmax(1).flip(-1)) / 2)


def test_a_probability_of_zero_does_not_make_nan():
    logits = Inference(flip=True)(
        lambda image: torch.stack([image[:, 0] * 0, image[:, 0] * 0 - 1e4], 1), torch.rand(1, 3, 8, 8)
    )
    assert torch.isfinite(logits).all()
    assert probability_map(logits[0], (11, 5)).isfinite().all()


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_windows_sum_to_one_start_at_strides_and_overlap_enough(overlap):
    for size in (33, 64, 100, 131):
        windows = _windows(size, 32, overlap, 8)
        total = torch.zeros(size)
        for part, weights in windows:
            assert part.start % 8 == 0
            total[part] += weights
        assert torch.allclose(total, torch.ones(size))
        for (before, _), (after, _) in pairwise(windows):
            assert before.stop - after.start >= min(int(32 * overlap), 24)
            assert after.start > before.start


def test_windows_agree_with_the_whole_image_where_they_see_enough_of_it():
    image, network = torch.rand(1, 3, 90, 75), Features()
    whole = network(image).softmax(1)
    blended = Inference(window=40, overlap=0.5)(network, image).softmax(1)
    # rows and columns that are within 4 pixels of a window's border inside the image
    near = [torch.zeros(side, dtype=torch.bool) for side in (90, 75)]
    for side, rim in zip((90, 75), near, strict=True):
        for part, _ in _windows(side, 40, 0.5, 1):
            if part.start > 0:
                rim[part.start : part.start + 4] = True
            if part.stop < side:
                rim[part.stop - 4 : part.stop] = True
    inside = ~(near[0][:, None] | near[1])
    assert inside.float().mean() > 0.3
    assert torch.allclose(blended[..., inside], whole[..., inside], atol=1e-5)
    assert (blended - whole).abs().max() < 0.1  # at the rims the weights are small


def test_a_strided_network_has_no_seams(network):
    torch.manual_seed(1)
    image = nn.functional.avg_pool2d(torch.rand(1, 3, 150, 170), 5, 1, 2)

    def largest_step(inference):
        """Between two columns, away from the image's own borders."""
        probabilities = inference(lambda part: 30 * network(part), image, network.stride).softmax(1)[..., 20:150]
        return (probabilities[..., 1:] - probabilities[..., :-1]).abs().mean((0, 1, 2)).max()

    whole = largest_step(Inference())
    assert largest_step(Inference(window=64, overlap=0.5)) < 1.5 * whole
    assert largest_step(Inference(window=64, overlap=0.25)) < 1.5 * whole
    assert largest_step(Inference(window=64, overlap=0)) > 5 * whole  # windows side by side do have seams


def test_one_window_at_a_time_is_in_the_network(network):
    sizes = []
    hook = network.register_forward_hook(lambda module, inputs, logits: sizes.append((*logits.shape,)))
    peak = 0

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal peak
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                peak = max(peak, result.untyped_storage().nbytes())
            return result

    with Allocations():
        result = Inference(window=32)(network, torch.rand(1, 3, 200, 200), network.stride)
    hook.remove()
    assert len(sizes) == 12 * 12
    assert set(sizes) <= {(1, 5, height, width) for height in (24, 32) for width in (24, 32)}
    assert peak == result.untyped_storage().nbytes()  # the sum is the largest tensor, and not one per window


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": []}, "at least one"),
        ({"scales": [1, 0]}, "positive"),
        ({"scales": [-0.5]}, "positive"),
        ({"scales": [float("nan")]}, "positive"),
        ({"scales": 2}, "list of numbers"),
        ({"window": 0}, "positive number of pixels"),
        ({"overlap": 1}, "below 1"),
        ({"overlap": -0.1}, "from 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(VocsegError, match=message):
        Inference(**settings)


def test_a_window_smaller_than_the_stride_is_refused(network):
    with pytest.raises(VocsegError, match="3 pixels, but the network's stride is 4"):
        Inference(window=3)(network, torch.rand(1, 3, 8, 8), network.stride)


def test_a_task_scores_predicts_and_segments_alike_with_it():
    torch.manual_seed(0)
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["background", "a", "b"]).eval()
    task.inference = Inference([0.5, 1.5], flip=True, window=16)
    pixels = torch.randint(0, 256, (29, 43, 3), dtype=torch.uint8).numpy()
    image = preprocess(pixels, {}, 3)
    expected = label_map(task.inference(task, image, 4)[0], (29, 43)).to(torch.uint8)
    assert not torch.equal(expected, label_map(task(image)[0], (29, 43)))
    assert torch.equal(task.predict_step(image, 0)[0], expected)
    assert np.array_equal(task.segment(pixels), expected.numpy())
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (scores,) = trainer.test(task, DataLoader([(image[0], expected)]), verbose=False)
    assert scores["test/pixel_accuracy"] == pytest.approx(1)


def test_the_command_line_sets_it_and_the_result_says_so(fit_flags, voc_root, vocseg, tmp_path):
    flags = ["--inference.flip", "true", "--inference.scales", "[0.75,1]", "--inference.window", "40"]
    assert vocseg(*fit_flags, "--trainer.limit_train_batches", 1, "--trainer.max_epochs", 1)[0] == 0
    folder = tmp_path / "lightning_logs" / "quickstart" / "version_0"
    checkpoint = folder / "checkpoints" / "best.ckpt"
    assert vocseg("test", "--ckpt_path", checkpoint)[0] == 0
    plain = json.loads((folder / "test.json").read_text())
    status, out, _ = vocseg("test", "--ckpt_path", checkpoint, *flags)
    assert status == 0
    title = "Test (scales 0.75, 1, flip, windows of 40, overlap 0.5): 4 images"
    assert title in " ".join(out.split())
    scores = json.loads((folder / "test.json").read_text())
    assert scores["inference"] == {"scales": [0.75, 1.0], "flip": True, "window": 40, "overlap": 0.5, "fold": False}
    assert plain["inference"]["window"] is None
    assert scores["loss"] != plain["loss"]
    assert "Validation (scales 0.75, 1, flip" in vocseg("validate", "--ckpt_path", checkpoint, *flags)[1]
    images = voc_root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "test_*.jpg"
    options = ["--data.predict_path", images, "--predictions.output_dir", "out", *flags]
    assert vocseg("predict", "--ckpt_path", checkpoint, *options)[0] == 0
    task = SegmentationTask.load_from_checkpoint(checkpoint)
    task.inference = Inference([0.75, 1], flip=True, window=40)
    for path in (tmp_path / "out").glob("test_*.png"):
        predicted = np.array(Image.open(path))
        assert np.array_equal(predicted, np.array(Image.open(folder / "test_masks" / path.name)))
        assert np.array_equal(predicted, task.segment(images.with_name(f"{path.stem}.jpg")))
    assert vocseg("report", folder)[0] == 0
    assert "flip, windows of 40" in (folder / "report" / "report.html").read_text()
    status, _, err = vocseg("test", "--ckpt_path", checkpoint, "--inference.overlap", "1")
    assert (status, err.count("\n")) == (1, 1)
    assert "overlap is a share of the window" in err
