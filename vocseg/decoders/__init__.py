"""Decoders: a backbone's features in, logits out."""

from vocseg.decoders.base import Decoder
from vocseg.decoders.deconv import DeconvDecoder
from vocseg.decoders.skip import SkipDecoder

__all__ = ["Decoder", "DeconvDecoder", "SkipDecoder"]
