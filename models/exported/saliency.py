"""Where in an image the evidence for a class is, by covering it piece by piece: needs predictions and no gradients."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from data.images.decode import Pixels

CELLS = 8
"""Rows and columns that the image is divided into."""
WINDOW = 2
"""Cells each way that are covered at once; windows overlap, so that evidence on a border is not cut in two."""
COVERS = CELLS - WINDOW + 1
"""Positions of the window each way: 7 by 7 are 49 predictions."""

Predict = Callable[[Pixels], npt.NDArray[np.float32]]


def weigh_evidence(predict: Predict, pixels: Pixels, index: int) -> npt.NDArray[np.float64]:
    """Weigh what each part of an image says for class `index`: how far its log-odds fall when the part is covered.

    Covered is a square window, with the mean colour of the image; a cell has the mean of the windows that cover it.
    Positive cells speak for the class, negative ones against it. In nats, because a sure network's probability hardly
    moves. After Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks" (2014), section 4.2.

    Args:
        predict: uint8 [N, side, side, 3] to probabilities [N, num_classes]; called with N = 1 and `COVERS` times with
            N = `COVERS`, so that an explanation needs little memory and lets others in between.
        pixels: uint8 [side, side, 3]
        index: the class

    Returns:
        [CELLS, CELLS], rows from the top

    """
    before = _log_odds(predict(pixels[None])[:, index])[0]
    borders = np.linspace(0, pixels.shape[0], CELLS + 1).round().astype(int)
    mean = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    total, covered = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    for row in range(COVERS):
        images = np.repeat(pixels[None], COVERS, axis=0)
        for column, image in enumerate(images):
            image[borders[row] : borders[row + WINDOW], borders[column] : borders[column + WINDOW]] = mean
        for column, after in enumerate(_log_odds(predict(images)[:, index])):
            cells = np.s_[row : row + WINDOW, column : column + WINDOW]
            total[cells] += before - after
            covered[cells] += 1
    return total / covered


def _log_odds(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # In float32 a sure answer is 1 exactly, and its odds would be infinite.
    share = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(np.log(share) - np.log1p(-share))
