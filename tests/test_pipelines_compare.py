"""Comparing and tracing real versions in a real registry."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from test_pipelines_commands import convoy, told
from test_pipelines_gate import CONFIG, WRONG, project, train  # noqa: F401 - a fixture

from pipelines import tasks
from pipelines.workspace import LEDGER, open_registry, open_tracking
from serving.rollout.ledger import Entry, Release, append

pytestmark = pytest.mark.slow

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)


@pytest.fixture
def versions(project, tmp_path):  # noqa: F811
    """The first version mixes classes up, the second one is right and the champion."""
    for number, channels in (("1", WRONG), ("2", (0, 1, 2))):
        tasks.gate.fn(CONFIG, train(tmp_path / number, channels))
    registry = open_registry(CONFIG)
    return [registry.get(number) for number in "12"]


def test_two_versions_are_compared(versions, tmp_path):
    first, second = versions
    client = open_tracking(CONFIG).client
    kept, page, verdict = (
        Path(client.download_artifacts(second.run_id, name, str(tmp_path))).read_text()
        for name in ("comparison.json", "comparison.html", "verdict.json")
    )
    assert "Newly broken: 0" in page
    kept = json.loads(kept)
    assert kept["overall"] == json.loads(verdict)["comparison"]
    # Without names: the version before and the champion, as the gate has compared them.
    found = json.loads(convoy("compare", "--json").stdout)
    assert [found[side]["version"] for side in ("champion", "challenger")] == ["1", "2"]
    assert (found["overall"], found["fixed"]) == (kept["overall"], kept["fixed"])
    turned = json.loads(convoy("compare", "champion", first.run_id[:8], "--json").stdout)
    assert [one["index"] for one in turned["broken"]] == [one["index"] for one in found["fixed"]]
    text = convoy("compare", "v1").stdout
    assert text.startswith("classifier v1 against v2: worse: ")
    assert f"newly broken: {len(found['fixed'])}" in text
    page = tmp_path / "page.html"
    assert convoy("compare", "1", "2", "--html", page).stdout.strip() == str(page)
    assert page.read_text().startswith("<!doctype html>")
    assert "compared with itself" in told(convoy("compare", "2"), 2)
    assert "has no version, alias or registered run 'champoin'; the nearest are champion" in told(
        convoy("compare", "champoin"), 2
    )
    assert "no version, alias or registered run '9'" in told(convoy("compare", "9"), 2)
    assert "two forms of one answer" in told(convoy("compare", "--json", "--html", page), 2)


def flat(nodes):
    for node in nodes:
        yield node
        yield from flat(node["children"])


def trace(name):
    nodes = list(flat(json.loads(convoy("lineage", name, "--json").stdout)))
    return {node["kind"]: node for node in nodes}, [node["kind"] for node in nodes if node["asked"]]


def test_lineage_leads_from_any_thing_in_both_directions(versions):
    first, second = versions
    tag, image_id = "convoy/classifier:2-cpu-0a1b2c3d", "sha256:" + "f00d" * 16
    release = Release(
        image=tag, image_id=image_id, model_name="classifier", model_version="2", run_id=second.run_id, data_version="d"
    )
    older = Release(image="convoy/x:1", image_id="sha256:" + "ab" * 32, model_version="1", run_id=first.run_id)
    for to, why in ((older, "first"), (release, "better")):
        append(LEDGER, Entry(what="deploy", target="cpu", to=to, why=why, by="ann", when=NOW))
    names = {second.run_id: "run", "v2": "version", "champion": "version", tag: "image", image_id[7:15]: "image"}
    for name, kind in names.items():
        found, asked = trace(name)
        assert asked == [kind], name
        assert found["run"]["id"] == second.run_id
        assert found["version"]["facts"]["names"] == "2, champion"
        assert found["image"]["facts"]["image_id"] == image_id
        assert found["live"]["facts"] == {"since": "2026-12-01 12:00:00Z", "by": "ann", "why": "better"}
    assert trace("previous")[0]["live"]["facts"]["until"] == "2026-12-01 12:00:00Z"
    assert set(trace("cpu")[1]) == {"live"}
    lines = convoy("lineage", "champion").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["commit", "data", "run", "version", "image", "live"]
    assert lines[3].endswith("<- asked for")
    assert "'champoin' is not known here; the nearest are champion" in told(convoy("lineage", "champoin"), 2)
    assert "does not answer as an endpoint" in told(convoy("lineage", "http://127.0.0.1:9"), 1)
    shutil.rmtree("outputs/mlflow")
    # What was deployed stays traceable without MLflow.
    assert trace(tag)[0]["run"]["facts"] == {"note": "MLflow does not have it"}
