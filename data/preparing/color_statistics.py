"""Colour statistics of the training pixels, for normalization and the AlexNet paper's colour augmentation."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from data.images.decode import Pixels
from data.manifest import ColorStatistics, Model

DIGITS = 6
"""Decimals of the statistics. Rounding keeps the data version equal for other linear algebra libraries."""

Sums = tuple[int, int, int]


class ColorSums(Model):
    """Sums over pixels, 0..255. The sum of whole numbers does not depend on the order."""

    num_pixels: int
    sums: Sums
    products: tuple[Sums, Sums, Sums]


_SIDE = 32
"""Sampled pixels per side. The pixels between them add no information."""


class ColorCounter:
    """Sums the colours of images."""

    def __init__(self) -> None:
        """Start with zero sums."""
        self._num_pixels = 0
        # Sums of whole numbers below 2**53 are exact in float64.
        self._sums, self._products = np.zeros(3), np.zeros((3, 3))

    def add(self, images: Pixels) -> None:
        """Add images, uint8 [N, H, W, 3]. Images larger than `_SIDE` are sampled at equal distances."""
        step = max(1, min(images.shape[1:3]) // _SIDE)
        pixels = images[:, ::step, ::step].reshape(-1, 3).astype(np.float64)
        self._sums += pixels.sum(axis=0)
        self._products += pixels.T @ pixels
        self._num_pixels += len(pixels)

    @property
    def sums(self) -> ColorSums:
        """Sums so far."""
        return ColorSums.model_validate(
            {
                "num_pixels": self._num_pixels,
                "sums": self._sums.astype(np.int64).tolist(),
                "products": self._products.astype(np.int64).tolist(),
            }
        )


def color_statistics(parts: Iterable[ColorSums]) -> ColorStatistics:
    """Mean, deviation and principal axes of all pixels of `parts`, scaled to 0..1."""
    parts = list(parts)
    num_pixels = sum(part.num_pixels for part in parts)
    mean = np.sum([part.sums for part in parts], axis=0) / num_pixels / 255
    products = np.sum([part.products for part in parts], axis=0) / num_pixels / 255**2
    covariance = products - np.outer(mean, mean)
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    values = {
        "mean": mean,
        # Equal pixels have no deviation, and a division by 0 must not happen.
        "std": np.sqrt(np.diag(covariance).clip(0)).clip(1e-3),
        "eigenvalues": eigenvalues.clip(0),
        "eigenvectors": _with_fixed_signs(eigenvectors) * (eigenvalues > 10**-DIGITS),
    }
    # Adding 0 turns -0 into 0.
    return ColorStatistics.model_validate(
        {name: (value.round(DIGITS) + 0.0).tolist() for name, value in values.items()}
    )


def _with_fixed_signs(eigenvectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Make the largest component of each column positive, because the sign depends on the library."""
    largest = np.abs(eigenvectors).round(DIGITS).argmax(axis=0)
    signs: npt.NDArray[np.float64] = np.sign(eigenvectors[largest, np.arange(3)])
    return eigenvectors * signs
