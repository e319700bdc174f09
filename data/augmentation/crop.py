"""A different crop for each image of a batch. Shapes: N images, S stored and C cropped pixels per side, 3 colours.

Each function has two versions: a loop for the CPU, and one operation for accelerators, where a loop would launch a
kernel per image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_each(images: Tensor, corners: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Cut a square out of each of the images [N, S, S, 3], and mirror the `mirrored` squares left to right.

    Args:
        images: uint8.
        corners: top and left of the squares, int64 [N, 2].
        mirrored: bool [N].
        size: C, the side of the squares.

    Returns:
        uint8 [N, C, C, 3].

    """
    return (_copy if images.device.type == "cpu" else _gather)(images, corners, mirrored, size)


def _copy(images: Tensor, corners: Tensor, mirrored: Tensor, size: int) -> Tensor:
    squares = images.new_empty(len(images), size, size, 3)
    draws = zip(squares, images, corners.tolist(), mirrored.tolist(), strict=True)
    for square, image, (top, left), is_mirrored in draws:
        part = image[top : top + size, left : left + size]
        square.copy_(part.flip(1) if is_mirrored else part)
    return squares


def _gather(images: Tensor, corners: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Gather the pixels in `rows` and `columns` [N, C] of each image."""
    corners, mirrored = corners.to(images.device), mirrored.to(images.device)
    steps = torch.arange(size, device=images.device)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    which = torch.arange(len(images), device=images.device)
    return images[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def resize_each(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Cut a rectangle out of each of the images [N, S, S, 3], and resize it to a square, bilinear and antialiased.

    Args:
        images: uint8.
        boxes: top, left, height and width of the rectangles, int64 [N, 4].
        mirrored: bool [N].
        size: C, the side of the squares.

    Returns:
        uint8 [N, C, C, 3]. CPU and accelerator round at different places, so levels may differ by one.

    """
    return (_interpolate if images.device.type == "cpu" else _resample)(images, boxes, mirrored, size)


def _interpolate(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    squares = images.new_empty(len(images), size, size, 3)
    draws = zip(squares, images, boxes.tolist(), mirrored.tolist(), strict=True)
    for square, image, (top, left, height, width), is_mirrored in draws:
        part = image[top : top + height, left : left + width].permute(2, 0, 1)[None]
        resized = F.interpolate(part, (size, size), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        square.copy_(resized.flip(1) if is_mirrored else resized)
    return squares


def _resample(images: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Resize by two matrix products, one along each side, with separate weights for each image."""
    boxes, mirrored = boxes.to(images.device), mirrored.to(images.device)
    num_images, stored = images.shape[:2]
    rows = _weights(boxes[:, 0], boxes[:, 2], stored, size)
    columns = _weights(boxes[:, 1], boxes[:, 3], stored, size)
    columns = torch.where(mirrored[:, None, None], columns.flip(1), columns)
    # Autocast would reduce the weights to 8 bits.
    with torch.autocast(images.device.type, enabled=False):
        kept_rows = rows @ images.reshape(num_images, stored, -1).float()
        squares = columns[:, None] @ kept_rows.reshape(num_images, size, stored, 3)
    return squares.round().clamp(0, 255).to(torch.uint8)


def _weights(start: Tensor, length: Tensor, stored: int, size: int) -> Tensor:
    """Return the weight of each stored pixel in each output pixel along one side, [N, C, S]. Sums over S are 1.

    `start` and `length` [N] are the kept part. The weights fall linearly to 0 over one output pixel or one stored
    pixel, whichever is larger: Pillow's bilinear filter.
    """
    start, length = start[:, None, None], length[:, None, None]
    stored_pixels = torch.arange(stored, device=start.device)[None, None, :] - start
    ratio = length / size
    centers = (torch.arange(size, device=start.device)[None, :, None] + 0.5) * ratio
    weights = 1 - (stored_pixels + 0.5 - centers).abs() / ratio.clamp(min=1)
    weights = weights.clamp(min=0) * ((stored_pixels >= 0) & (stored_pixels < length))
    return weights / weights.sum(dim=2, keepdim=True)
