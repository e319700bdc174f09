import numpy as np

from models.judging.evaluate import Predictions


def macro_f1(predictions: Predictions) -> float:
    """Mean over the classes of F1, the harmonic mean of precision and recall; a class that is nowhere counts 0."""
    confusion = predictions.confusion()
    hits, sizes = confusion.diagonal(), confusion.sum(axis=0) + confusion.sum(axis=1)
    return float(np.mean(2 * hits / np.maximum(sizes, 1)))
