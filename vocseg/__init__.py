"""vocseg: semantic segmentation on PASCAL VOC with PyTorch Lightning.

The public names below are imported on first use, so that ``import vocseg`` (and ``vocseg --help``) costs nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "vocseg.backbones",
    "CrossEntropy": "vocseg.losses",
    "DeconvDecoder": "vocseg.decoders",
    "Decoder": "vocseg.decoders",
    "FocalLoss": "vocseg.losses",
    "ListedUNetDecoder": "vocseg.decoders",
    "ListedUNetEncoder": "vocseg.backbones",
    "MobileNetV2": "vocseg.backbones",
    "ResNet": "vocseg.backbones",
    "ResidualDecoder": "vocseg.decoders",
    "Schedule": "vocseg.schedules",
    "SegmentationTask": "vocseg.task",
    "SkipDecoder": "vocseg.decoders",
    "StridedEncoder": "vocseg.backbones",
    "UNetDecoder": "vocseg.decoders",
    "UNetEncoder": "vocseg.backbones",
    "VOCDataModule": "vocseg.data.voc",
    "VocsegError": "vocseg.errors",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vocseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
