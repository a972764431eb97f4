"""The backbone Timm: features of many families, weights and normalisation of timm, and what is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from vocseg import SegmentationTask, SkipDecoder, Timm, VocsegError
from vocseg.backbones import Backbone
from vocseg.components import from_config, to_config
from vocseg.data.transforms import MEAN, STD

FAMILIES = {
    "resnet18": [4, 8, 16, 32],
    "mobilenetv3_small_050": [4, 8, 16, 32],
    "tf_efficientnet_lite0": [4, 8, 16, 32],
    "convnext_atto": [4, 8, 16, 32],
    "swin_s3_tiny_224": [4, 8, 16, 32],
    "pvt_v2_b0": [4, 8, 16, 32],
    "regnetx_002": [4, 8, 16, 32],
    "edgenext_xx_small": [4, 8, 16, 32],
    "vit_tiny_patch16_224": [16] * 4,
    "vit_small_patch14_dinov2": [14] * 4,
    "vit_small_patch16_dinov3": [16] * 4,
}
SMALL = [
    "resnet18",
    "mobilenetv3_small_050",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "pvt_v2_b0",
    "vit_tiny_patch16_224",
]


def whole_network(name, **settings):
    """timm's network with random parameters and batch-norm statistics, as if it were trained."""
    torch.manual_seed(0)
    network = timm.create_model(name, **settings).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.1 * torch.rand_like(tensor))
    return network


