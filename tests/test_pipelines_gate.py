"""The gate and the person who decides, with a real registry: who becomes champion, and what the ledger says."""

import json
import shutil
from pathlib import Path

import pytest
from test_models_gate import strongest_color
from test_pipelines_commands import convoy, told

from core.errors import UserError
from core.files import file_sha256
from data.config import DataConfig
from data.manifest import read_data_manifest
from models.exported.predictor import read_model_manifest
from models.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, normalize_file, write_manifest
from models.tracking.runs import PARITY_METRIC, VERDICT
from pipelines import tasks
from pipelines.config import Config
from pipelines.promotions import promoting
from pipelines.workspace import open_registry, open_tracking
from serving.rollout.ledger import read

# Two dozen test images of three classes: what the gate asks of one model is tested elsewhere.
CONFIG = Config.model_validate(
    {"gate": {"better_than_guessing": False, "min_class_accuracy": None, "max_calibration_error": 1}}
)
RIGHT, WRONG = (0, 1, 2), (1, 2, 0)


@pytest.fixture
def project(workspace, prepared, monkeypatch):
    """A workspace whose images are prepared; outside of a flow, an artifact would start a server of Prefect's."""
    monkeypatch.setattr(tasks, "create_markdown_artifact", lambda *_, **__: None)
    for name in ("raw", "prepared"):
        shutil.copytree(prepared.parent / name, workspace / "data" / name)
    return workspace


def train(folder, channels=RIGHT, **update):
    """Register a model that names the strongest colour, as a training would; gives its version."""
    with open_tracking(CONFIG).open_run(None, "a run", None) as log:
        log.metrics({PARITY_METRIC: 0.0, "test/accuracy": 0.5})
    data = read_data_manifest(Path("data/prepared"))
    model = strongest_color(folder, data, version=None, channels=channels)
    normalize_file(model / "model.onnx")
    known = {"run_id": log.run_id, "onnx_sha256": file_sha256(model / "model.onnx"), **update}
    write_manifest(model, read_model_manifest(model).model_copy(update=known))
    return open_registry(CONFIG).register(model).version


def aliases():
    registry = open_registry(CONFIG)
    found = {alias: registry.by_alias(alias) for alias in (CHAMPION, CHALLENGER, PREVIOUS)}
    return {alias: version.version for alias, version in found.items() if version}


def entries():
    return [
        (one.what, one.before and one.before.model_version, one.to.model_version, one.target)
        for one in read(Path("outputs/ledger.jsonl"))
    ]


def test_the_gate_and_the_person_write_to_the_ledger(project, tmp_path):
    tasks.gate.fn(CONFIG, train(tmp_path / "1", WRONG))
    assert (aliases(), entries()) == ({CHAMPION: "1"}, [("promote", None, "1", None)])
    tasks.gate.fn(CONFIG, train(tmp_path / "2"))
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    tasks.gate.fn(CONFIG, "2")
    with pytest.raises(UserError, match=r"classifier v3 did not pass: against the champion worse: .*; classifier v2 s"):
        tasks.gate.fn(CONFIG, train(tmp_path / "3", WRONG))
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "3"}

    found = convoy("promote", "3", "--why", "a colour-blind customer")
    assert "classifier v3 is the champion, classifier v2 the previous one" in found.stdout
    assert aliases() == {CHAMPION: "3", PREVIOUS: "2"}
    assert "is the champion already" in convoy("promote", "v3", "--why", "again").stdout
    written = [("promote", None, "1"), ("promote", "1", "2"), ("refuse", "2", "3"), ("promote", "2", "3")]
    assert entries() == [(*one, None) for one in written]
    lines = json.loads(convoy("ledger", "--json").stdout)
    assert lines[1]["why"].startswith("gate: better: accuracy 1.0000 against ")
    assert lines[1]["figures"]["gate/mcnemar_p"] < 1e-3
    assert (lines[3]["why"], lines[3]["figures"]["test/accuracy"]) == ("a colour-blind customer", 0.5)
    assert "refuse    -     classifier v2 -> classifier v3: gate: against the champion worse" in convoy("ledger").stdout
    assert convoy("ledger", "--target", "cpu").stdout.startswith("the ledger is empty: nothing has been promoted or de")


def test_a_refusal_is_only_told_where_the_command_ends_well_all_the_same(project, tmp_path, caplog):
    picky = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"min_accuracy": 1.0})})
    tasks.gate.fn(picky, train(tmp_path / "1", WRONG), may_fail=True)
    assert aliases() == {CHALLENGER: "1"}
    assert caplog.messages[-1].startswith("gate: classifier v1 did not pass: test/accuracy 0 < 1")
    assert caplog.messages[-1].endswith("; there is no champion yet")
    tasks.gate.fn(CONFIG, train(tmp_path / "2"))
    tasks.gate.fn(CONFIG, train(tmp_path / "3", WRONG), may_fail=True)
    assert aliases() == {CHAMPION: "2", CHALLENGER: "3"}
    assert caplog.messages[-1].startswith("gate: classifier v3 did not pass: against the champion worse: ")
    assert caplog.messages[-1].endswith("; classifier v2 stays champion")
    assert entries() == [("refuse", None, "1", None), ("promote", None, "2", None), ("refuse", "2", "3", None)]


