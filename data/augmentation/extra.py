"""Transforms of torchvision that `augmentation.extra` names, applied to a whole batch."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from core.errors import UserError


def make_transforms(extra: Sequence[Mapping[str, Mapping[str, Any]]], size: int) -> nn.Sequential:
    """Make the transforms, by name and arguments, and try each on a batch of images of `size` pixels per side.

    Raises:
        UserError: there is no transform of a name, arguments do not fit, or a transform does not keep shape and dtype.

    """
    return nn.Sequential(*(_make(name, arguments, size) for item in extra for name, arguments in item.items()))


def _make(name: str, arguments: Mapping[str, Any], size: int) -> nn.Module:
    shown = f"augmentation.extra: {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
    kind = getattr(v2, name, None)
    if not isinstance(kind, type) or not issubclass(kind, v2.Transform):
        known = [key for key, value in vars(v2).items() if isinstance(value, type) and issubclass(value, v2.Transform)]
        close = ", ".join(difflib.get_close_matches(name, known, n=3)) or "none is near it"
        raise UserError(f"{shown}: torchvision.transforms.v2 has no transform of this name; near it: {close}")
    images = torch.linspace(0, 1, 2 * 3 * size * size).reshape(2, 3, size, size)
    try:
        transform: nn.Module = kind(**arguments)
        changed = transform(images)
    except Exception as error:  # of any kind, because torchvision checks arguments in many ways
        raise UserError(f"{shown}: {' '.join(str(error).split())}") from None
    if not isinstance(changed, Tensor) or (changed.shape, changed.dtype) != (images.shape, images.dtype):
        found = f"{[*changed.shape]}, {changed.dtype}" if isinstance(changed, Tensor) else type(changed).__name__
        raise UserError(f"{shown} must keep shape and dtype: {[*images.shape]}, {images.dtype} became {found}")
    return transform
