"""Random rectangles inside squares, for resized crops and random erasing."""

import math

import torch
from torch import Tensor

NUM_TRIES = 10

Range = tuple[float, float]
Box = tuple[int, int, int, int]
"""top, left, height, width"""


def draw_boxes(
    count: int, side: int, *, area: Range, aspect: Range, largest: int, otherwise: Box, draws: torch.Generator
) -> Tensor:
    """Draw a rectangle in each of `count` squares of `side` pixels, like torchvision.

    Args:
        count: N.
        side: side of the squares, in pixels.
        area: minimum and maximum share of the square, uniformly distributed.
        aspect: minimum and maximum aspect ratio (width / height), whose logarithm is uniformly distributed.
        largest: maximum side of a rectangle, in pixels. The first of ten tries that fits is taken.
        otherwise: rectangle if no try fits.
        draws: generator on the CPU, so that draws do not depend on the device.

    Returns:
        top, left, height and width, int64 [N, 4].

    """
    # In double precision, a draw below 1 times a number of pixels is never rounded up to this number.
    shares, aspects, tops, lefts = torch.rand(4, count, NUM_TRIES, generator=draws, dtype=torch.float64)
    pixels = side**2 * (area[0] + (area[1] - area[0]) * shares)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = (low + (high - low) * aspects).exp()
    heights, widths = (pixels / aspects).sqrt().round(), (pixels * aspects).sqrt().round()
    fits = (torch.minimum(heights, widths) > 0) & (torch.maximum(heights, widths) <= largest)
    tops, lefts = (tops * (side - heights + 1)).floor(), (lefts * (side - widths + 1)).floor()
    # The first try that fits has the largest of the weights 10, 9, 8, ...
    first = (fits * torch.arange(NUM_TRIES, 0, -1)).argmax(dim=1, keepdim=True)
    tried = torch.stack([tops, lefts, heights, widths], dim=2).long()
    boxes = tried.gather(1, first[:, :, None].expand(-1, -1, 4))[:, 0]
    return torch.where(fits.any(dim=1, keepdim=True), boxes, torch.tensor(otherwise))


def erase_each(pixels: Tensor, boxes: Tensor) -> None:
    """Set a rectangle in each of the normalized images, float [N, 3, C, C], to 0, the mean colour, in place.

    `boxes` are int64 [N, 4]. As in `data.augmentation.crop`, a loop on the CPU, one operation on other devices.
    """
    (_erase_slices if pixels.device.type == "cpu" else _erase_mask)(pixels, boxes)


def _erase_slices(pixels: Tensor, boxes: Tensor) -> None:
    for image, (top, left, height, width) in zip(pixels, boxes.tolist(), strict=True):
        image[:, top : top + height, left : left + width] = 0


def _erase_mask(pixels: Tensor, boxes: Tensor) -> None:
    steps = torch.arange(pixels.shape[2], device=pixels.device)
    top, left, height, width = boxes.to(pixels.device).T[:, :, None]
    rows, columns = (steps >= top) & (steps < top + height), (steps >= left) & (steps < left + width)
    pixels.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)
