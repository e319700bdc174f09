"""All classifiers of torchvision, by their names there."""

import torch
from torch import nn
from torch.func import functional_call

from core.errors import UserError, one_line
from models.networks.alexnet_layers import AdaptiveAverage
from models.networks.family import Family
from models.networks.weights import IMAGENET

AUXILIARY = ("googlenet", "inception_v3")
"""They have further outputs while they are trained, unless told otherwise; nothing here learns from those."""


def _build(name: str, num_classes: int, input_size: int, *_: object) -> nn.Module:
    import torchvision  # here, because it takes 8 s and the other networks do without

    try:
        network: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **_options(name, input_size)
        )
        if name.startswith("vgg"):
            network.avgpool = AdaptiveAverage(input_size // 32, 7)
        _try(network, input_size)
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
        usual = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
        raise UserError(
            f"model.network is {name}, which does not take images of {input_size} px ({one_line(error)}): "
            f"set model.input_size={usual}, its usual size, and data.size no smaller"
        ) from error
    return network


def _options(name: str, input_size: int) -> dict[str, object]:
    """Name what some networks must be told when they are built."""
    if name in AUXILIARY:
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": input_size}
    return {"input_size": (input_size, input_size)} if name.startswith("maxvit_") else {}


def _try(network: nn.Module, input_size: int) -> None:
    """Let the network see images of this size, without computing anything."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    was_training = network.training
    functional_call(network.eval(), shapes, torch.empty(2, 3, input_size, input_size, device="meta"))
    network.train(was_training)


FAMILY = Family(_build, normalization=IMAGENET)
