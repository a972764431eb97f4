import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from vocseg import (
    Inference,
    MobileNetV2,
    SegmentationNetwork,
    SegmentationTask,
    SkipDecoder,
    StridedEncoder,
    Timm,
    VocsegError,
    folding,
)
from vocseg.callbacks.ema import WeightEMA
from vocseg.feature_cache import FeatureCache
from vocseg.folding import Folding, fold_batch_norm

IMAGE = torch.rand(2, 3, 64, 48)


def with_statistics(network):
    """Batch norms that change what they read, as after a training."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


def runs(network, image=IMAGE):
    """The logits, and how many batch norms are computed."""
    norms = []
    original = nn.functional.batch_norm

    def counted(*args, **kwargs):
        norms.append(1)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(nn.functional, "batch_norm", counted)
        return network(image), len(norms)


def network_of(backbone):
    torch.manual_seed(0)
    return with_statistics(
        SegmentationNetwork(backbone, SkipDecoder(list(backbone.channels), list(backbone.strides), 5, width=16))
    )


@pytest.mark.parametrize(
    "make",
    [lambda: MobileNetV2(weights=None), lambda: Timm("tf_efficientnet_lite0", weights=None)],
    ids=["torchvision", "timm"],
)
def test_no_batch_norm_is_left_and_the_logits_differ_by_rounding(make):
    network = network_of(make())
    before = copy.deepcopy(network.state_dict())
    folded = fold_batch_norm(network, IMAGE)
    expected, norms = runs(network)
    logits, left = runs(folded)
    assert norms > 20
    assert left == 0
    assert not torch.equal(logits, expected)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Block(nn.Module):
    """Of three batch norms only the last can be folded."""

    channels, strides = (4,), (2,)

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.shared = nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, image):
        x = self.first(image)
        x = x + self.norms[0](x)  # the output of the convolution is read twice
        x = self.norms[1](self.shared(self.shared(x)))  # the convolution is used twice
        return [self.norms[2](self.last(x))]


def test_what_is_not_only_read_by_one_batch_norm_remains():
    network = with_statistics(SegmentationNetwork(Block(), SkipDecoder([4], [2], 3)))
    network.decoder = with_statistics(nn.Sequential())
    network.decoder.forward = lambda features: features[0]
    expected, norms = runs(network)
    logits, left = runs(fold_batch_norm(network, IMAGE))
    assert (norms, left) == (3, 2)
    assert torch.allclose(logits, expected, atol=1e-5)


class Unusual(nn.Conv2d):
    def forward(self, image):
        return super().forward(image).square()


def test_a_layer_that_is_no_usual_convolution_is_refused():
    backbone = Block()
    backbone.last = Unusual(4, 4, 1)
    network = with_statistics(SegmentationNetwork(backbone, SkipDecoder([4], [2], 3)))
    with pytest.raises(VocsegError, match="cannot be folded"):
        fold_batch_norm(network, IMAGE)


def test_changed_weights_are_folded_again():
    network, folding = network_of(MobileNetV2(weights=None)), Folding()
    folded = folding(network, IMAGE)
    assert folding(network, IMAGE) is folded
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    again = folding(network, IMAGE)
    assert again is not folded
    assert torch.allclose(runs(again)[0], runs(network)[0], atol=1e-3)
    assert copy.deepcopy(folding)(network, IMAGE) is not again


def test_a_training_is_the_same_and_each_validation_is_folded_anew(tmp_path, monkeypatch):
    """With averaged weights, which Lightning exchanges without a trace."""
    data = DataLoader([(torch.rand(3, 16, 16), torch.randint(0, 3, (16, 16))) for _ in range(4)], batch_size=2)
    weights, losses, folded = [], [], []
    monkeypatch.setattr(folding, "fold_batch_norm", lambda *args: folded.append(fold_batch_norm(*args)) or folded[-1])
    for fold in (False, True):
        torch.manual_seed(0)
        task = SegmentationTask(StridedEncoder(widths=(4, 8)), SkipDecoder, ["background", "a", "b"])
        task.inference = Inference(fold=fold)
        trainer = L.Trainer(
            default_root_dir=tmp_path,
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=[WeightEMA(0.5)],
        )
        trainer.fit(task, data, data)
        weights.append(task.state_dict())
        losses.append(float(trainer.callback_metrics["val/loss"]))
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(folded) == 3  # sanity check, and two epochs
    trainer.validate(task, data, verbose=False)  # in torch's inference mode
    assert len(folded) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert str(task.inference) == "batch norm folded"
    assert not task.inference.is_plain


def test_the_folded_copy_has_no_copy_of_the_cached_features():
    network = with_statistics(SegmentationNetwork(StridedEncoder(widths=(4, 8)), SkipDecoder([4, 8], [2, 4], 3)))
    for parameter in network.backbone.parameters():
        parameter.requires_grad = False
    cache = network.feature_cache = FeatureCache(1.0)
    assert fold_batch_norm(network, IMAGE).feature_cache is None
    assert network.feature_cache is cache
