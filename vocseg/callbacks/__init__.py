"""Callbacks: what watches a run."""

from vocseg.callbacks.cached_features import CachedFeatures
from vocseg.callbacks.compiled import CompiledTraining
from vocseg.callbacks.cores import DivideCores
from vocseg.callbacks.ema import WeightEMA
from vocseg.callbacks.fault_tolerance import GracefulShutdown, StepSeeds, StopOnNaN
from vocseg.callbacks.metrics_csv import MetricsCSV
from vocseg.callbacks.predictions import PredictionWriter, TestMasks
from vocseg.callbacks.progress import EpochBar, LineProgress
from vocseg.callbacks.results import ResultTable
from vocseg.callbacks.scores import MoreScores
from vocseg.callbacks.split_lists import SplitLists
from vocseg.callbacks.summary import PartsSummary
from vocseg.callbacks.tensorboard import Charts, MaskPreviews, ScoreFigures

__all__ = [
    "CachedFeatures",
    "Charts",
    "CompiledTraining",
    "DivideCores",
    "EpochBar",
    "GracefulShutdown",
    "LineProgress",
    "MaskPreviews",
    "MetricsCSV",
    "MoreScores",
    "PartsSummary",
    "PredictionWriter",
    "ResultTable",
    "ScoreFigures",
    "SplitLists",
    "StepSeeds",
    "StopOnNaN",
    "TestMasks",
    "WeightEMA",
]
