"""Callbacks: what watches a run."""

from vocseg.callbacks.predictions import PredictionWriter
from vocseg.callbacks.results import ResultTable

__all__ = ["PredictionWriter", "ResultTable"]
