"""Callbacks: what watches a run."""

from vocseg.callbacks.history import History
from vocseg.callbacks.predictions import PredictionWriter, TestMasks
from vocseg.callbacks.results import ResultTable
from vocseg.callbacks.tensorboard import Charts, MaskPreviews, ScoreFigures

__all__ = ["Charts", "History", "MaskPreviews", "PredictionWriter", "ResultTable", "ScoreFigures", "TestMasks"]
