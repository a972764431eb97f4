"""Backbones: networks that turn an image into a list of feature maps, shallow to deep."""

from vocseg.backbones.base import Backbone
from vocseg.backbones.mobilenet import MobileNetV2
from vocseg.backbones.pyramid import SimpleFeaturePyramid
from vocseg.backbones.resnet import ResNet
from vocseg.backbones.strided import StridedEncoder
from vocseg.backbones.timm import Timm
from vocseg.backbones.unet import ListedUNetEncoder, UNetEncoder

__all__ = [
    "Backbone",
    "ListedUNetEncoder",
    "MobileNetV2",
    "ResNet",
    "SimpleFeaturePyramid",
    "StridedEncoder",
    "Timm",
    "UNetEncoder",
]
