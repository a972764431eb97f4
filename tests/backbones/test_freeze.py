"""Freezing of parts of a backbone by the names of their modules."""

import pytest
import torch

from vocseg import MobileNetV2, ResNet, SegmentationTask, SkipDecoder, Timm, VocsegError


def test_named_modules_do_not_train():
    backbone = ResNet(18, freeze=["conv1", "bn1", "layer[12]"]).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    features = backbone(torch.rand(2, 3, 64, 64))
    assert [feature.requires_grad for feature in features] == [False, False, True, True]
    features[-1].square().mean().backward()
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen)
    for name, value in backbone.state_dict().items():
        if "running_mean" in name:
            assert torch.equal(value, before[name]) == name.startswith(frozen)


def test_wildcards_freeze_only_batch_norms():
    backbone = Timm("lcnet_050", freeze=["*.bn?", "bn1"]).train()
    norms = {name for name, module in backbone.net.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    frozen = {name for name, module in backbone.net.named_modules() if not module.training}
    assert norms
    assert norms <= frozen
    trained = {name for name, parameter in backbone.net.named_parameters() if parameter.requires_grad}
    assert "conv_stem.weight" in trained
    assert not any(name.rpartition(".")[0] in norms for name in trained)


def test_parts_stay_frozen_in_a_task_until_unfreeze():
    task = SegmentationTask(MobileNetV2(freeze=["features.1*"]), SkipDecoder, ["a", "b"]).eval().train()
    blocks = task.backbone.features
    assert [block.training for block in blocks] == [n != 1 and n < 10 for n in range(19)]
    task.backbone.unfreeze()
    task.train()
    assert all(module.training for module in task.backbone.modules())
    assert all(parameter.requires_grad for parameter in task.backbone.parameters())


def test_a_name_of_no_module_is_refused_with_the_nearest():
    with pytest.raises(VocsegError, match=r"ResNet has no module 'layer9'\. Did you mean 'layer"):
        ResNet(18, freeze=["layer9"])
    with pytest.raises(VocsegError, match=r"timm's lcnet_050 has no module 'conv_stm'\. Did you mean 'conv_stem'"):
        Timm("lcnet_050", freeze=["conv_stm"])
