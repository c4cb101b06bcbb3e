"""Counts how well a policy does in simulation."""

from robolearn.evaluation.results import EpisodeResult, Evaluation, Latency
from robolearn.evaluation.rollout import evaluate

__all__ = ["EpisodeResult", "Evaluation", "Latency", "evaluate"]
