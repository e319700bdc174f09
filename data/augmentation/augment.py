"""Converts batches of stored pixels to a network's input, on the device of the batch.

Shapes: N images, S stored pixels and C cropped pixels per side, 3 colours.
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
"""Number of values that a CPU normalizes together, so that intermediate results of four bytes stay in the cache."""

CROP_ASPECT = (3 / 4, 4 / 3)
"""Aspect ratio (width / height) of resized crops, as in torchvision."""
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (1 / 3.3, 1 / 0.3)
"""Share of the image, and aspect ratio, of an erased rectangle, as in torchvision."""
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the grey of contrast changes, as in torchvision."""

# Each has its own stream of draws, so that enabling one does not change the others. Stream 0: crop, mirror and colour.
RESIZED, JITTER, ERASING, MIX, EXTRA = 1, 2, 3, 4, 5


class Normalize(nn.Module):
    """Converts stored pixels, uint8 [N, C, C, 3], to the network's input, float [N, 3, C, C].

    The exported graph contains this module, so that an endpoint passes plain pixels.
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
        """Normalize. Under autocast, the result has the network's dtype, and is rounded once.

        Args:
            images: uint8 [N, C, C, 3].
            color_shift: summand for every pixel of an image, in units of normalized pixels, [N, 3].
            gain: factor for the stored pixels of an image, [N].

        """
        scale = self.scale[None] if gain is None else self.scale * gain[:, None]
        offset = self.offset[None] if color_shift is None else self.offset + color_shift
        # The tracing export would fix the loop of `_multiply_add` to the number of its example images.
        if torch.onnx.is_in_onnx_export():
            return _by_planes(images, scale, offset)
        if images.device.type == "cpu":
            return _multiply_add(images, scale, offset).permute(0, 3, 1, 2)
        return images.permute(0, 3, 1, 2) * scale[:, :, None, None] + offset[:, :, None, None]

    def undo(self, pixels: Tensor) -> Tensor:
        """Convert the network's input [N, 3, C, C] back to visible pixels, uint8 [N, C, C, 3]."""
        visible = (pixels.permute(0, 2, 3, 1) - self.offset) / self.scale
        return visible.round().clamp(0, 255).to(torch.uint8)


def _by_planes(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`images` [N, C, C, 3] times `scale` plus `offset`, each [1, 3], as planes [N, 3, C, C], for onnxruntime.

    Pixels of three values would take ten times as long. Planes with two axes would be converted back to such pixels
    before an int8 convolution, which needs channels-last.
    """
    height, width = (int(side) for side in images.shape[1:3])
    planes = images.permute(0, 3, 1, 2).reshape(images.shape[0], 3, height * width)
    normalized = planes * scale[:, :, None] + offset[:, :, None]
    return normalized.reshape(normalized.shape[0], 3, height, width)


def _multiply_add(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`images` [N, C, C, 3] times `scale` plus `offset`, each [N, 3] or [1, 3], on a CPU, block by block.

    The plain formula takes 20 ms longer for 64 images of 224 pixels: intermediate results leave the cache, and an axis
    of three colours is too short for vector instructions, unlike a row of pixels.
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
    """Crop the centre of images [N, S, S, 3] to [N, size, size, 3]."""
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


class Augmented(NamedTuple):
    """Augmented batch."""

    pixels: Tensor
    """input of the network, float [N, 3, C, C]"""
    targets: Tensor
    """labels, int64 [N]; for mixed images, the share of each class, float [N, K]"""


class Augmentation(nn.Module):
    """Augmentation of training images: AlexNet's (section 4.1: random crop, mirror, colour shift), and later methods.

    Every draw depends only on (seed, epoch, step), not on the device, so that a resumed run sees the same images.
    Processes that `share` a batch draw for the whole batch, but mix only their own images.
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
        """Crop to `crop` pixels. With `flip`, mirror half of the images.

        Without `normalization`, the network's input has mean 0 and deviation 1 over the training pixels.
        """
        super().__init__()
        self.share = Share()
        self.config, self.crop, self.flip, self.seed, self.num_classes = config, crop, flip, seed, num_classes
        self.normalize = Normalize(normalization or color.normalization)
        self.transforms = nn.Sequential()
        if config.extra:
            from data.augmentation.extra import make_transforms  # imported here, because torchvision takes 8 s

            self.transforms = make_transforms(config.extra, crop)
        axes = torch.tensor(color.eigenvectors) * torch.tensor(color.eigenvalues)
        std = torch.tensor(self.normalize.spec.std)
        self.register_buffer("color_axes", axes / std[:, None], persistent=False)

    def forward(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> Augmented:
        """Augment stored images, uint8 [N, S, S, 3], with labels, int64 [N]. The arguments do not change."""
        num_images = len(images) * self.share.num_processes
        draws = Draws(self.seed, epoch, step, num_images, self.share)
        squares = self._cut(images, draws)
        alphas = draws.each(lambda generator: torch.randn(num_images, 3, generator=generator)) * self.config.pca_color
        # Not a matrix product, whose precision autocast would reduce to 8 bits.
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
        """Apply torchvision's transforms, which take levels from 0 to 1, in float32."""
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
        """Brightness b and contrast c change a pixel x to b c x + (1 - c) b m, where m is the mean grey of its image.

        Without clamping, their order does not matter. Returns the gain b c, [N], and the summand, in units of
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
        """Draw rectangles, int64 [N, 4]. Images without erasing get an empty rectangle."""

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
    """Return the mean grey [N] of images, uint8 [N, C, C, 3]."""
    # In blocks, because all images as floats would need new memory from the system each time.
    blocks = torch.split(images.flatten(2), 16)
    colors = torch.cat([block.float().mean(dim=1) for block in blocks]).reshape(len(images), -1, 3).mean(dim=1)
    return (colors * torch.tensor(GREY, device=images.device)).sum(dim=1)
