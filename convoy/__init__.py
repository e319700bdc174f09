"""Convoy from Python and from notebooks: `import convoy`."""

from pipelines.config import Config
from pipelines.python import (
    Classifier,
    Prediction,
    PreparedData,
    TrainedModel,
    evaluate,
    load_config,
    prepare,
    train,
)

__all__ = [
    "Classifier",
    "Config",
    "Prediction",
    "PreparedData",
    "TrainedModel",
    "evaluate",
    "load_config",
    "prepare",
    "train",
]
