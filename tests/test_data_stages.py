"""What dvc.yaml says of the stages, against their code."""

import ast
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOW = {
    *("data/cluster.py", "data/config.py", "data/errors.py", "data/shard_states.py", "data/stage.py", "data/workers.py")
}
"""How a stage is run and told what to do: a change there leaves what it makes as it is."""

BEFORE = {
    "ingest": set[str](),
    "prepare": {"data/ingest.py", "data/source_parquet.py", "data/source_torchvision.py"},
}
"""What has made the stage's other inputs, which stand among its dependencies themselves."""


def imported(path: Path, found: set[Path]) -> set[Path]:
    """The file and all of the room `data` that it imports, at its head or in a function."""
    if path in found:
        return found
    found.add(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("data."):
            imported(ROOT / f"{node.module.replace('.', '/')}.py", found)
    return found


@pytest.mark.parametrize("stage", ["ingest", "prepare"])
def test_a_stage_depends_on_the_code_that_makes_its_outputs(stage):
    said = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    code = {str(path.relative_to(ROOT)) for path in imported(ROOT / "data" / f"{stage}.py", set())}
    assert {name for name in said if name.endswith(".py")} == code - HOW - BEFORE[stage]
