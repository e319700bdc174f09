import numpy as np
import torch
from matplotlib.figure import Figure

from data.batches.shards import PreparedImages
from models.tracking import figures
from models.training.classifier import ImageClassifier
from models.training.job import TrainingJob

NUM_IMAGES, NUM_DRAWS = 6, 7


def preview_augmentation(job: TrainingJob, classifier: ImageClassifier) -> Figure:
    """Draw some training images, spread evenly over the split, beside their augmented variants."""
    images = PreparedImages(job.prepared, job.manifest, "train")
    chosen = np.linspace(0, len(images) - 1, min(NUM_IMAGES, len(images))).astype(np.int64)
    originals = images.gather(chosen)
    labels = torch.from_numpy(images.labels[chosen])
    draws = []
    for step in range(NUM_DRAWS):
        augmented = classifier.augmentation(torch.from_numpy(originals), labels, 0, step)
        draws.append(classifier.normalize.undo(augmented.pixels).numpy())
    return figures.augmentation_preview(originals, np.stack(draws, axis=1))
