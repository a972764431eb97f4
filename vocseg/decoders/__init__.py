"""Decoders: networks that turn the features of a backbone into logits."""

from vocseg.decoders.base import Decoder
from vocseg.decoders.deconv import DeconvDecoder
from vocseg.decoders.residual import ResidualDecoder
from vocseg.decoders.skip import SkipDecoder
from vocseg.decoders.unet import ListedUNetDecoder, UNetDecoder
from vocseg.decoders.upernet import UPerNet

__all__ = ["Decoder", "DeconvDecoder", "ListedUNetDecoder", "ResidualDecoder", "SkipDecoder", "UNetDecoder", "UPerNet"]
