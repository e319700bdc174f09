"""From stored bytes to a network's input, a whole batch at a time, on the device that holds them.

Shapes: N images, S stored and C seen pixels a side, 3 colours.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.augmentation.boxes import draw_boxes, erase_each
from data.augmentation.crop import crop_each, resize_each
from data.augmentation.draws import Draws, seed_torch
from data.augmentation.mix import draw_mixing
from data.batches.loader import Share
from data.config import AugmentationConfig
from data.images.decode import Normalization
from data.manifest import ColorStatistics

BLOCK = 1 << 19
"""Values that a CPU normalizes at a time: what is in between, four bytes each, stays in a core's cache."""

CROP_ASPECT = (3 / 4, 4 / 3)
"""Width over height of resized crops: torchvision's."""
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (1 / 3.3, 1 / 0.3)
"""Share of the image, and width over height, of what random erasing takes: torchvision's."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grey that contrast is measured from: torchvision's."""

# Each has draws of its own, so that switching one on leaves the others as they were. 0 are crop, mirror and colour.
RESIZED, JITTER, ERASING, MIX, EXTRA = 1, 2, 3, 4, 5


class Normalize(nn.Module):
    """Stored pixels, uint8 [N, C, C, 3], to the network's input, float [N, 3, C, C].

    It is part of the exported graph, so that an endpoint takes plain pixels.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, spec: Normalization) -> None:
        """Normalize by `spec`."""
        super().__init__()
        self.spec = spec
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("offset", -mean / std, persistent=False)

    def forward(self, images: Tensor, color_shift: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        """Normalize; under autocast the result has the type that the network computes in, and is rounded once.

        Args:
            images: uint8 [N, C, C, 3].
            color_shift: added to every pixel of an image, in units of normalized pixels, [N, 3].
            gain: multiplies the stored pixels of an image, [N].

        """
        scale = self.scale[None] if gain is None else self.scale * gain[:, None]
        offset = self.offset[None] if color_shift is None else self.offset + color_shift
        # The export, which records what is done, would take the loop below for the images of its example.
        if torch.onnx.is_in_onnx_export():
            return _by_planes(images, scale, offset)
        if images.device.type == "cpu":
            return _multiply_add(images, scale, offset).permute(0, 3, 1, 2)
        return images.permute(0, 3, 1, 2) * scale[:, :, None, None] + offset[:, :, None, None]

    def undo(self, pixels: Tensor) -> Tensor:
        """Turn the network's input [N, 3, C, C] into pixels that can be looked at, uint8 [N, C, C, 3]."""
        visible = (pixels.permute(0, 2, 3, 1) - self.offset) / self.scale
        return visible.round().clamp(0, 255).to(torch.uint8)


