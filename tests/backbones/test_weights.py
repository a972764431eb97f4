"""Pretrained weights: read late, once, safely; freezing."""

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
    """A state dict of torchvision's whole network, on disk: (backbone's constructor, path, state dict)."""
    state = models.get_model(request.param, weights=None).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return NETWORKS[request.param], path, state


def test_weights_are_read_when_asked_for_and_fit_torchvisions_names(weights):
    make, path, state = weights
    backbone = make(weights=str(path))
    name = next(iter(backbone.state_dict()))
    assert not torch.equal(backbone.state_dict()[name], state[name])
    backbone.load_pretrained()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())


def test_a_loaded_state_dict_makes_the_weights_needless(weights):
    make, path, _ = weights
    trained = make().state_dict()
    backbone = make(weights=str(path))
    path.unlink()
    backbone.load_state_dict(trained)
    backbone.load_pretrained()  # would fail if it looked for the file
    assert all(torch.equal(value, trained[key]) for key, value in backbone.state_dict().items())


def test_weights_that_do_not_fit_name_their_keys(weights, tmp_path):
    make, path, state = weights
    first = next(iter(state))
    del state[first]
    state["foreign.weight"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(VocsegError, match=f"missing: {first}\n.*not of this network: foreign.weight"):
        make(weights=str(path)).load_pretrained()


def test_weights_of_another_depth_name_the_shapes(tmp_path):
    torch.save(models.resnet50(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(VocsegError, match=r"does not fit ResNet:[\s\S]*more"):
        ResNet(18, weights=str(tmp_path / "w.pth")).load_pretrained()


@pytest.mark.parametrize("name", ["IMAGENET1K_V3", "/no/such/file.pth"])
def test_unknown_weights_name_the_nearest(name):
    with pytest.raises(VocsegError, match="IMAGENET1K_V1"):
        ResNet(18, weights=name).load_pretrained()


class Hostile:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_pickle_is_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "harm")))
    torch.save({"a": Hostile(tmp_path / "harm")}, tmp_path / "v.pth")
    for name in ("w.pth", "v.pth"):
        with pytest.raises(VocsegError, match="loads safely"):
            ResNet(18, weights=str(tmp_path / name)).load_pretrained()
    assert not (tmp_path / "harm").exists()


def test_what_is_no_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(VocsegError, match="no plain state dict"):
        ResNet(18, weights=str(tmp_path / "w.pth")).load_pretrained()


def test_named_weights_come_through_torchvision(tmp_path, monkeypatch):
    """torchvision's own downloader fetches them, here from 127.0.0.1; without the server the message tells the way."""
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
