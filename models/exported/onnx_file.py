import warnings
from pathlib import Path

import torch
from torch import nn

OPSET = 18


def write_onnx(module: nn.Module, crop: int, path: Path, output: str) -> Path:
    """Write a module that takes images, uint8 [N, crop, crop, 3], with a dynamic batch, as `image` to `output`.

    It is exported with two images, because a batch of one is burnt in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The tracing exporter is deprecated, and starts in a quarter of the time of the other; parity is a gate.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            path,
            input_names=["image"],
            output_names=[output],
            dynamic_axes={"image": {0: "batch"}, output: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
            verbose=False,
        )
    return path
