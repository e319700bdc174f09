"""From stored bytes to a network's input, a whole batch at a time, on the device that holds the batch.

Shapes: N images, S stored and C seen pixels a side, 3 colours.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.config import AugmentationConfig
from data.manifest import ColorStatistics


class Normalize(nn.Module):
    """Stored pixels, uint8 [N, C, C, 3], to the network's input, float [N, 3, C, C] of mean 0 and deviation 1.

    It is part of the exported graph, so that an endpoint takes plain pixels.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, color: ColorStatistics) -> None:
        """Take mean and deviation from the training pixels."""
        super().__init__()
        mean, std = torch.tensor(color.mean), torch.tensor(color.std)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, images: Tensor, color_shift: Tensor | None = None) -> Tensor:
        """Normalize; `color_shift` [N, 3], in units of normalized pixels, is added to every pixel of an image."""
        offset = self.offset if color_shift is None else (self.offset + color_shift)[:, None, None, :]
        return (images * self.scale + offset).permute(0, 3, 1, 2)

    def undo(self, pixels: Tensor) -> Tensor:
        """Turn the network's input [N, 3, C, C] into pixels that can be looked at, uint8 [N, C, C, 3]."""
        visible = (pixels.permute(0, 2, 3, 1) - self.offset) / self.scale
        return visible.round().clamp(0, 255).to(torch.uint8)


def center_crop(images: Tensor, size: int) -> Tensor:
    """Keep the centre of images [N, S, S, 3]."""
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


class Augmentation(nn.Module):
    """The training images of AlexNet's paper, section 4.1: random crop, mirror image, colour shift.

    Every draw follows from (seed, epoch, step), whatever the device, so that a run that resumes sees what it would have
    seen.
    """

    color_axes: Tensor

    def __init__(self, config: AugmentationConfig, color: ColorStatistics, *, crop: int, flip: bool, seed: int) -> None:
        """Crop to `crop` pixels; mirror half of the images where `flip` says so."""
        super().__init__()
        self.config, self.crop, self.flip, self.seed = config, crop, flip, seed
        axes = torch.tensor(color.eigenvectors) * torch.tensor(color.eigenvalues)
        self.register_buffer("color_axes", axes / torch.tensor(color.std)[:, None], persistent=False)

    def forward(self, images: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Augment stored images, uint8 [N, S, S, 3].

        Returns:
            Cropped and mirrored images, uint8 [N, C, C, 3], and the colour shift for `Normalize`, float [N, 3].

        """
        draws = torch.Generator().manual_seed(_seed_of(self.seed, epoch, step))
        images = self._pad(images)
        cropped = self._crop_and_flip(images, draws)
        alphas = torch.randn(len(images), 3, generator=draws) * self.config.pca_color
        return cropped, alphas.to(images.device) @ self.color_axes.T

    def _pad(self, images: Tensor) -> Tensor:
        if not self.config.crop or images.shape[1] > self.crop or self.config.padding == 0:
            return images
        return F.pad(images, (0, 0) + (self.config.padding,) * 4)

    def _crop_and_flip(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """One gather, whatever is drawn: `rows` and `columns` [N, C] are the pixels that each image keeps."""
        num_images, slack = len(images), images.shape[1] - self.crop
        offsets = torch.randint(slack + 1, (num_images, 2), generator=draws)
        mirrored = torch.rand(num_images, generator=draws) < 0.5
        if not self.config.crop:
            offsets = torch.full_like(offsets, slack // 2)
        steps = torch.arange(self.crop)
        rows, columns = offsets[:, :1] + steps, offsets[:, 1:] + steps
        if self.flip:
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        which = torch.arange(num_images, device=images.device)
        return images[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
