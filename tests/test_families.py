"""Each decoder takes a training step on the features of each family of backbones, or refuses them in words."""

import pytest
import torch
from torch import nn

from vocseg import SimpleFeaturePyramid, Timm, VocsegError, decoders
from vocseg.losses import CrossEntropy

FAMILIES = {
    "resnet": lambda: Timm("resnet18"),
    "resnet, output stride 16": lambda: Timm("resnet18", output_stride=16),
    "mobilenetv3": lambda: Timm("mobilenetv3_small_050"),
    "efficientnet_lite": lambda: Timm("tf_efficientnet_lite0"),
    "convnext": lambda: Timm("convnext_atto"),
    "swin": lambda: Timm("swin_s3_tiny_224"),
    "pvt": lambda: Timm("pvt_v2_b0"),
    "regnet": lambda: Timm("regnetx_002"),
    "vit": lambda: Timm("vit_tiny_patch16_224"),
    "vit with a pyramid": lambda: SimpleFeaturePyramid(Timm("vit_tiny_patch16_224"), width=32),
}
DECODERS = [
    name for name in decoders.__all__ if name not in ("Decoder", "ListedUNetDecoder")
]  # that one takes no other
PYRAMID = ["DeepLabV3Plus", "FPN", "UPerNet"]
DOUBLING = ["ResidualDecoder", "UNetDecoder"]
REFUSED = {
    "resnet, output stride 16": ["DPT", *DOUBLING],
    "vit": [*PYRAMID, *DOUBLING],
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """Name of the family, its backbone, and features of two images, as leaves of the graph."""
    torch.manual_seed(0)
    backbone = FAMILIES[request.param]()
    with torch.no_grad():
        features = backbone(torch.rand(2, 3, 32, 64))
    return request.param, backbone, [feature.requires_grad_() for feature in features]


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_takes_a_step_or_refuses_in_words(name, family):
    family, backbone, features = family
    sizes = (backbone.channels, backbone.strides, 3)
    if name in REFUSED.get(family, ["DPT"]):
        with pytest.raises(VocsegError, match=rf"^{name} needs .*(takes any|use LinearHead or DPT|UPerNet|LinearHead)"):
            getattr(decoders, name)(*sizes)
        return
    decoder = getattr(decoders, name)(*sizes)
    for module in decoder.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    logits = decoder(features)
    assert logits.shape[:2] == (2, 3)
    mask = torch.randint(0, 3, (2, *logits.shape[-2:]))
    before = CrossEntropy()(logits, mask)
    before.backward()
    assert [key for key, parameter in decoder.named_parameters() if parameter.grad is None] == []
    assert features[-1].grad.abs().sum() > 0
    torch.optim.SGD(decoder.parameters(), lr=1e-3).step()
    assert CrossEntropy()(decoder(features), mask) < before
