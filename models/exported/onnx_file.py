import warnings
from pathlib import Path

import torch
from torch import nn

OPSET = 18


def write_onnx(module: nn.Module, crop: int, path: Path, output: str) -> Path:
    """Export a module to ONNX, from input `image`, uint8 [N, crop, crop, 3], to `output`, with a dynamic batch size.

    The example has two images, because the exporter would fix a batch size of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    example = torch.zeros(2, crop, crop, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # The deprecated tracing exporter starts four times as fast as the new one. The gate checks parity.
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
