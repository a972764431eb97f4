"""vocseg: semantic segmentation on PASCAL VOC with PyTorch Lightning.

The public names below are imported on first use, so that ``import vocseg`` (and ``vocseg --help``) need not wait for
torch. Type checkers see ordinary imports.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vocseg.backbones import (
        Backbone,
        ListedUNetEncoder,
        MobileNetV2,
        ResNet,
        SimpleFeaturePyramid,
        StridedEncoder,
        Timm,
        UNetEncoder,
    )
    from vocseg.data.base import SegmentationDataModule
    from vocseg.data.folder import FolderDataModule
    from vocseg.data.synthetic import SyntheticDataModule
    from vocseg.data.voc import VOCDataModule
    from vocseg.decoders import (
        DPT,
        FPN,
        Decoder,
        DeconvDecoder,
        DeepLabV3Plus,
        LinearHead,
        ListedUNetDecoder,
        PSPNet,
        ResidualDecoder,
        SegFormerHead,
        SkipDecoder,
        UNetDecoder,
        UPerNet,
    )
    from vocseg.errors import VocsegError
    from vocseg.export.files import export_task
    from vocseg.export.model import ExportedModel
    from vocseg.inference import Inference
    from vocseg.losses import CrossEntropy, Dice, FocalLoss, LovaszSoftmax, OHEMCrossEntropy, SumOfLosses
    from vocseg.network import SegmentationNetwork
    from vocseg.overlays import overlay
    from vocseg.plots import confusion_figure, legend
    from vocseg.schedules import Schedule
    from vocseg.task import SegmentationTask
    from vocseg.whole_network import WholeNetwork

__version__ = "0.2.0.dev0"

__all__ = [
    "DPT",
    "FPN",
    "Backbone",
    "CrossEntropy",
    "Decoder",
    "DeconvDecoder",
    "DeepLabV3Plus",
    "Dice",
    "ExportedModel",
    "FocalLoss",
    "FolderDataModule",
    "Inference",
    "LinearHead",
    "ListedUNetDecoder",
    "ListedUNetEncoder",
    "LovaszSoftmax",
    "MobileNetV2",
    "OHEMCrossEntropy",
    "PSPNet",
    "ResNet",
    "ResidualDecoder",
    "Schedule",
    "SegFormerHead",
    "SegmentationDataModule",
    "SegmentationNetwork",
    "SegmentationTask",
    "SimpleFeaturePyramid",
    "SkipDecoder",
    "StridedEncoder",
    "SumOfLosses",
    "SyntheticDataModule",
    "Timm",
    "UNetDecoder",
    "UNetEncoder",
    "UPerNet",
    "VOCDataModule",
    "VocsegError",
    "WholeNetwork",
    "__version__",
    "confusion_figure",
    "export_task",
    "legend",
    "overlay",
]

_MODULES = {
    "vocseg.backbones": (
        "Backbone",
        "ListedUNetEncoder",
        "MobileNetV2",
        "ResNet",
        "SimpleFeaturePyramid",
        "StridedEncoder",
        "Timm",
        "UNetEncoder",
    ),
    "vocseg.data.base": ("SegmentationDataModule",),
    "vocseg.data.folder": ("FolderDataModule",),
    "vocseg.data.synthetic": ("SyntheticDataModule",),
    "vocseg.data.voc": ("VOCDataModule",),
    "vocseg.decoders": (
        *("DPT", "Decoder", "DeconvDecoder", "DeepLabV3Plus", "FPN", "LinearHead", "ListedUNetDecoder"),
        *("PSPNet", "ResidualDecoder", "SegFormerHead", "SkipDecoder", "UNetDecoder", "UPerNet"),
    ),
    "vocseg.errors": ("VocsegError",),
    "vocseg.export.files": ("export_task",),
    "vocseg.export.model": ("ExportedModel",),
    "vocseg.losses": ("CrossEntropy", "Dice", "FocalLoss", "LovaszSoftmax", "OHEMCrossEntropy", "SumOfLosses"),
    "vocseg.inference": ("Inference",),
    "vocseg.network": ("SegmentationNetwork",),
    "vocseg.overlays": ("overlay",),
    "vocseg.plots": ("confusion_figure", "legend"),
    "vocseg.schedules": ("Schedule",),
    "vocseg.task": ("SegmentationTask",),
    "vocseg.whole_network": ("WholeNetwork",),
}


if not TYPE_CHECKING:  # a type checker that saw this function would accept any name

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module 'vocseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