def test_a_challenger_of_other_classes_waits_until_somebody_decides(project, tmp_path):
    tasks.gate.fn(CONFIG, train(tmp_path / "1"))
    manifest = Path("data/prepared/manifest.json")
    manifest.write_text(manifest.read_text().replace('"emu"', '"fox"'))
    version = train(tmp_path / "2")
    for _ in range(2):
        with pytest.raises(UserError) as refused:
            tasks.gate.fn(CONFIG, version)
        assert str(refused.value) == (
            "gate: classifier v2 waits: it cannot be compared with the champion: v1 knows other classes (has 'emu'; "
            "lacks 'fox'); classifier v1 stays champion; decide with `convoy approve 2 --why TEXT`"
        )
    assert aliases() == {CHAMPION: "1", CHALLENGER: "2"}
    run = open_tracking(CONFIG).get(open_registry(CONFIG).get("2").run_id)
    assert run.tags[VERDICT].startswith("waits: it cannot be compared")
    assert entries() == [("promote", None, "1", None), ("wait", "1", "2", None)]
    assert (
        "classifier v2 is refused; classifier v1 stays champion"
        in convoy("approve", "2", "--refuse", "--why", "no foxes").stdout
    )
    assert "v2 does not wait for a person; the gate: refused: no foxes" in told(
        convoy("approve", "2", "--why", "yes"), 2
    )
    with pytest.raises(
        UserError, match="v2 was refused by a person: no foxes; classifier v1 stays champion; `convoy pr"
    ):
        tasks.gate.fn(CONFIG, version)
    assert convoy("promote", "2", "--why", "the fox is new").exit_code == 0
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert entries()[2:] == [("refuse", "1", "2", None), ("promote", "1", "2", None)]


def test_a_model_that_passed_waits_for_approval_where_that_is_required(project, tmp_path):
    asks = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"approval": "required"})})
    with pytest.raises(
        UserError, match=r"waits: gate\.approval asks for a person's approval; .*`convoy approve 1 --why"
    ):
        tasks.gate.fn(asks, train(tmp_path / "1"))
    assert aliases() == {CHALLENGER: "1"}
    with promoting():
        assert "another command changes the champion" in told(convoy("approve", "1", "--why", "looked at it"), 1)
    assert "classifier v1 is the champion" in convoy("approve", "1", "--why", "looked at it").stdout
    assert read(Path("outputs/ledger.jsonl"))[-1].why == "approved: looked at it"
    assert entries() == [("wait", None, "1", None), ("promote", None, "1", None)]


def test_promoting_needs_a_version_and_a_reason(workspace):
    assert "has no version 7" in told(convoy("promote", "7", "--why", "a test"), 2)
    assert "Missing option '--why'" in convoy("promote", "7").stderr


def prepare_from(source, path):
    """Leave what preparing images from there would leave of it."""
    params = Path("outputs/data-params.json")
    params.parent.mkdir(exist_ok=True)
    params.write_text(json.dumps({"ingest": {"source": source, "path": path, "max_file_mb": 64}}))


def test_a_project_remembers_its_data(project, tmp_path):
    photos = str(tmp_path / "my photos")
    prepare_from("folder", photos)
    tasks.check_source.fn(CONFIG, "prepared")
    version = train(tmp_path / "1")
    tasks.note_source(open_tracking(CONFIG), open_registry(CONFIG).get(version).run_id)
    tasks.gate.fn(CONFIG, version)

    def data(**fields):
        return CONFIG.model_copy(update={"data": DataConfig.model_validate(fields)})

    tasks.check_source.fn(data(source="folder", path=photos), "configured")
    tasks.check_source.fn(CONFIG, "prepared")
    with pytest.raises(UserError) as forgotten:
        tasks.check_source.fn(CONFIG, "configured")
    assert str(forgotten.value) == (
        f"the champion, classifier v1, was trained on folder '{photos}', and this command would train on digits: type "
        f"--set data.source=folder --set data.path={photos}, or --set gate.allow_new_source=true to train on the new "
        "images"
    )
    with pytest.raises(UserError, match="and this command would train on folder"):
        tasks.check_source.fn(data(source="folder", path=tmp_path), "configured")
    prepare_from("digits", None)
    with pytest.raises(UserError, match="prepare those images again with `convoy data prepare`"):
        tasks.check_source.fn(CONFIG, "prepared")
    allowed = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"allow_new_source": True})})
    tasks.check_source.fn(allowed, "prepared")
