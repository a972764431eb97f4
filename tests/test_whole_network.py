import os
import pickle
from collections import OrderedDict

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, VocsegError, WholeNetwork
from vocseg.components import to_config
from vocseg.network import resize

CLASSES = ["background", "a", "b"]
LRASPP = "torchvision.models.segmentation.lraspp_mobilenet_v3_large"


class Small(nn.Module):
    """Logits at half the size, under a name."""

    def __init__(self, classes=3, encoder_weights="imagenet", key=None):
        super().__init__()
        self.layer = nn.Conv2d(3, classes, 3, stride=2, padding=1)
        self.key = key
        self.sizes = []
        nn.init.constant_(self.layer.bias, 7.0 if encoder_weights else 0.0)

    def forward(self, image):
        self.sizes.append(tuple(image.shape[-2:]))
        logits = self.layer(image)
        return logits if self.key is None else OrderedDict({self.key: logits, "aux": logits * 0})


SMALL = f"{__name__}.Small"


def make_something(**settings):
    os.environ["WHOLE_NETWORK_CALLED"] = "yes"
    return Small(**settings)


def trainer(folder, **settings):
    settings = {"max_epochs": 1, "enable_checkpointing": False, **settings}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **settings)


def loader():
    return DataLoader([(torch.rand(3, 40, 50), torch.randint(0, 3, (40, 50))) for _ in range(2)], batch_size=2)


@pytest.mark.parametrize("key", [None, "out", "logits"])
def test_the_logits_are_the_networks_own(key):
    network = Small(key=key)
    task = SegmentationTask(WholeNetwork(network, stride=2), class_names=CLASSES)
    image = torch.rand(2, 3, 10, 12)
    assert torch.equal(task(image), resize(network.layer(image), (10, 12)))


def test_images_are_padded_to_the_stride():
    for stride, size in ((32, (32, 64)), (1, (10, 33))):
        network = Small()
        task = SegmentationTask(WholeNetwork(network, stride=stride), class_names=CLASSES)
        assert task(torch.rand(1, 3, 10, 33)).shape == (1, 3, 10, 33)
        assert network.sizes == [size]
    with pytest.raises(VocsegError, match="at least 1"):
        WholeNetwork(Small(), stride=0)


def test_a_network_by_import_path_trains_resumes_and_is_rebuilt(tmp_path):
    backbone = WholeNetwork(LRASPP, {"num_classes": 3})
    assert to_config(backbone)["class_path"] == "vocseg.WholeNetwork"
    task = SegmentationTask(backbone, class_names=CLASSES)
    fitted = trainer(tmp_path)
    fitted.fit(task, loader())
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    image = torch.rand(1, 3, 40, 50)
    assert torch.equal(loaded(image), task.eval()(image))
    again = SegmentationTask(WholeNetwork(LRASPP, {"num_classes": 3}), class_names=CLASSES)
    trainer(tmp_path, max_epochs=2).fit(again, loader(), ckpt_path=tmp_path / "a.ckpt")
    assert again.trained_steps == 2
    assert torch.equal(pickle.loads(pickle.dumps(loaded.network))(image), loaded(image))


def test_the_logits_of_torchvisions_network_are_unchanged():
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3).eval()
    image = torch.rand(1, 3, 64, 96)
    task = SegmentationTask(WholeNetwork(network), class_names=CLASSES, channels_last=False).eval()
    assert torch.allclose(task(image), network(image)["out"], atol=1e-6)


def test_a_finished_network_is_passed_again(tmp_path):
    task, fitted = SegmentationTask(WholeNetwork(Small(key="out")), class_names=CLASSES), trainer(tmp_path)
    fitted.fit(task, loader())
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(VocsegError, match=r"Pass it yourself: load_from_checkpoint\(path, backbone"):
        SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt")
    loaded = SegmentationTask.load_from_checkpoint(tmp_path / "a.ckpt", backbone=WholeNetwork(Small(key="out")))
    assert torch.equal(loaded.backbone.network.layer.weight, task.backbone.network.layer.weight)


