"""The simple feature pyramid over plain transformers."""

import pytest
import torch

from vocseg import ResNet, SegmentationTask, SimpleFeaturePyramid, SkipDecoder, Timm, UNetDecoder, VocsegError
from vocseg.backbones import Backbone
from vocseg.components import from_config, to_config

NETWORKS = {
    14: "vit_small_patch14_dinov2",
    16: "vit_tiny_patch16_224",
    32: "vit_small_patch32_224",
}


@pytest.mark.parametrize("patch", NETWORKS)
def test_shapes_gradients_and_record(patch):
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(Timm(NETWORKS[patch], out_indices=[1]), width=16)
    assert (pyramid.strides, pyramid.channels) == ([4, 8, 16, 32], [16] * 4)
    for size in ((64, 96), (96, 64)):
        features = pyramid(torch.rand(2, 3, *size))
        assert [feature.shape for feature in features] == [(2, 16, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    sum((feature * torch.rand_like(feature)).sum() for feature in features).backward()
    assert [name for name, parameter in pyramid.named_parameters() if parameter.grad is None] == []
    rebuilt = from_config(to_config(pyramid), "backbone", Backbone)
    rebuilt.load_state_dict(pyramid.state_dict())
    image = torch.rand(1, 3, 32, 32)
    for first, second in zip(pyramid.eval()(image), rebuilt.eval()(image), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("decoder", [SkipDecoder, UNetDecoder])
def test_decoders_of_pyramids_serve_a_frozen_transformer(decoder, tmp_path):
    transformer = Timm("vit_tiny_patch16_224", freeze=True, out_indices=[1])
    torch.save({key: value + 1 for key, value in transformer.net.state_dict().items()}, tmp_path / "w.pth")
    weights = {"weights": str(tmp_path / "w.pth"), "freeze": True, "out_indices": [1]}
    task = SegmentationTask(SimpleFeaturePyramid(Timm("vit_tiny_patch16_224", **weights), width=8), decoder, ["a", "b"])
    task.backbone.load_pretrained()
    assert not torch.equal(task.backbone.backbone.net.cls_token, transformer.net.cls_token)
    task.train()
    assert not task.backbone.backbone.training
    assert task.backbone.scales.training
    task(torch.rand(1, 3, 40, 70)).sum().backward()
    trained = {name for name, parameter in task.backbone.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in task.backbone.named_parameters() if name.startswith("scales.")}


def test_each_patch_covers_sixteen_pixels_where_patches_have_fourteen():
    pyramid = SimpleFeaturePyramid(Timm("vit_small_patch14_dinov2", out_indices=[0]), width=8)
    sizes = []
    pyramid.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    pyramid(torch.rand(1, 3, 64, 96))
    assert sizes == [(56, 84)]


def test_a_backbone_that_has_a_pyramid_is_refused():
    with pytest.raises(VocsegError, match="ResNet has the strides 4, 8, 16, 32 and needs no pyramid"):
        SimpleFeaturePyramid(ResNet(18))
