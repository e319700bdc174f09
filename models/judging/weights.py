from pathlib import Path

import torch


def same_weights(before: Path, after: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit by bit."""
    first, second = (torch.load(path, map_location="cpu", weights_only=True)["state_dict"] for path in (before, after))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
