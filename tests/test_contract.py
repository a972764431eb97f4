"""The contract of backbones and decoders, for every combination of both."""

import lightning as L
import pytest
import torch

from vocseg import (
    DeconvDecoder,
    MobileNetV2,
    ResidualDecoder,
    ResNet,
    SegmentationTask,
    SkipDecoder,
    StridedEncoder,
    UNetDecoder,
    UNetEncoder,
    VocsegError,
)

BACKBONES = {
    "strided": lambda **kwargs: StridedEncoder(**kwargs),
    "resnet18": lambda **kwargs: ResNet(18, **kwargs),
    "resnet50": lambda **kwargs: ResNet(50, **kwargs),
    "mobilenet": lambda **kwargs: MobileNetV2(**kwargs),
    "mobilenet16": lambda **kwargs: MobileNetV2(output_stride=16, **kwargs),
    "unet": lambda **kwargs: UNetEncoder(width=8, **kwargs),
}
DECODERS = {"deconv": DeconvDecoder, "residual": ResidualDecoder, "skip": SkipDecoder, "unet": UNetDecoder}
CLASSES = ["background", *"abcd"]


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return BACKBONES[request.param]


@pytest.fixture(params=DECODERS)
def decoder(request):
    if request.param in ("residual", "unet") and request.node.callspec.params.get("backbone") == "mobilenet16":
        pytest.skip("needs doubling strides, see test_decoders_that_need_doubling_strides_refuse_others")
    return DECODERS[request.param]


@pytest.mark.parametrize("name", ["residual", "unet"])
def test_decoders_that_need_doubling_strides_refuse_others(name):
    with pytest.raises(VocsegError, match=r"4, 8, 16, 16\. SkipDecoder takes any"):
        SegmentationTask(MobileNetV2(output_stride=16), DECODERS[name], CLASSES)


@pytest.mark.parametrize("name", [*BACKBONES, 34, 101])
def test_feature_shapes_match_channels_and_strides(name):
    network = (ResNet(name) if isinstance(name, int) else BACKBONES[name]()).eval()
    features = network(torch.rand(2, 3, 64, 96))
    assert [f.shape for f in features] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(network.channels, network.strides, strict=True)
    ]
    assert network.strides == sorted(network.strides)


def test_logits_have_the_size_of_the_input_and_every_parameter_gets_a_gradient(backbone, decoder):
    task = SegmentationTask(backbone(), decoder, CLASSES)
    logits = task(torch.rand(2, 3, 33, 47))
    assert logits.shape == (2, len(CLASSES), 33, 47)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (97, 40)])
def test_inputs_of_any_size(decoder, size):
    task = SegmentationTask(StridedEncoder(), decoder, CLASSES).eval()
    assert task(torch.rand(1, 3, *size)).shape == (1, len(CLASSES), *size)


def test_padding_keeps_every_logit_on_its_pixel(backbone, decoder):
    """The logits equal those of the image padded to a multiple of the stride, not those of a resized image."""
    task = SegmentationTask(
        backbone(), decoder, CLASSES
    ).train()  # in eval mode, untrained batch-norm statistics would give almost constant logits
    task.apply(lambda module: module.eval() if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d) else None)
    image = torch.rand(2, 3, 33, 47)
    stride = max(task.backbone.strides)
    padded = torch.nn.functional.pad(image, (0, -47 % stride, 0, -33 % stride))
    resized = torch.nn.functional.interpolate(image, size=padded.shape[-2:], mode="bilinear")
    with torch.no_grad():
        logits, expected = task(image), task(padded)[..., :33, :47]
        wrong = torch.nn.functional.interpolate(task(resized), size=(33, 47), mode="bilinear")
    scale = expected.std()
    assert (logits - expected).abs().max() < 1e-3 * scale
    assert (logits - wrong).abs().max() > 0.1 * scale


def test_training_step_does_not_change_a_frozen_backbone(backbone, decoder):
    task = SegmentationTask(backbone(freeze=True), decoder, CLASSES).train()
    before = {name: value.clone() for name, value in task.backbone.state_dict().items()}
    assert not any(module.training for module in task.backbone.modules())
    assert task.decoder.training
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    task(torch.rand(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    after = task.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in task.backbone.parameters())
    assert all(parameter.grad is not None for parameter in task.decoder.parameters())


def test_unfrozen_backbone_updates_its_batch_norm_statistics(backbone):
    task = SegmentationTask(backbone(), DeconvDecoder, CLASSES).train()
    before = {name: value.clone() for name, value in task.backbone.state_dict().items() if "running_mean" in name}
    task(torch.rand(2, 3, 64, 64))
    after = task.backbone.state_dict()
    assert before
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("freeze", [False, True])
def test_optimizer_groups(backbone, decoder, freeze):
    task = SegmentationTask(backbone(freeze=freeze), decoder, CLASSES, backbone_lr=1e-5)
    task.trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_epochs=1)
    optimizer = task.configure_optimizers()["optimizer"]
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert set(groups) == ({"decoder"} if freeze else {"backbone", "decoder"})
    assert groups["decoder"]["lr"] == 1e-3
    assert sum(len(group["params"]) for group in groups.values()) == len(
        [p for p in task.parameters() if p.requires_grad]
    )
    if not freeze:
        assert groups["backbone"]["lr"] == 1e-5


def test_freeze_survives_train_and_unfreeze_reverts_it(backbone):
    network = backbone()
    network.freeze()
    network.train()
    assert not network.training
    network.unfreeze()
    network.train()
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_initial_weights_are_xavier_uniform(backbone):
    network = backbone()
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    fan_in = layer.weight[0].numel()
    fan_out = layer.weight[:, 0].numel()
    bound = (6 / (fan_in + fan_out)) ** 0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.9 * bound
