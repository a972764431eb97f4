"""A new training from the weights of another one: what fits is taken, the rest is named."""

import copy
import re

import lightning as L
import pytest
import torch
from torch import nn

from vocseg import MobileNetV2, SegmentationTask, SkipDecoder, VocsegError
from vocseg.backbones import ResNet
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.decoders import DeconvDecoder
from vocseg.initialization import start_from

ANIMALS = ["background", "cat", "dog", "cow"]


def network(class_names=ANIMALS, decoder=SkipDecoder, backbone=MobileNetV2, seed=0):
    torch.manual_seed(seed)
    return SegmentationTask(backbone(), decoder, class_names=class_names).network


def saved(network, path, class_names=ANIMALS):
    """A checkpoint as a trainer writes it, as far as it matters here."""
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"class_names": list(class_names)}}, path)
    return path


def test_the_same_network_is_taken_whole(tmp_path):
    source, target = network(seed=0), network(seed=1)
    start = start_from(target, ANIMALS, saved(source, tmp_path / "a.ckpt"))
    assert start.afresh == []
    assert start.kept_classes is None
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())


@pytest.mark.parametrize("decoder", [SkipDecoder, DeconvDecoder])
@pytest.mark.parametrize(
    "names",
    [
        ["background", "dog", "horse"],  # fewer classes
        ["background", "sheep", "dog", "horse", "cat", "cow"],  # more
        ["background", "dog", "cat", "horse"],  # equally many: only the names tell
    ],
)
def test_classes_of_the_same_name_keep_their_rows(names, decoder, tmp_path):
    source, target = network(seed=0, decoder=decoder), network(names, seed=1, decoder=decoder)
    before = copy.deepcopy(target.state_dict())
    start = start_from(target, names, saved(source, tmp_path / "a.ckpt"))
    shared = [name for name in names if name in ANIMALS]
    assert start.kept_classes == shared
    last = [key for key in target.state_dict() if key.startswith("decoder.head")][-2:]
    for key, value in target.state_dict().items():
        own = source.state_dict()[key]
        if key not in last:
            assert torch.equal(value, own), key
            continue
        for row, name in enumerate(names):
            expected = own[ANIMALS.index(name)] if name in shared else before[key][row]
            assert torch.equal(value[row], expected), (key, name)


def test_no_shared_class_starts_the_last_layer_afresh(tmp_path, caplog):
    source, target = network(seed=0), network(["a", "b"], seed=1)
    with caplog.at_level("INFO"):
        start = start_from(target, ["a", "b"], saved(source, tmp_path / "a.ckpt"))
    assert start.afresh == ["decoder.head.1.weight", "decoder.head.1.bias"]
    assert "Not taken from it, decoder: 2 tensors (decoder.head.1.weight, decoder.head.1.bias)" in caplog.text


def test_another_decoder_is_named_and_the_backbone_taken(tmp_path, caplog):
    source, target = network(seed=0), network(decoder=DeconvDecoder, seed=1)
    with caplog.at_level("INFO"):
        start = start_from(target, ANIMALS, saved(source, tmp_path / "a.ckpt"))
    assert all(key.startswith("decoder.") for key in start.afresh)
    assert re.search(r"Not taken from it, decoder: \d+ tensors \(decoder\.blocks", caplog.text)
    for key, value in source.backbone.state_dict().items():
        assert torch.equal(value, target.backbone.state_dict()[key])


def test_a_decoder_that_cannot_be_built_again(tmp_path):
    class Own(nn.Module):
        """A decoder of a user's own, not recorded."""

        def __init__(self, width, classes):
            super().__init__()
            self.head = nn.Conv2d(width, classes, 1)

        def forward(self, features):
            return self.head(features[-1])

    torch.manual_seed(0)
    source = SegmentationTask(MobileNetV2(), Own(1280, 4), class_names=ANIMALS).network
    names = ["background", "horse", "cow"]
    target = SegmentationTask(MobileNetV2(), Own(1280, 3), class_names=names).network
    assert start_from(target, names, saved(source, tmp_path / "a.ckpt")).kept_classes == ["background", "cow"]
    assert torch.equal(target.decoder.head.weight[2], source.decoder.head.weight[3])


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "network.", "backbone."])
def test_plain_state_dicts(wrap, prefix, tmp_path):
    source, target = network(seed=0), network(seed=1)
    part = source.backbone if prefix == "backbone." else source
    torch.save(wrap({f"{prefix}{key}": value for key, value in part.state_dict().items()}), tmp_path / "a.pth")
    start = start_from(target, ANIMALS, tmp_path / "a.pth")
    assert all(torch.equal(value, target.backbone.state_dict()[k]) for k, value in source.backbone.state_dict().items())
    assert bool(start.afresh) == (prefix == "backbone.")


def test_the_state_dict_of_a_backbone_alone(tmp_path):
    source, target = MobileNetV2(), network(seed=1)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    start_from(target, ANIMALS, tmp_path / "a.pth")
    assert all(torch.equal(value, target.backbone.state_dict()[key]) for key, value in source.state_dict().items())


def test_a_checkpoint_as_weights_of_a_backbone(tmp_path):
    source = network(seed=0)
    path = saved(source, tmp_path / "a.ckpt")
    backbone = MobileNetV2(weights=str(path))
    backbone.load_pretrained()
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in source.backbone.state_dict().items())
    other = ResNet(depth=18, weights=str(path))
    with pytest.raises(VocsegError, match=r"does not fit ResNet:\n  missing: "):
        other.load_pretrained()


