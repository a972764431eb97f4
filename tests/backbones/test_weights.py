"""Pretrained weights of backbones: when and how they are read, and what is refused."""

import hashlib
import http.server
import pickle
import threading

import pytest
import torch
from torchvision import models

from vocseg import MobileNetV2, ResNet, VocsegError

NETWORKS = {"resnet18": lambda **kwargs: ResNet(18, **kwargs), "mobilenet_v2": MobileNetV2}


@pytest.fixture(params=NETWORKS)
def weights(request, tmp_path):
    """A saved state dict of torchvision's complete network: (constructor of the backbone, path, state dict)."""
    state = models.get_model(request.param, weights=None).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return NETWORKS[request.param], path, state


def test_load_pretrained_reads_torchvisions_state_dict_and_the_constructor_does_not(weights):
    make, path, state = weights
    backbone = make(weights=str(path))
    name = next(iter(backbone.state_dict()))
    assert not torch.equal(backbone.state_dict()[name], state[name])
    backbone.load_pretrained()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_pretrained_weights_are_not_read_after_a_state_dict_was_loaded(weights):
    make, path, _ = weights
    trained = make().state_dict()
    backbone = make(weights=str(path))
    path.unlink()
    backbone.load_state_dict(trained)
    backbone.load_pretrained()  # would raise if it opened the deleted file
    assert all(torch.equal(value, trained[key]) for key, value in backbone.state_dict().items())


def test_error_for_unfitting_weights_lists_the_keys(weights, tmp_path):
    make, path, state = weights
    first = next(iter(state))
    del state[first]
    state["foreign.weight"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(VocsegError, match=f"missing: {first}\n.*not of this network: foreign.weight"):
        make(weights=str(path)).load_pretrained()


def test_weights_of_another_depth_do_not_fit(tmp_path):
    torch.save(models.resnet50(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(VocsegError, match=r"does not fit ResNet:[\s\S]*more"):
        ResNet(18, weights=str(tmp_path / "w.pth")).load_pretrained()


@pytest.mark.parametrize("name", ["IMAGENET1K_V3", "/no/such/file.pth"])
def test_error_for_unknown_weights_lists_the_names(name):
    with pytest.raises(VocsegError, match="IMAGENET1K_V1"):
        ResNet(18, weights=name).load_pretrained()


class CreatesFile:
    """Creates a file when it is unpickled, as malicious code in a pickle would."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickle_that_runs_code_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(CreatesFile(tmp_path / "created")))
    torch.save({"a": CreatesFile(tmp_path / "created")}, tmp_path / "v.pth")
    for name in ("w.pth", "v.pth"):
        with pytest.raises(VocsegError, match="loads safely"):
            ResNet(18, weights=str(tmp_path / name)).load_pretrained()
    assert not (tmp_path / "created").exists()


def test_file_without_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(VocsegError, match="no plain state dict"):
        ResNet(18, weights=str(tmp_path / "w.pth")).load_pretrained()


def test_torchvision_downloads_weights_given_by_name(tmp_path, monkeypatch):
    """A local server stands for torchvision's. Without a server, the error says how to pass a file."""
    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "raw.pth")
    digest = hashlib.sha256((tmp_path / "raw.pth").read_bytes()).hexdigest()
    (tmp_path / "raw.pth").rename(tmp_path / f"resnet18-{digest[:8]}.pth")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = models.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(entry, "url", f"http://127.0.0.1:{server.server_port}/resnet18-{digest[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    try:
        backbone = ResNet(18, weights="IMAGENET1K_V1")
        backbone.load_pretrained()
        assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(VocsegError, match=r"could not be downloaded.*--model.backbone.weights"):
        ResNet(18, weights="IMAGENET1K_V1").load_pretrained()
