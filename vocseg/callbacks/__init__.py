"""Callbacks: what watches a run."""

from vocseg.callbacks.history import History
from vocseg.callbacks.predictions import PredictionWriter
from vocseg.callbacks.results import ResultTable

__all__ = ["History", "PredictionWriter", "ResultTable"]
