import copy
import pickle

import pytest
import torch
from torch import nn
from torch.export import Dim

from vocseg import (
    DeconvDecoder,
    MobileNetV2,
    ResNet,
    SegmentationNetwork,
    SkipDecoder,
    StridedEncoder,
    UNetDecoder,
    UNetEncoder,
)
from vocseg.network import resize


def network(**settings):
    torch.manual_seed(0)
    backbone = StridedEncoder(widths=(4, 8))
    decoder = SkipDecoder(backbone.channels, backbone.strides, 3, width=8, dropout=0.0)
    return SegmentationNetwork(backbone, decoder, **settings)


def test_a_hand_written_training_loop_reduces_the_loss():
    net = network()
    image = torch.rand(4, 3, 20, 24)
    mask = (image.mean(1) > 0.5).long()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (1, 1), (3, 40)])
def test_logits_have_the_size_of_the_image(size):
    logits = network().eval()(torch.rand(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.dtype == torch.float32


def test_an_image_that_the_stride_does_not_divide_is_padded_at_the_right_and_at_the_bottom():
    net = network().eval()
    image = torch.rand(1, 3, 13, 18)
    padded = torch.zeros(1, 3, 16, 20)
    padded[..., :13, :18] = image
    assert torch.equal(net(image), net(padded)[..., :13, :18])


def test_channels_last_changes_no_result_beyond_rounding():
    first, second = network(channels_last=True).eval(), network(channels_last=False).eval()
    image = torch.rand(2, 3, 30, 20)
    assert torch.allclose(first(image), second(image), atol=1e-5)


def test_a_frozen_backbone_runs_without_gradients():
    net = network()
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    net(image).sum().backward()
    assert image.grad is not None
    net.backbone.freeze()
    image.grad = None
    net(image).sum().backward()
    assert image.grad is None
    assert all(parameter.grad is not None for parameter in net.decoder.parameters())


def test_resize_returns_its_argument_at_equal_size():
    logits = torch.rand(1, 2, 4, 6)
    assert resize(logits, (4, 6)) is logits
    assert resize(logits, torch.Size([8, 12])).shape == (1, 2, 8, 12)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_can_be_pickled_copied_and_saved(channels_last, tmp_path):
    net = network(channels_last=channels_last).eval()
    torch.save(net, tmp_path / "network.pt")
    image = torch.rand(1, 3, 13, 18)
    copies = [copy.deepcopy(net), torch.load(tmp_path / "network.pt", weights_only=False)]
    copies += [pickle.loads(pickle.dumps(net, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL)]
    for other in copies:
        assert torch.equal(other(image), net(image))
        assert other.channels_last == channels_last


def test_backbone_and_decoder_are_plain_modules_with_plain_state_dicts(tmp_path):
    net = network().eval()
    torch.save(net.backbone.state_dict(), tmp_path / "backbone.pth")
    torch.save(net.decoder.state_dict(), tmp_path / "decoder.pth")
    backbone = StridedEncoder(widths=(4, 8)).eval()
    decoder = SkipDecoder(backbone.channels, backbone.strides, 3, width=8).eval()
    backbone.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True))
    decoder.load_state_dict(torch.load(tmp_path / "decoder.pth", weights_only=True))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = resize(nn.Sequential(backbone, decoder)(image), image.shape[-2:])
        assert torch.allclose(logits, net(image), atol=1e-5)


def test_a_compiled_network_computes_the_same_at_every_size():
    net = network().eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for size in ((1, 33, 47), (2, 48, 64), (2, 64, 48), (3, 5, 5)):
        image = torch.rand(size[0], 3, *size[1:])
        with torch.no_grad():
            assert torch.equal(compiled(image), net(image))


def test_a_traced_network_computes_the_same_at_its_size():
    net = network().eval()
    image = torch.rand(2, 3, 33, 47)
    assert torch.equal(torch.jit.trace(net, image)(image), net(image))


PAIRS = {
    "StridedEncoder, DeconvDecoder": lambda: (
        StridedEncoder(widths=(4, 8, 8)),
        lambda *sizes: DeconvDecoder(*sizes, widths=(8, 8, 8)),
    ),
    "MobileNetV2, SkipDecoder": lambda: (MobileNetV2(), lambda *sizes: SkipDecoder(*sizes, width=8)),
    "ResNet, SkipDecoder": lambda: (ResNet(18), lambda *sizes: SkipDecoder(*sizes, width=8)),
    "UNetEncoder, UNetDecoder": lambda: (UNetEncoder(width=4), UNetDecoder),
}


def export(net, sizes):
    return torch.export.export(net, (torch.rand(2, 3, 48, 64),), dynamic_shapes={"image": sizes})


@pytest.mark.parametrize("pair", PAIRS)
def test_an_exported_program_computes_the_same_at_other_sizes(pair):
    """Also at sizes that the stride does not divide, where the traced size is one that it divides."""
    backbone, decoder = PAIRS[pair]()
    net = SegmentationNetwork(backbone, decoder(backbone.channels, backbone.strides, 3)).eval()
    with torch.no_grad():
        exported = export(net, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}).module()
        for size in ((1, 33, 47), (2, 48, 64), (3, 64, 48), (1, 96, 131)):
            image = torch.rand(size[0], 3, *size[1:])
            assert torch.allclose(exported(image), net(image), atol=1e-5)


def test_an_exported_program_can_be_saved_and_refuses_images_that_are_not_larger_than_the_stride(tmp_path):
    net = network().eval()
    net.backbone.freeze()
    program = export(net, {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    torch.export.save(program, tmp_path / "network.pt2")
    exported = torch.export.load(tmp_path / "network.pt2").module()
    image = torch.rand(1, 3, 5, 7)
    assert torch.allclose(exported(image), net(image), atol=1e-5)
    with pytest.raises((AssertionError, RuntimeError)):
        exported(torch.rand(1, 3, 4, 7))


def test_without_channels_last_a_network_exports_with_named_ranges_of_sizes():
    net = network(channels_last=False).eval()
    ranges = {0: Dim("batch", max=8), 2: Dim("height", min=5, max=2048), 3: Dim("width", min=5, max=2048)}
    exported = export(net, ranges).module()
    image = torch.rand(1, 3, 5, 2047)
    with torch.no_grad():
        assert torch.allclose(exported(image), net(image), atol=1e-5)
