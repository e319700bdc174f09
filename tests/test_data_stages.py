"""What dvc.yaml says of the stages, and when their code makes them run again."""

import pytest
import yaml
from houses import ROOT, change, reword
from images import photos, write
from workspaces import make_workspace

from data import versioning
from data.config import DataConfig
from data.preparing.shard import Plan
from data.stages import STAGES, stage_code


def part_key():
    return Plan(config=DataConfig(), missing=frozenset()).key


def stage_digests(source="folder"):
    return stage_code(source)


def test_a_stage_lists_no_source_file():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [*stages] == [*STAGES]
    for name, stage in stages.items():
        assert stage.get("deps", []) == ([] if name == "ingest" else ["data/raw"])
        assert f"code.{name}" in stage["params"][0]["outputs/data-params.json"]


def test_words_change_no_part_and_no_stage(house):
    before = part_key(), stage_digests()
    for path in (house / "data").rglob("*.py"):
        reword(path)
    assert (part_key(), stage_digests()) == before


@pytest.mark.parametrize(
    ("module", "constant"),
    [
        ("images/decode", "REDUCTION"),
        ("images/work_avif", "_MAX_BOXES"),
        ("quality/traits", "_SIDE"),
        ("preparing/shard", "BLOCK_BYTES"),
    ],
)
def test_a_constant_that_pixels_depend_on_changes_every_part(house, module, constant):
    before, stages = part_key(), stage_digests()
    change(house / f"data/{module}.py", constant, "7")
    assert part_key() != before
    assert stage_digests()["ingest"] == stages["ingest"]
    assert stage_digests()["prepare"] != stages["prepare"]


def test_a_module_that_decoding_begins_to_use_changes_every_part(house):
    decode = house / "data/images/decode.py"
    decode.write_text(decode.read_text() + "\n\ndef to_gray(pixels):\n    from data.gray import to_gray\n")
    write(house, {"data/gray.py": b"WEIGHT = 1\n"})
    before, stages = part_key(), stage_digests()
    write(house, {"data/gray.py": b"WEIGHT = 2\n"})
    assert part_key() != before
    assert stage_digests() != stages


@pytest.mark.parametrize(
    "module",
    [
        "sources/parquet",
        "quality/checks",
        "quality/perceptual_hash",
        "config",
        "preparing/workers",
        "augmentation/augment",
    ],
)
def test_parts_do_not_depend_on_sources_on_checks_or_on_how_they_are_made(house, module):
    before = part_key()
    with (house / f"data/{module}.py").open("a") as file:
        file.write("\n\nMORE = 1\n")
    assert part_key() == before


def test_ingesting_depends_on_its_own_source(house):
    before = {source: stage_digests(source) for source in ("folder", "parquet", "cifar10")}
    with (house / "data/sources/parquet.py").open("a") as file:
        file.write("\n\nMORE = 1\n")
    assert [source for source in before if stage_digests(source) != before[source]] == ["parquet"]


@pytest.mark.slow
def test_a_stage_runs_again_where_the_meaning_of_its_code_has_changed(house, tmp_path):
    config = DataConfig(source="folder", path=write(tmp_path / "source", photos(60)))
    workspace = make_workspace(tmp_path / "workspace")

    def reproduce():
        return [(one.stage, one.reason) for one in versioning.reproduce(workspace, config) if one.ran]

    assert len(reproduce()) == 2
    version = versioning.data_version(workspace)
    for path in (house / "data").rglob("*.py"):
        reword(path)
    assert reproduce() == []
    change(house / "data/images/decode.py", "REDUCTION", "3")
    assert reproduce() == [("prepare", "the code has changed")]
    change(house / "data/ingest/stage.py", "MEAN_SHARD_IMAGES", "255")
    assert reproduce() == [("ingest", "the code has changed")]
    assert versioning.data_version(workspace) == version
