"""All classification networks of torchvision, by their names in torchvision."""

import torch
from torch import nn
from torch.func import functional_call

from core.errors import UserError, one_line
from models.networks.alexnet_layers import AdaptiveAverage
from models.networks.family import Family
from models.networks.weights import IMAGENET

AUXILIARY = ("googlenet", "inception_v3")
"""Networks with auxiliary outputs in training, which are switched off because our training does not use them."""


def _build(name: str, num_classes: int, input_size: int, *_: object) -> nn.Module:
    import torchvision  # imported here, because the import takes 8 s

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
    """Return the arguments that some networks need."""
    if name in AUXILIARY:
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": input_size}
    return {"input_size": (input_size, input_size)} if name.startswith("maxvit_") else {}


def _try(network: nn.Module, input_size: int) -> None:
    """Run the network on images of this size on the meta device, which computes only shapes."""
    tensors = [*network.named_parameters(), *network.named_buffers()]
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    was_training = network.training
    functional_call(network.eval(), shapes, torch.empty(2, 3, input_size, input_size, device="meta"))
    network.train(was_training)


FAMILY = Family(_build, normalization=IMAGENET)