def _by_planes(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`images` [N, C, C, 3] times `scale` plus `offset`, each [1, 3], as planes [N, 3, C, C]: for onnxruntime.

    For pixels of three values it takes ten times as long. Of planes of two axes it would make such pixels again where
    the convolution after them is in integers, and wants its channels last.
    """
    height, width = (int(side) for side in images.shape[1:3])
    planes = images.permute(0, 3, 1, 2).reshape(images.shape[0], 3, height * width)
    normalized = planes * scale[:, :, None] + offset[:, :, None]
    return normalized.reshape(normalized.shape[0], 3, height, width)


def _multiply_add(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`images` [N, C, C, 3] times `scale` plus `offset`, each [N, 3] or [1, 3], on a CPU, block by block.

    The plain formula takes 20 ms longer for 64 images of 224 pixels: what is in between leaves the cache, and a last
    axis of three colours is too short for the processor's vectors, where a row of pixels is not.
    """
    num_images, height, width, _ = images.shape
    rows = images.reshape(num_images, height, width * 3)
    scale, offset = (factor.repeat(1, width)[:, None].expand(num_images, -1, -1) for factor in (scale, offset))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    result = torch.empty(rows.shape, dtype=dtype)
    size = max(1, BLOCK // (height * width * 3))
    together = zip(*(torch.split(each, size) for each in (result, rows, scale, offset)), strict=True)
    for block, pixels, factor, summand in together:
        block.copy_(torch.addcmul(summand, pixels.float(), factor))
    return result.view(images.shape)


def center_crop(images: Tensor, size: int) -> Tensor:
    """Keep the centre of images [N, S, S, 3]."""
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


class Augmented(NamedTuple):
    """A batch to learn from."""

    pixels: Tensor
    """the network's input, float [N, 3, C, C]"""
    targets: Tensor
    """the labels, int64 [N]; where images are mixed, the share of each class, float [N, K]"""


class Augmentation(nn.Module):
    """Training images drawn anew: AlexNet's (section 4.1: random crop, mirror image, colour shift), and later ones.

    Every draw follows from (seed, epoch, step), whatever the device, so that a run that resumes sees what it would have
    seen. Of several processes, which `share` a batch, each draws for all of it; but images are mixed with those of the
    same process.
    """

    color_axes: Tensor

    def __init__(
        self,
        config: AugmentationConfig,
        color: ColorStatistics,
        *,
        crop: int,
        flip: bool,
        seed: int,
        num_classes: int,
        normalization: Normalization | None = None,
    ) -> None:
        """Crop to `crop` pixels; mirror half of the images where `flip` says so.

        Without `normalization`, the network's input has the mean 0 and the deviation 1 over the training pixels.
        """
        super().__init__()
        self.share = Share()
        self.config, self.crop, self.flip, self.seed, self.num_classes = config, crop, flip, seed, num_classes
        self.normalize = Normalize(normalization or color.normalization)
        self.transforms = nn.Sequential()
        if config.extra:
            from data.augmentation.extra import make_transforms  # here, because torchvision takes 8 s to import

            self.transforms = make_transforms(config.extra, crop)
        axes = torch.tensor(color.eigenvectors) * torch.tensor(color.eigenvalues)
        std = torch.tensor(self.normalize.spec.std)
        self.register_buffer("color_axes", axes / std[:, None], persistent=False)

    def forward(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Augmented:
        """Augment stored images, uint8 [N, S, S, 3], with labels, int64 [N]; both are left alone."""
        num_images = len(images) * self.share.num_processes
        draws = Draws(self.seed, epoch, step, num_images, self.share)
        squares = self._cut(images, draws)
        alphas = draws.each(lambda generator: torch.randn(num_images, 3, generator=generator)) * self.config.pca_color
        # No matrix product, which autocast would leave 8 bits of.
        color_shift, gain = (alphas.to(images.device)[:, None] * self.color_axes).sum(dim=2), None
        if self.config.brightness or self.config.contrast:
            gain, added = self._jitter(squares, replace(draws, stream=JITTER))
            color_shift = color_shift + added
        pixels = self.normalize(squares, color_shift, gain)
        if self.config.erasing:
            erase_each(pixels, self._draw_erased(replace(draws, stream=ERASING)))
        if self.config.mixup or self.config.cutmix:
            seed = replace(draws, stream=MIX).own_seed
            mixing = draw_mixing(self.config.mixup, self.config.cutmix, pixels.shape, seed)
            mixing.blend(pixels)
            labels = mixing.targets(labels, self.num_classes)
        if self.transforms:
            seed_torch(replace(draws, stream=EXTRA).own_seed, pixels.device)
            pixels = self._transform(pixels)
        return Augmented(pixels, labels)

    def _transform(self, pixels: Tensor) -> Tensor:
        """Apply the transforms of torchvision, which take levels from 0 to 1, in float32."""
        scale, offset = 255 * self.normalize.scale[:, None, None], self.normalize.offset[:, None, None]
        with torch.autocast(pixels.device.type, enabled=False):
            levels: Tensor = self.transforms((pixels.float() - offset) / scale)
            changed = (levels * scale + offset).to(pixels.dtype)
        return changed.contiguous(memory_format=torch.channels_last)

    def _cut(self, images: Tensor, draws: Draws) -> Tensor:
        """Crop and mirror: [N, S, S, 3] to [N, C, C, 3]."""
        images = self._pad(images)
        num_drawn, stored = draws.num_images, images.shape[1]
        slack = stored - self.crop
        corners = draws.each(lambda generator: torch.randint(slack + 1, (num_drawn, 2), generator=generator))
        mirrored = (draws.each(lambda generator: torch.rand(num_drawn, generator=generator)) < 0.5) & self.flip
        if self.config.resized_crop is not None:
            area, all_of_it = (self.config.resized_crop, 1), (0, 0, stored, stored)
            boxes = replace(draws, stream=RESIZED).each(
                lambda generator: draw_boxes(
                    num_drawn,
                    stored,
                    area=area,
                    aspect=CROP_ASPECT,
                    largest=stored,
                    otherwise=all_of_it,
                    draws=generator,
                )
            )
            return resize_each(images, boxes, mirrored, self.crop)
        if not self.config.crop:
            corners = torch.full_like(corners, slack // 2)
        return crop_each(images, corners, mirrored, self.crop)

    def _pad(self, images: Tensor) -> Tensor:
        is_cropped = self.config.crop and self.config.resized_crop is None
        if not is_cropped or images.shape[1] > self.crop or self.config.padding == 0:
            return images
        return F.pad(images, (0, 0) + (self.config.padding,) * 4)

    def _jitter(self, squares: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Brightness b and contrast c make b c x + (1 - c) b m of a pixel x, with m the mean grey of its image.

        Without clamping their order does not matter. Returns the gain b c, [N], and what is added, in units of
        normalized pixels, [N, 3].
        """
        reach = torch.tensor([self.config.brightness, self.config.contrast])
        drawn = draws.each(lambda generator: torch.rand(2, draws.num_images, generator=generator).T)
        brightness, contrast = (1 + reach * (2 * drawn - 1)).T.to(squares.device)
        if self.config.contrast == 0:
            return brightness, torch.zeros(len(squares), 3, device=squares.device)
        grey = _mean_grey(squares)
        return brightness * contrast, ((1 - contrast) * brightness * grey)[:, None] * self.normalize.scale

    def _draw_erased(self, draws: Draws) -> Tensor:
        """Rectangles, int64 [N, 4], without area where nothing is erased."""

        def draw(generator: torch.Generator) -> Tensor:
            erased = torch.rand(draws.num_images, 1, generator=generator) < self.config.erasing
            boxes = draw_boxes(
                draws.num_images,
                self.crop,
                area=ERASED_AREA,
                aspect=ERASED_ASPECT,
                largest=self.crop - 1,
                otherwise=(0, 0, 0, 0),
                draws=generator,
            )
            return boxes * erased

        return draws.each(draw)


def _mean_grey(images: Tensor) -> Tensor:
    """Mean level of each of the images, uint8 [N, C, C, 3], without its colours: [N]."""
    # Not all at once: as floats they would be fetched from the system anew each time.
    blocks = torch.split(images.flatten(2), 16)
    colors = torch.cat([block.float().mean(dim=1) for block in blocks]).reshape(len(images), -1, 3).mean(dim=1)
    return (colors * torch.tensor(GREY, device=images.device)).sum(dim=1)
