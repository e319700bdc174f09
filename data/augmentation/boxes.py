"""Rectangles that are drawn inside squares: what a resized crop keeps and what random erasing takes away."""

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
    """Draw a rectangle in each of `count` squares of `side` pixels, as torchvision does.

    Args:
        count: N.
        side: of the squares, in pixels.
        area: least and largest share of the square, equally likely.
        aspect: least and largest width over height; its logarithm is equally likely.
        largest: side in pixels that a rectangle must not exceed; the first of ten tries that fits is taken.
        otherwise: what is taken where none fits.
        draws: on the CPU, so that it draws the same for every device.

    Returns:
        top, left, height and width, int64 [N, 4].

    """
    # In double precision, in which no draw below 1 times a number of pixels is rounded up to that number.
    shares, aspects, tops, lefts = torch.rand(4, count, NUM_TRIES, generator=draws, dtype=torch.float64)
    pixels = side**2 * (area[0] + (area[1] - area[0]) * shares)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = (low + (high - low) * aspects).exp()
    heights, widths = (pixels / aspects).sqrt().round(), (pixels * aspects).sqrt().round()
    fits = (torch.minimum(heights, widths) > 0) & (torch.maximum(heights, widths) <= largest)
    tops, lefts = (tops * (side - heights + 1)).floor(), (lefts * (side - widths + 1)).floor()
    # The largest of 10, 9, 8, ... that is not struck out is the first.
    first = (fits * torch.arange(NUM_TRIES, 0, -1)).argmax(dim=1, keepdim=True)
    tried = torch.stack([tops, lefts, heights, widths], dim=2).long()
    boxes = tried.gather(1, first[:, :, None].expand(-1, -1, 4))[:, 0]
    return torch.where(fits.any(dim=1, keepdim=True), boxes, torch.tensor(otherwise))


def erase_each(pixels: Tensor, boxes: Tensor) -> None:
    """Set a rectangle in each of the normalized images, float [N, 3, C, C], to 0, the mean colour, in place.

    `boxes` are int64 [N, 4]; as in `data.augmentation.crop`, a loop on the CPU and one operation elsewhere.
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