def test_pretrained_weights_are_read_when_a_new_training_starts(tmp_path):
    backbone = WholeNetwork(SMALL, {"encoder_weights": "imagenet"})
    assert backbone.network.layer.bias.tolist() == [0, 0, 0]
    backbone.load_pretrained()
    assert backbone.network.layer.bias.tolist() == [7, 7, 7]
    loaded = WholeNetwork(SMALL, {"encoder_weights": "imagenet"})
    loaded.load_state_dict(WholeNetwork(SMALL).state_dict())
    loaded.load_pretrained()  # as when a run is resumed
    assert loaded.network.layer.bias.tolist() == [0, 0, 0]
    unset = WholeNetwork(SMALL)
    unset.load_pretrained()
    assert unset.network.layer.bias.tolist() == [0, 0, 0]
    torch.save(Small().state_dict(), tmp_path / "weights.pth")
    from_file = WholeNetwork(Small(encoder_weights=None), weights=str(tmp_path / "weights.pth"))
    from_file.load_pretrained()
    assert from_file.network.layer.bias.tolist() == [7, 7, 7]
    with pytest.raises(VocsegError, match=r"layer\.weight: shape"):
        WholeNetwork(Small(4), weights=str(tmp_path / "weights.pth")).load_pretrained()


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (f"{__name__}.make_something", None, "no class that can serve as backbone.network"),
        ("os.system", {"command": "true"}, "no class that can serve"),
        ("torchvision.models.segmentation.fcn_resnet5", None, "Did you mean 'fcn_resnet50'"),
        ("torchvision.models.segmentation.FCN", None, "has no network 'FCN'"),
        ("no_module.Net", None, "cannot be imported"),
        (SMALL, {"colour": 1}, "cannot be built with {'colour': 1}"),
        (Small(), {"classes": 3}, "the given one is finished"),
        (3, None, "import path or a module"),
    ],
)
def test_networks_that_are_refused(network, settings, message):
    with pytest.raises(VocsegError, match=message):
        WholeNetwork(network, settings)
    assert "WHOLE_NETWORK_CALLED" not in os.environ


def test_mistakes_are_explained():
    image = torch.rand(1, 3, 32, 32)
    with pytest.raises(VocsegError, match="of 5 classes, but the data has 3"):
        SegmentationTask(WholeNetwork(Small(5)), class_names=CLASSES)(image)
    with pytest.raises(VocsegError, match=r"Flatten returns \(1, 3072\)"):
        SegmentationTask(WholeNetwork(nn.Flatten()), class_names=CLASSES)(image)
    with pytest.raises(VocsegError, match="returns OrderedDict"):
        SegmentationTask(WholeNetwork(Small(key="mask")), class_names=CLASSES)(image)
    with pytest.raises(VocsegError, match="takes no decoder"):
        SegmentationTask(WholeNetwork(Small()), SkipDecoder, CLASSES)
    with pytest.raises(VocsegError, match="StridedEncoder needs a decoder"):
        SegmentationTask(StridedEncoder(), class_names=CLASSES)


def test_the_command_line_takes_it_and_tests_its_checkpoint(fit_flags, vocseg, tmp_path):
    flags = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1, "--model.decoder", "null"]
    flags += ["--model.backbone", "WholeNetwork", "--model.backbone.network", SMALL]
    status, _, err = vocseg(*fit_flags, *flags, "--model.backbone.settings.classes", 4)
    assert status == 1
    assert "of 4 classes, but the data has 7" in err
    status, _, err = vocseg(*fit_flags, *flags, "--model.backbone.settings.classes", 7)
    assert status == 0, err
    checkpoint = sorted(tmp_path.glob("lightning_logs/quickstart/version_*/checkpoints/best.ckpt"))[-1]
    assert vocseg("test", "--ckpt_path", checkpoint, "--inference.flip", "true")[0] == 0
    assert SegmentationTask.load_from_checkpoint(checkpoint).backbone.network.layer.out_channels == 7