def test_pretrained_weights_serve_a_backbone_that_is_not_taken(tmp_path):
    torch.manual_seed(5)
    pretrained = MobileNetV2()
    torch.save(pretrained.state_dict(), tmp_path / "imagenet.pth")
    target = SegmentationTask(MobileNetV2(weights=str(tmp_path / "imagenet.pth")), SkipDecoder, ANIMALS).network
    source = network(backbone=lambda: ResNet(depth=18), seed=0)
    start = start_from(target, ANIMALS, saved(source, tmp_path / "a.ckpt"))
    assert any(key.startswith("backbone.") for key in start.afresh)
    assert any(key.startswith("decoder.") for key in start.taken)
    key = "features.0.0.weight"
    assert torch.equal(target.backbone.state_dict()[key], pretrained.state_dict()[key])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.zeros(1)}, r"Nothing in .*a\.pth fits this network: it has backbone\.a, and the network backbone"),
        ({"epoch": 3}, "Nothing in .* fits this network: it has no tensors"),
        ([torch.zeros(1)], "holds no plain state dict"),
    ],
)
def test_what_does_not_fit_at_all_is_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(VocsegError, match=message):
        start_from(network(), ANIMALS, tmp_path / "a.pth")


def test_a_missing_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VocsegError, match=r"There is no file x\.ckpt"):
        start_from(network(), ANIMALS, "x.ckpt")
    (tmp_path / "lightning_logs/quickstart/version_0").mkdir(parents=True)
    with pytest.raises(VocsegError, match=r"There is no run quickstrat: .* Did you mean 'quickstart'"):
        start_from(network(), ANIMALS, "quickstrat")
    (tmp_path / "lightning_logs/quickstart/version_0/config.yaml").write_text("{}")
    with pytest.raises(VocsegError, match=r"The run .*version_0 has no checkpoint"):
        start_from(network(), ANIMALS, "quickstart")


def test_a_task_from_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "lightning_logs/mine/version_0/checkpoints"
    folder.mkdir(parents=True)
    (folder.parent / "config.yaml").write_text("{}")
    task = SegmentationTask(MobileNetV2(weights=None), SkipDecoder, ANIMALS)
    trainer = L.Trainer(max_epochs=0, logger=False, accelerator="cpu", enable_progress_bar=False)
    trainer.fit(task, [(torch.rand(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.long))])
    trainer.save_checkpoint(folder / "best.ckpt")
    loaded = SegmentationTask.from_run("mine")
    assert not loaded.training
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(image), task.eval()(image))


def test_the_command_line_starts_a_new_run_from_another(fit_flags, vocseg, tmp_path):
    """Of other classes, by the run's name; the network before the first step is that of the other run."""
    one_epoch = ["--trainer.max_epochs", "1"]
    assert vocseg(*fit_flags, *one_epoch)[0] == 0
    names = ["background", "disk", *SYNTHETIC_CLASSES[2:]]
    flags = [*fit_flags, *one_epoch, "--name", "new", "--data.class_names", f"[{','.join(names)}]"]
    status, _, err = vocseg(
        *flags, "--name", "refused", "--ckpt_path", "lightning_logs/quickstart/version_0/checkpoints/best.ckpt"
    )
    assert status == 1
    assert "--init_from" in err
    still = ["--model.optimizer.lr", "0.0", "--trainer.max_epochs", "1"]
    assert vocseg(*flags, "--init_from", "quickstart", *still)[0] == 0
    runs = [tmp_path / f"lightning_logs/{name}/version_0/checkpoints" for name in ("quickstart", "new")]
    old, new = (SegmentationTask.load_from_checkpoint(folder / "last.ckpt") for folder in runs)
    assert new.class_names == names
    for key, value in old.network.named_parameters():
        now = new.network.get_parameter(key)
        rows = [row for row, name in enumerate(names) if name in SYNTHETIC_CLASSES]
        assert torch.equal(
            now[rows] if key.startswith("decoder.head") else now, value[rows] if "head" in key else value
        )
    # it resumes as any run, with the words that started it and without
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert vocseg(*flags, "--init_from", "quickstart", *more)[0] == 0
    _, _, err = vocseg(*flags, "--trainer.max_epochs", "3", "--ckpt_path", "last")
    assert "init_from" not in err


def test_a_run_lists_its_images(fit_flags, vocseg, voc_root, tmp_path):
    few = ["--data.train_images", "4", "--trainer.max_epochs", "1"]
    assert vocseg(*fit_flags, *few)[0] == 0
    folder = tmp_path / "lightning_logs/quickstart/version_0"
    names = (folder / "train.txt").read_text().split()
    lists = voc_root / "VOCdevkit/VOC2007/ImageSets/Segmentation"
    assert len(set(names)) == 4
    assert set(names) < set((lists / "train.txt").read_text().split())
    assert (folder / "val.txt").read_text().split() == (lists / "val.txt").read_text().split()
    (folder / "train.txt").write_text("of the user\n")
    assert vocseg(*fit_flags, *few[:2], "--trainer.max_epochs", "2", "--ckpt_path", "last")[0] == 0
    assert (folder / "train.txt").read_text() == "of the user\n"
