from torch import nn

from models.networks.family import Family
from models.networks.weights import IMAGENET


def _build(name: str, num_classes: int, *_: object) -> nn.Module:
    import torchvision  # here, because it takes 8 s and the other networks do without

    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return network


FAMILY = Family(_build, normalization=IMAGENET)
