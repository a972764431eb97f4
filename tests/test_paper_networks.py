"""The paper's networks, compared layer by layer with its figures, on the meta device (nothing is computed)."""

import pytest
import torch
from torch import nn

from vocseg import (
    DeconvDecoder,
    ListedUNetDecoder,
    ListedUNetEncoder,
    ResidualDecoder,
    ResNet,
    SegmentationTask,
    StridedEncoder,
    UNetDecoder,
    UNetEncoder,
    VocsegError,
)

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def run_layers(backbone, decoder):
    """Builds a task and runs it once: (task, [(layer, shape of its output), ...] in the order of execution)."""
    with torch.device("meta"):
        task = SegmentationTask(backbone(), decoder)
        calls = []
        for layer in task.modules():
            if not list(layer.children()):
                layer.register_forward_hook(lambda layer, inputs, output: calls.append((layer, output.shape)))
        logits = task(torch.empty(2, 3, 224, 224))
    assert logits.shape == (2, 21, 224, 224)
    return task, calls


def convolutions(calls):
    """The convolutions among the calls: (type, input channels, output channels, output width)."""
    return [
        (type(layer).__name__, layer.in_channels, layer.out_channels, shape[-1])
        for layer, shape in calls
        if isinstance(layer, CONVOLUTIONS)
    ]


def count_parameters(module, trainable=False):
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


ENCODER = [
    ("Conv2d", 3, 32, 112),
    ("Conv2d", 32, 64, 56),
    ("Conv2d", 64, 128, 28),
    ("Conv2d", 128, 256, 14),
    ("Conv2d", 256, 512, 7),
]
DECODER = [
    ("ConvTranspose2d", 512, 512, 14),
    ("ConvTranspose2d", 512, 256, 28),
    ("ConvTranspose2d", 256, 128, 56),
    ("ConvTranspose2d", 128, 64, 112),
    ("ConvTranspose2d", 64, 32, 224),
]
HEAD = [("Conv2d", 32, 21, 224)]


@pytest.mark.parametrize(("activation", "layer"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU)])
def test_baseline_equals_figures_1_and_2(activation, layer):
    task, calls = run_layers(
        lambda: StridedEncoder(activation=activation),
        lambda *shape: DeconvDecoder(*shape, activation=activation),
    )
    assert convolutions(calls) == ENCODER + DECODER + HEAD
    kinds = [type(module) for module, _ in calls]
    assert kinds[:15] == [nn.Conv2d, layer, nn.BatchNorm2d] * 5
    assert kinds[15:30] == [nn.ConvTranspose2d, layer, nn.BatchNorm2d] * 5
    for module, _ in calls:
        if isinstance(module, CONVOLUTIONS) and module.out_channels != 21:
            assert (module.kernel_size, module.stride, module.padding) == ((3, 3), (2, 2), (1, 1))
            assert module.bias is not None
    assert count_parameters(task) == 5_500_245


def test_residual_network_equals_figure_3():
    task, calls = run_layers(StridedEncoder, ResidualDecoder)
    doubled = [
        step
        for block in DECODER
        for step in (block, ("ConvTranspose2d", block[2], block[2], block[3]))  # the block, then its shortcut
    ]
    assert convolutions(calls) == ENCODER + doubled + HEAD
    assert count_parameters(task) == 8_643_893


def test_transfer_network_equals_section_3_6_2():
    task, calls = run_layers(lambda: ResNet(34, freeze=True), DeconvDecoder)
    assert convolutions(calls)[-6:] == DECODER + HEAD
    assert calls[-17][1] == (2, 512, 7, 7)
    assert count_parameters(task) == 25_214_357
    assert count_parameters(task, trainable=True) == 3_929_685
    assert count_parameters(task.backbone) == 21_284_672


def test_listed_unet_equals_figure_5():
    task, calls = run_layers(ListedUNetEncoder, ListedUNetDecoder)
    widths = [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
    down = [
        ("Conv2d", before, after, size)
        for before, after, size in zip([3, *widths], widths, range(222, 202, -2), strict=False)
    ]
    up = []
    for width, grown, size in ((512, 409, 208), (256, 417, 212), (128, 425, 216), (64, 433, 224)):
        up.append(("ConvTranspose2d", 2 * width, width, grown))
        up.append(("Conv2d", 2 * width, width, 222 if width == 64 else size))
        up.append(("Conv2d", width, width, size))
    assert convolutions(calls) == [*down, *up, ("Conv2d", 64, 21, 224)]
    assert count_parameters(task) == 34_526_421


def test_ordinary_unet_halves_resolutions_and_doubles_channels():
    task, calls = run_layers(lambda: UNetEncoder(width=16), UNetDecoder)
    assert [size for _, _, _, size in convolutions(calls)] == [
        *(224, 224, 112, 112, 56, 56, 28, 28, 14, 14),
        *(28, 28, 28, 56, 56, 56, 112, 112, 112, 224, 224, 224),
        224,
    ]
    assert task.backbone.channels == [16, 32, 64, 128, 256]


def test_listed_unet_keeps_the_image_size_and_needs_23_pixels():
    with torch.device("meta"):
        task = SegmentationTask(ListedUNetEncoder(), ListedUNetDecoder, ["background", "a"])
        assert task(torch.empty(2, 3, 23, 36)).shape == (2, 2, 23, 36)
        with pytest.raises(VocsegError, match="at least 23x23 pixels, got 36x22"):
            task(torch.empty(2, 3, 22, 36))