@pytest.mark.parametrize("name", FAMILIES)
def test_contract(name):
    torch.manual_seed(0)
    backbone = Timm(name, weights="default")
    assert backbone.strides == FAMILIES[name]
    assert backbone.training
    unit = 28 if "patch14" in name else 32
    for size in ((2 * unit, 3 * unit), (3 * unit, 2 * unit)):
        features = backbone(torch.rand(2, 3, *size))
        assert [feature.shape for feature in features] == [
            (2, channels, size[0] // stride, size[1] // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]
    sum((feature * torch.rand_like(feature)).sum() for feature in features).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []
    config = to_config(backbone)
    assert config["class_path"] == "vocseg.Timm"
    rebuilt = from_config(config, "backbone", Backbone)  # would fail if it read the weights: there is no network
    rebuilt.load_state_dict(backbone.state_dict())
    image = torch.rand(1, 3, unit, unit)
    for first, second in zip(backbone.eval()(image), rebuilt.eval()(image), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", SMALL)
def test_features_and_weights_are_those_of_timms_features_only(name, tmp_path):
    plain = name.startswith("vit")
    full = whole_network(name)
    torch.save(full.state_dict(), tmp_path / "weights.pth")
    options = {"dynamic_img_size": True, "out_indices": (2, 5, 8, 11)} if plain else {}
    overlay = {"file": str(tmp_path / "weights.pth")}
    reference = timm.create_model(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **options
    ).eval()
    backbone = Timm(name, weights=str(tmp_path / "weights.pth")).eval()
    backbone.load_pretrained()
    state = full.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in backbone.net.state_dict().items())
    image = torch.rand(2, 3, 64, 96)
    mean, std = (torch.tensor(reference.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = reference((image - mean) / std)[-4:]
    if plain:  # features_only leaves out the last layer norm
        maps = (full.norm(feature.permute(0, 2, 3, 1)) for feature in expected)
        expected = [feature.permute(0, 3, 1, 2) for feature in maps]
    given = backbone((image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_images_normalised_for_imagenet_are_normalised_for_the_weights():
    assert "scale" not in Timm("tf_efficientnet_lite0").state_dict()
    backbone = Timm("tf_efficientnet_lite0")
    assert Timm("resnet18").scale is None
    images = []
    backbone.net.conv_stem.register_forward_pre_hook(lambda _, inputs: images.append(inputs[0]))
    image = torch.rand(2, 3, 32, 32)
    backbone((image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    torch.testing.assert_close(images[0], 2 * image - 1)


def test_the_normalisation_is_that_of_the_weights_tag():
    assert Timm("tf_efficientnet_b0", weights="ap_in1k").scale is not None
    assert Timm("tf_efficientnet_b0", weights="ns_jft_in1k").scale is None
    assert Timm("tf_efficientnet_b0.ap_in1k", weights="ns_jft_in1k").scale is None


@pytest.mark.parametrize("form", ["safetensors", "state_dict_ema", "other_head"])
def test_files_of_weights(form, tmp_path):
    state = whole_network("lcnet_050", num_classes=7 if form == "other_head" else 1000).state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict_ema": state} if form == "state_dict_ema" else state, path)
    backbone = Timm("lcnet_050", weights=str(path))
    assert not torch.equal(backbone.net.conv_stem.weight, state["conv_stem.weight"])
    backbone.load_pretrained()
    assert all(torch.equal(value, state[key]) for key, value in backbone.net.state_dict().items())
    path.unlink()
    backbone.load_pretrained()  # once is enough


def test_weights_by_tag_come_from_timm(tmp_path, monkeypatch):
    """A file in torch's cache stands for a download: timm has these weights at an address of their own."""
    state = whole_network("legacy_seresnet18").state_dict()
    name = timm.models.get_pretrained_cfg("legacy_seresnet18").url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for weights in ("default", "in1k"):
        backbone = Timm("legacy_seresnet18", weights=weights)
        backbone.load_pretrained()
        assert all(torch.equal(value, state[key]) for key, value in backbone.net.state_dict().items())


def test_checkpoints_load_without_the_weights(tmp_path):
    torch.save(whole_network("lcnet_050").state_dict(), tmp_path / "w.pth")
    task = SegmentationTask(Timm("lcnet_050", weights=str(tmp_path / "w.pth")), SkipDecoder, ["a", "b"])
    task.backbone.load_pretrained()
    (tmp_path / "w.pth").unlink()
    other = from_config(to_config(task.backbone), "backbone", Backbone)
    other.load_state_dict(task.backbone.state_dict())
    other.load_pretrained()


def test_weights_of_another_network_are_refused_with_the_keys(tmp_path):
    torch.save(whole_network("lcnet_050").state_dict(), tmp_path / "w.pth")
    for name in ("resnet18", "vit_tiny_patch16_224", "pvt_v2_b0"):  # the last two convert older keys
        first = next(iter(Timm(name).net.state_dict()))
        with pytest.raises(VocsegError, match=rf"does not fit timm's {name}:\n  missing: {first}\n"):
            Timm(name, weights=str(tmp_path / "w.pth")).load_pretrained()


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto", "regnetx_002"])
@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(name, stride):
    backbone = Timm(name, output_stride=stride)  # compares the shapes with the strides
    assert backbone.strides == [min(value, stride) for value in (4, 8, 16, 32)]


def test_out_indices_choose_features_and_remove_what_is_deeper():
    backbone = Timm("resnet18", out_indices=[0, -3])
    assert (backbone.channels, backbone.strides) == ([64, 128], [2, 8])
    assert not any(name.startswith(("layer3.0", "layer4.0")) for name in backbone.net.state_dict())
    assert len(Timm("vit_tiny_patch16_224", out_indices=[11]).channels) == 1


def test_drop_path_skips_blocks_in_training_only():
    backbone = Timm("convnext_atto", drop_path=0.5)
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(backbone(image)[-1], backbone(image)[-1])
    backbone.eval()
    assert torch.equal(backbone(image)[-1], backbone(image)[-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet19"}, "timm has no network 'resnet19'. Did you mean 'resnet18'"),
        ({"name": "resnet18.a9_in1k"}, "no weights 'a9_in1k' of resnet18.*Did you mean 'a[123]_in1k'"),
        ({"name": "resnet18", "output_stride": 7}, "cannot build resnet18 with output_stride 7"),
        (
            {"name": "tf_efficientnet_lite0", "output_stride": 64},
            "the output_stride 64: its deepest stride is 32",
        ),
        ({"name": "pvt_v2_b0", "output_stride": 16}, "pvt_v2_b0 cannot change its output_stride"),
        ({"name": "densenet121", "drop_path": 0.1}, "densenet121 cannot change its drop_path"),
        ({"name": "resnet18", "out_indices": [5]}, r"from 0 to 4: resnet18 has 5 features.*got \[5\]"),
        ({"name": "resnet18", "out_indices": []}, "from 0 to 4"),
        ({"name": "efficientformer_l1"}, "efficientformer_l1 does not take images of any size"),
    ],
)
def test_what_timm_cannot_give_is_refused(settings, message):
    with pytest.raises(VocsegError, match=message) as caught:
        Timm(**settings)
    assert "\n" not in str(caught.value)


def test_unknown_weights_are_refused_with_the_tags():
    with pytest.raises(VocsegError, match=r"no weights 'a1_in2k'.*default, a1_in1k.*Did you mean 'a"):
        Timm("resnet18", weights="a1_in2k").load_pretrained()


def test_a_failed_download_says_how_to_pass_a_file(monkeypatch):
    monkeypatch.setattr(timm, "create_model", offline(timm.create_model))
    with pytest.raises(VocsegError, match=r"a1_in1k could not be downloaded \(no route\).*--model\.backbone\.weights"):
        Timm("resnet18", weights="a1_in1k").load_pretrained()


def offline(create):
    def create_model(*args, pretrained, **settings):
        if pretrained:
            raise RuntimeError("no route\nat all")
        return create(*args, **settings)

    return create_model


def test_a_network_without_features_is_refused(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_settings: torch.nn.Linear(3, 3))
    with pytest.raises(VocsegError, match="resnet18 does not give features"):
        Timm("resnet18")
