"""Decoders: networks that turn the features of a backbone into logits."""

from vocseg.decoders.base import Decoder
from vocseg.decoders.deconv import DeconvDecoder
from vocseg.decoders.deeplabv3plus import DeepLabV3Plus
from vocseg.decoders.dpt import DPT
from vocseg.decoders.fpn import FPN
from vocseg.decoders.linear import LinearHead
from vocseg.decoders.pspnet import PSPNet
from vocseg.decoders.residual import ResidualDecoder
from vocseg.decoders.segformer import SegFormerHead
from vocseg.decoders.skip import SkipDecoder
from vocseg.decoders.unet import ListedUNetDecoder, UNetDecoder
from vocseg.decoders.upernet import UPerNet

__all__ = [
    "DPT",
    "FPN",
    "Decoder",
    "DeconvDecoder",
    "DeepLabV3Plus",
    "LinearHead",
    "ListedUNetDecoder",
    "PSPNet",
    "ResidualDecoder",
    "SegFormerHead",
    "SkipDecoder",
    "UNetDecoder",
    "UPerNet",
]
