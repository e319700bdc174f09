import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml
from houses import change, reword, sources_for
from test_serving_classifier import make_model, make_quantized

from core.errors import UserError
from serving.config import ServingConfig
from serving.packaging import bento as package
from serving.packaging.bento import Bento, build_bento, find_bento, list_bentos
from serving.targets import TARGETS, requirements

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # BentoML builds from no folder below one whose name begins with a dot, and a clone may be in ~/.local/src.
    return tmp_path_factory.mktemp("home") / ".local" / "store"


@pytest.fixture(scope="module")
def bento(model: Path, store: Path) -> Bento:
    return build_bento(model, ServingConfig(), store)


@pytest.fixture
def quick_build(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of BentoML, which takes seconds: writes the description that this module reads, and counts its calls."""
    versions = []

    def build(staging: Path, home: Path, version: str) -> None:
        build_file = json.loads((staging / "bentofile.yaml").read_text())
        folder = home / "bentos" / build_file["name"] / version
        (folder / "src").mkdir(parents=True)
        (folder.parent / "latest").write_text(version)
        (folder / "bentofile.json").write_text(json.dumps(build_file))
        versions.append(version)
        created = f"2026-01-01T00:00:{len(versions):02}+00:00"
        info = {"name": build_file["name"], "version": version, "creation_time": created}
        (folder / "bento.yaml").write_text(yaml.safe_dump(info | {"labels": build_file["labels"]}))

    monkeypatch.setattr(package, "_run_build", build)
    return versions


def test_a_bento_tells_where_it_comes_from(bento, store):
    name, _, bento_version = bento.tag.partition(":")
    assert name == "strongest-color"
    assert bento_version.startswith("3-cpu-")
    assert bento.path == store / "bentos" / name / bento_version
    assert (bento.target, bento.model_name, bento.model_version) == ("cpu", "Strongest Color", "3")
    assert (bento.run_id, bento.data_version, bento.git_commit) == ("run-1", "data-1", "0a1b2c3")
    assert list_bentos(store) == [bento]
    assert (bento.path.parent / "latest").read_text() == bento_version


def test_a_bento_holds_what_an_endpoint_needs_and_no_more(bento, model):
    source = bento.path / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    chosen = {"serving.json", "packing.json", "placement.json", "schema.json", "bentofile.yaml"}
    written = {"model/model.onnx", "model/manifest.json", *chosen}
    assert files == {*sources_for("models.exported.predictor"), *written}
    assert (source / "model/model.onnx").read_bytes() == (model / "model.onnx").read_bytes()
    settings = {
        "top_k": 5,
        "max_body_mb": 32,
        "max_batch_images": 64,
        "max_queue": 128,
        "deadline_seconds": 10,
        "token_requests_per_second": None,
        "token_images_per_second": None,
        "token_explanations": None,
        "access_log": False,
        "samples": 0,
        "samples_days": 7.0,
    }
    assert json.loads((source / "serving.json").read_text()) == settings
    for name in sources_for("models.exported.predictor"):
        assert (source / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_packages_are_those_of_this_environment(bento):
    lines = (bento.path / "env/python/requirements.txt").read_text().split()
    assert set(lines) == set(requirements(TARGETS["cpu"]))
    assert f"onnxruntime=={version('onnxruntime')}" in lines
    for package_name in TARGETS["cpu"].packages:
        try:
            assert f"{package_name}=={version(package_name)}" in lines
        except PackageNotFoundError:
            assert package_name in lines


def test_neither_folders_of_this_machine_nor_package_indexes_are_in_a_bento(bento, store):
    for path in bento.path.rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert str(store) not in text, path
            assert str(ROOT) not in text, path
            assert "index-url" not in text, path


def test_the_service_loads_without_the_tools_that_made_the_model(bento, tmp_path):
    program = """
import json, sys, asyncio
from serving.endpoint.service import ConvoyService
assert "onnxruntime" not in sys.modules, "`bentoml build` pays for it"
service = ConvoyService.inner()
assert asyncio.run(service.__is_ready__())
print(json.dumps({name: getattr(module, "__file__", None) for name, module in sys.modules.items()}))
"""
    source = bento.path / "src"
    environment = {"BENTOML_HOME": str(tmp_path), "BENTOML_DO_NOT_TRACK": "true", "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=source, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    modules = json.loads(result.stdout)
    assert not {
        "torch",
        "torchvision",
        "pytorch_lightning",
        "lightning",
        "mlflow",
        "prefect",
        "dvc",
        "pipelines",
    } & set(modules)
    ours = {name: file for name, file in modules.items() if name.split(".")[0] in ("data", "models", "serving")}
    assert "models.exported.predictor" in ours
    assert all(str(file).startswith(str(source)) for file in ours.values())


def test_its_own_server_does_without_bentoml(bento):
    program = "import sys; from serving.endpoint.server import load_app; load_app(); print('bentoml' in sys.modules)"
    environment = {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=bento.path / "src", env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_same_inputs_give_the_same_bento(bento, model, store, monkeypatch):
    monkeypatch.setattr(package, "_run_build", lambda *_: pytest.fail("it was built again"))
    assert build_bento(model, ServingConfig(), store) == bento
    assert build_bento(model, ServingConfig(host="0.0.0.0", port=4000), store) == bento


def test_other_inputs_give_another_bento(model, tmp_path, quick_build):
    first = build_bento(model, ServingConfig(), tmp_path)
    settings = build_bento(model, ServingConfig(top_k=2), tmp_path)
    newer = build_bento(make_model(tmp_path / "newer", version="4"), ServingConfig(), tmp_path)

    assert len({first.tag, settings.tag, newer.tag}) == 3
    assert quick_build == [bento.path.name for bento in (first, settings, newer)]
    assert list_bentos(tmp_path) == [newer, settings, first]
    assert find_bento(tmp_path, "Strongest Color", "3", "cpu") == settings
    assert find_bento(tmp_path, "Strongest Color", "5", "cpu") is None


def test_examples_are_packed_where_there_are_some(model, tmp_path, quick_build):
    examples = {"examples": [{"label": "red", "image": "iVBORw0KGgo="}]}
    plain = build_bento(model, ServingConfig(), tmp_path)
    shown = build_bento(model, ServingConfig(examples=1), tmp_path, examples)
    assert build_bento(model, ServingConfig(examples=1), tmp_path) == plain
    assert build_bento(model, ServingConfig(examples=1), tmp_path, examples) == shown
    other = build_bento(model, ServingConfig(examples=1), tmp_path, {"examples": [*examples["examples"]] * 2})
    assert len({plain.tag, shown.tag, other.tag}) == 3
    included = [json.loads((bento.path / "bentofile.json").read_text())["include"] for bento in (plain, shown)]
    assert ["examples.json" in names for names in included] == [False, True]


def test_words_in_the_code_give_the_same_bento_and_its_meaning_another(model, tmp_path, quick_build, house):
    first = build_bento(model, ServingConfig(), tmp_path)
    for path in house.rglob("*.py"):
        reword(path)
    assert build_bento(model, ServingConfig(), tmp_path) == first
    change(house / "serving/endpoint/server.py", "DRAIN_SECONDS", "13")
    assert build_bento(model, ServingConfig(), tmp_path) != first


def test_an_interrupted_build_leaves_nothing(model, tmp_path, monkeypatch):
    def build(staging: Path, home: Path, version: str) -> None:
        (home / "bentos" / "strongest-color" / version).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(package, "_run_build", build)
    with pytest.raises(KeyboardInterrupt):
        build_bento(model, ServingConfig(), tmp_path)
    assert not (tmp_path / "bentos").exists()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_damaged_bento_is_built_again(model, tmp_path, quick_build):
    bento = build_bento(model, ServingConfig(), tmp_path)
    (bento.path / "bento.yaml").write_text("labels: [")
    assert list_bentos(tmp_path) == []
    assert build_bento(model, ServingConfig(), tmp_path).tag == bento.tag
    assert len(quick_build) == 2


def test_what_bentoml_cannot_build_is_told_in_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr(package, "ENTRIES", ["serving.endpoint.server"])
    with pytest.raises(UserError, match=r"No module named 'serving\.endpoint\.service'") as error:
        build_bento(model, ServingConfig(), tmp_path)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 1
    assert list_bentos(tmp_path) == []


def test_a_model_that_is_not_ready_to_be_served_is_refused(tmp_path):
    config, store = ServingConfig(), tmp_path / "store"
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        build_bento(tmp_path / "nowhere", config, store)
    with pytest.raises(UserError, match="no version: register it"):
        build_bento(make_model(tmp_path / "unregistered", version=None), config, store)
    altered = make_model(tmp_path / "altered")
    (altered / "model.onnx").write_bytes(b"something else")
    with pytest.raises(UserError, match="not the file that its manifest describes"):
        build_bento(altered, config, store)
    (altered / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx is missing"):
        build_bento(altered, config, store)
    assert not store.exists()


def test_names_become_tags():
    assert package._slug("AlexNet / Größe 227 px!") == "alexnet-gr-e-227-px"
    assert package._slug("---") == "model"
    assert len(package._slug("x" * 100)) == 40


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"labels:",
        b"labels: 3\nname: a\nversion: b",
        b"[1, 2]",
        b"\xff\xfe",
        b"{",
        b"name: other\nversion: '1'\ncreation_time: '2026-01-01T00:00:00+00:00'\nlabels: {team: them}\n",
        None,
    ],
)
def test_a_store_with_strange_things_in_it_is_listed(tmp_path, content):
    folder = tmp_path / "bentos" / "name" / "version"
    folder.mkdir(parents=True)
    (tmp_path / "bentos" / "file").touch()
    if content is None:
        (folder / "bento.yaml").mkdir()
    else:
        (folder / "bento.yaml").write_bytes(content)
    assert list_bentos(tmp_path) == []


def test_a_store_that_is_not_there_is_empty(tmp_path):
    (tmp_path / "file").touch()
    assert list_bentos(tmp_path / "nowhere") == []
    assert list_bentos(tmp_path / "file") == []


def test_listing_imports_nothing_heavy(store, bento):
    program = f"""
import sys
from pathlib import Path
from serving.packaging.bento import list_bentos
bentos = list_bentos(Path({str(store)!r}))
print(len(bentos), *{{"bentoml", "onnxruntime", "numpy", "PIL", "starlette"}} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1"]


def test_only_the_file_of_the_chosen_precision_is_packed(tmp_path, quick_build):
    bento = build_bento(make_quantized(tmp_path / "model"), ServingConfig(target="edge"), tmp_path / "store")
    assert (bento.target, bento.precision) == ("edge", "int8")
    described = json.loads((bento.path / "bentofile.json").read_text())
    assert [name for name in described["include"] if name.endswith(".onnx")] == ["model/model.int8.onnx"]
    assert "packing.json" in described["include"]


def test_an_altered_int8_file_is_not_packed(tmp_path):
    model = make_quantized(tmp_path / "model")
    (model / "model.int8.onnx").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"model\.int8\.onnx is not the file that its manifest describes"):
        build_bento(model, ServingConfig(target="edge"), tmp_path / "store")
