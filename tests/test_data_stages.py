"""What dvc.yaml says of the stages, against their code."""

import pytest
import yaml
from imports import ROOT, imported_by

HOW = {
    *("data/cluster.py", "data/config.py", "data/errors.py", "data/shard_states.py", "data/stage.py", "data/workers.py")
}
"""How a stage is run and told what to do: a change there leaves what it makes as it is."""

BEFORE = {
    "ingest": set[str](),
    "prepare": {"data/ingest.py", "data/source_parquet.py", "data/source_torchvision.py"},
}
"""What has made the stage's other inputs, which stand among its dependencies themselves."""


@pytest.mark.parametrize("stage", ["ingest", "prepare"])
def test_a_stage_depends_on_the_code_that_makes_its_outputs(stage):
    said = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    code = imported_by(f"data/{stage}.py", ["data"])
    assert {name for name in said if name.endswith(".py")} == code - HOW - BEFORE[stage]
