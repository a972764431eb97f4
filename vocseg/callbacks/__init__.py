"""Callbacks: what watches a run."""

from vocseg.callbacks.history import History
from vocseg.callbacks.predictions import PredictionWriter, TestMasks
from vocseg.callbacks.progress import EpochLines
from vocseg.callbacks.results import ResultTable
from vocseg.callbacks.safety import FiniteLoss, Interruption, StepSeeds
from vocseg.callbacks.tensorboard import Charts, MaskPreviews, ScoreFigures

__all__ = [
    "Charts",
    "EpochLines",
    "FiniteLoss",
    "History",
    "Interruption",
    "MaskPreviews",
    "PredictionWriter",
    "ResultTable",
    "ScoreFigures",
    "StepSeeds",
    "TestMasks",
]
