"""The decoders of the literature: shapes, gradients, records, and equality with segmentation_models.pytorch."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vocseg import (
    DPT,
    FPN,
    Decoder,
    DeepLabV3Plus,
    LinearHead,
    PSPNet,
    SegFormerHead,
    SegmentationTask,
    StridedEncoder,
    UPerNet,
    VocsegError,
)
from vocseg.components import factory_from_config, to_config

DECODERS = {
    "deeplabv3plus": partial(DeepLabV3Plus, width=8, low_width=4),
    "deeplabv3plus_dense": partial(DeepLabV3Plus, width=8, separable=False, rates=(1, 2)),
    "dpt": partial(DPT, width=8, widths=(4, 6, 8, 10)),
    "fpn": partial(FPN, pyramid_width=8, width=32),
    "linear": LinearHead,
    "linear_no_norm": partial(LinearHead, norm=False),
    "pspnet": partial(PSPNet, width=8),
    "segformer": partial(SegFormerHead, width=8),
    "upernet": partial(UPerNet, width=8, bins=(1, 2, 4)),
    "upernet_8": partial(UPerNet, width=8, min_stride=8, fuse_kernel=1),
}
STRIDES = {
    "pyramid": [4, 8, 16, 32],
    "output_stride_16": [4, 8, 16, 16],
    "from_2": [2, 4, 8],
    "two": [8, 32],
    "single": [16],
    "transformer": [14, 14, 14, 14],
}
PLAIN = ("single", "transformer")


def refused(decoder, strides):
    if decoder == "dpt":
        return strides != "transformer"
    if decoder == "upernet_8" and strides == "from_2":
        return True
    return strides in PLAIN and decoder.startswith(("deeplab", "fpn", "upernet"))


PAIRS = [(decoder, strides) for decoder in DECODERS for strides in STRIDES if not refused(decoder, strides)]


def channels_of(strides):
    return [6 + place for place in range(len(strides))]


def build(decoder, strides, num_classes=3):
    torch.manual_seed(0)
    return DECODERS[decoder](channels_of(STRIDES[strides]), STRIDES[strides], num_classes)


def make_features(strides, height=112, width=168, batch=1):
    strides = STRIDES[strides]
    return [
        torch.randn(batch, channels, math.ceil(height / stride), math.ceil(width / stride), requires_grad=True)
        for channels, stride in zip(channels_of(strides), strides, strict=True)
    ]


@pytest.mark.parametrize("num_classes", [2, 21])
@pytest.mark.parametrize(("decoder", "strides"), PAIRS)
def test_one_image_trains_and_every_parameter_gets_a_gradient(decoder, strides, num_classes):
    network = build(decoder, strides, num_classes).train()
    assert isinstance(network, Decoder)
    features = make_features(strides)
    logits = network(features)
    assert logits.shape[:2] == (1, num_classes)
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert all(gradients[name].abs().sum() > 0 for name in gradients if name.startswith("head"))
    assert features[-1].grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("decoder", "strides", "place", "factor"),
    [
        ("deeplabv3plus", "pyramid", 0, 1),
        ("deeplabv3plus", "from_2", 1, 1),
        ("dpt", "transformer", 0, 4),
        ("fpn", "from_2", 1, 1),
        ("linear", "output_stride_16", 0, 1),
        ("linear", "transformer", 0, 1),
        ("pspnet", "pyramid", -1, 1),
        ("segformer", "from_2", 1, 1),
        ("upernet", "pyramid", 0, 1),
        ("upernet_8", "pyramid", 1, 1),
    ],
)
def test_resolution_of_the_logits(decoder, strides, place, factor):
    features = make_features(strides)
    height, width = features[place].shape[-2:]
    assert build(decoder, strides).eval()(features).shape[-2:] == (height * factor, width * factor)


@pytest.mark.parametrize("size", [(99, 75), (33, 7), (1, 1)])
@pytest.mark.parametrize(("decoder", "strides"), PAIRS)
def test_features_of_odd_sizes(decoder, strides, size):
    logits = build(decoder, strides).eval()(make_features(strides, *size, batch=2))
    assert logits.shape[:2] == (2, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("decoder", "strides"), PAIRS)
def test_a_decoder_is_rebuilt_from_its_record(decoder, strides):
    network = build(decoder, strides).eval()
    record = to_config(network, skip=3)
    assert record["class_path"] == f"vocseg.{type(network).__name__}"
    rebuilt = factory_from_config(record, "decoder", Decoder)(channels_of(STRIDES[strides]), STRIDES[strides], 3).eval()
    rebuilt.load_state_dict(network.state_dict())
    features = make_features(strides)
    assert torch.equal(rebuilt(features), network(features))
    assert to_config(rebuilt, skip=3) == record


@pytest.mark.parametrize(
    ("decoder", "channels", "strides"),
    [
        (FPN, [64, 128], [4, 8]),
        (DeepLabV3Plus, [64, 128], [4, 8]),
        (DPT, [64] * 4, [16] * 4),
        (UPerNet, [8, 9], [4, 8]),
    ],
)
def test_initial_weights_are_kaiming_normal(decoder, channels, strides):
    network = decoder(channels, strides, 21)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert all(layer.bias is None or not layer.bias.any() for layer in layers)
    for layer in layers:
        fan_in = layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)


@pytest.mark.parametrize("name", ["deeplabv3plus", "fpn", "linear", "pspnet", "segformer", "upernet"])
def test_a_task_trains(name):
    task = SegmentationTask(StridedEncoder(widths=(4, 4, 8, 8)), DECODERS[name], ["background", "a"])
    logits = task.train()(torch.rand(1, 3, 50, 61))
    assert logits.shape == (1, 2, 50, 61)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in task.decoder.parameters())


@pytest.mark.parametrize("decoder", [DeepLabV3Plus, FPN, UPerNet])
@pytest.mark.parametrize("strides", PLAIN)
def test_features_of_one_stride_are_refused_with_a_way_out(decoder, strides):
    strides = STRIDES[strides]
    with pytest.raises(VocsegError, match=rf"{decoder.__name__} .* stride {strides[0]}: use LinearHead or DPT.*Simple"):
        decoder(channels_of(strides), strides, 3)


@pytest.mark.parametrize(
    ("decoder", "strides", "message"),
    [
        (DPT, "pyramid", "four features of one stride.* 4, 8, 16, 32. LinearHead and SegFormerHead"),
        (DPT, "single", r"four features of one stride.* got 16\."),
        (partial(DPT, widths=(8, 8)), "transformer", "four widths.*got 2"),
        (partial(UPerNet, min_stride=32), "pyramid", "UPerNet .*min_stride=32 leaves only .* 32: set it to 16 or less"),
        (partial(FPN, min_stride=16), "output_stride_16", "FPN .*min_stride=16 .* 16: set it to 8 or less"),
        (partial(LinearHead, min_stride=32), "transformer", "min_stride=32 leaves no feature: set it to 14 or less"),
        (partial(SegFormerHead, min_stride=16), "from_2", "min_stride=16 leaves no feature: set it to 8 or less"),
        (partial(UPerNet, fuse_kernel=2), "pyramid", "fuse_kernel must be odd.*got 2"),
        (partial(UPerNet, bins=(1, 0)), "pyramid", "bins must be positive.*got 1, 0"),
        (partial(PSPNet, bins=(-1,)), "pyramid", "bins must be positive.*got -1"),
        (partial(DeepLabV3Plus, rates=(0, 6)), "pyramid", "rates must be positive.*got 0, 6"),
    ],
)
def test_wrong_settings_are_refused_in_words(decoder, strides, message):
    with pytest.raises(VocsegError, match=message):
        decoder(channels_of(STRIDES[strides]), STRIDES[strides], 3)


@pytest.mark.parametrize(("stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9]), (256, [1, 1, 1])])
def test_aspp_covers_equally_many_pixels_of_the_image_at_each_output_stride(stride, rates):
    network = DeepLabV3Plus([4, 4], [4, stride], 3, width=8)
    assert [branch[0][0].dilation[0] for branch in list(network.branches)[1:]] == rates


def test_features_below_min_stride_change_nothing():
    features = make_features("pyramid")
    network = build("upernet_8", "pyramid").eval()
    assert torch.equal(network(features), network([torch.zeros(()), *features[1:]]))


def test_linear_head_is_a_linear_map_of_each_pixel():
    network = build("linear_no_norm", "transformer")
    features = make_features("transformer")
    layer = network.head[-1]
    expected = torch.einsum("bchw,kc->bkhw", torch.cat(features, 1), layer.weight[..., 0, 0])
    torch.testing.assert_close(network(features), expected + layer.bias[:, None, None])


def test_exported_program_serves_other_sizes():
    task = SegmentationTask(StridedEncoder(widths=(4, 4, 8, 8)), DECODERS["upernet"], ["background", "a"]).eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(task.network, (torch.rand(1, 3, 64, 80),), dynamic_shapes=({2: dynamic, 3: dynamic},))
    image = torch.rand(1, 3, 101, 57)
    torch.testing.assert_close(program.module()(image), task.network(image), rtol=1e-4, atol=1e-5)


# Equality with segmentation_models.pytorch (smp) on the same weights. Its encoders also return the image and a feature
# of stride 2, which these decoders do not use.


@pytest.fixture
def smp():
    return pytest.importorskip("segmentation_models_pytorch")


def compare(theirs, ours, parts):
    """Copies smp's weights to our decoder, part by part, and compares the logits at stride 4.

    Args:
        theirs: a whole network of smp that does not upsample its logits.
        ours: our decoder.
        parts: function from (our decoder, smp's decoder) to pairs of equal parts: (ours, theirs).
    """
    torch.manual_seed(0)
    for tensor in theirs.decoder.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.1)  # statistics and scales too: those of a new norm do nothing
    pairs = [*parts(ours, theirs.decoder), (ours.head, theirs.segmentation_head)]
    for our_part, their_part in pairs:
        tensors = (part.state_dict().values() for part in (our_part, their_part))
        for mine, other in zip(*tensors, strict=True):
            mine.copy_(other.view_as(mine))
    copied = sum(tensor.numel() for part, _ in pairs for tensor in part.parameters())
    assert copied == sum(parameter.numel() for parameter in ours.parameters())
    with torch.no_grad():
        features = theirs.eval().encoder(torch.randn(2, 3, 64, 96))
        expected = theirs.segmentation_head(theirs.decoder(list(features)))
        logits = ours.eval()(features[2:])
    assert logits.shape == (2, 21, 16, 24)
    torch.testing.assert_close(logits / expected.std(), expected / expected.std())


def test_segformer_head_equals_smp(smp):
    theirs = smp.Segformer("mit_b0", encoder_weights=None, decoder_segmentation_channels=16, classes=21, upsampling=1)
    ours = SegFormerHead(theirs.encoder.out_channels[2:], [4, 8, 16, 32], 21, width=16)

    def parts(ours, theirs):
        return [*zip(ours.project, reversed(theirs.mlp_stage), strict=True), (ours.fuse, theirs.fuse_stage)]

    compare(theirs, ours, parts)


def test_fpn_equals_smp(smp, monkeypatch):
    # smp aligns the corners when it upsamples; here it does as we do
    interpolate = F.interpolate

    def unaligned(*args, align_corners=None, **kwargs):
        return interpolate(*args, align_corners=align_corners and False, **kwargs)

    monkeypatch.setattr(F, "interpolate", unaligned)
    theirs = smp.FPN("resnet18", encoder_weights=None, classes=21, upsampling=1)
    ours = FPN(theirs.encoder.out_channels[2:], [4, 8, 16, 32], 21)

    def parts(ours, theirs):
        lateral = [theirs.p2.skip_conv, theirs.p3.skip_conv, theirs.p4.skip_conv, theirs.p5]
        stages = [branch.block for branch in reversed(theirs.seg_blocks)]
        return [*zip(ours.lateral, lateral, strict=True), *zip(ours.stages, stages, strict=True)]

    compare(theirs, ours, parts)
