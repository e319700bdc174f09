"""Source `digits`: handwritten digits, without a download."""

import io
from pathlib import Path

from data.sources.base import Listing, SourceImage


class DigitsSource:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn carries (UCI, Alpaydin and Kaynak 1998)."""

    def __init__(self, path: Path | None = None) -> None:
        """Ignore `path`: scikit-learn carries the images."""

    def fingerprint(self) -> str:
        """Return a constant, because the images never change."""
        return "scikit-learn digits, 8-bit PNG"

    def list_images(self) -> Listing:
        """Scale the 17 grey levels to 8 bits, and encode each digit as PNG."""
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = []
        for index, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            png = io.BytesIO()
            Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(png, "PNG")
            images.append(SourceImage.of_bytes(f"digits/{index:04d}.png", str(target), png.getvalue()))
        return Listing(images)
