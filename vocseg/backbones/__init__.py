"""Backbones: an image in, a list of features out, shallow to deep."""

from vocseg.backbones.base import Backbone
from vocseg.backbones.mobilenet import MobileNetV2
from vocseg.backbones.resnet import ResNet
from vocseg.backbones.strided import StridedEncoder

__all__ = ["Backbone", "MobileNetV2", "ResNet", "StridedEncoder"]
