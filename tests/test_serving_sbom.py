"""What is done inside an image while it is built, here: its list of contents, and what is taken out."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions, version
from pathlib import Path

import numpy as np
import pytest
from PIL import features
from test_serving_classifier import make_model

from core.errors import UserError
from models.exported.predictor import read_model_manifest
from serving.packaging import image as image_module
from serving.packaging import slim
from serving.packaging.bento import Bento
from serving.packaging.image import build_image, labels
from serving.packaging.sbom import describe
from serving.targets import GPU, Placement


def make_bento(path: Path, **changes: object) -> Bento:
    fields = {
        "tag": "n:1-gpu-1",
        "target": "gpu",
        "precision": "bf16",
        "path": path,
        "model_name": "N",
        "model_version": "1",
        "run_id": "r",
        "data_version": "d",
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    placement = Placement(target=GPU, runtime=GPU.runtimes[0])
    (path / "src").mkdir(exist_ok=True)
    (path / "src" / "placement.json").write_text(placement.model_dump_json())
    return Bento.model_validate(fields | changes)


@pytest.mark.slow
def test_the_list_names_the_model_and_every_package(tmp_path, monkeypatch):
    monkeypatch.chdir(make_model(tmp_path / "model").parent)
    listed = describe("convoy/n", "1")
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.6")
    model, python, *others = listed["components"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": read_model_manifest(tmp_path / "model").onnx_sha256}]
    assert {"name": "convoy:run_id", "value": "run-1"} in model["properties"]
    card = model["modelCard"]
    assert card["modelParameters"]["task"] == "image-classification"
    assert card["modelParameters"]["datasets"][0]["name"].startswith("data version ")
    metrics = {one["type"]: float(one["value"]) for one in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert metrics == pytest.approx(read_model_manifest(tmp_path / "model").metrics)
    assert python["name"] == "python"
    packages = {one["purl"]: one for one in others if one["purl"].startswith("pkg:pypi/")}
    assert packages.keys() == {
        f"pkg:pypi/{one.name.lower().replace('_', '-').replace('.', '-')}@{one.version}" for one in distributions()
    }
    numpy = f"pkg:pypi/numpy@{version('numpy')}"
    assert packages[numpy]["licenses"]
    depends = {one["ref"]: one["dependsOn"] for one in listed["dependencies"]}
    assert numpy in depends[f"pkg:pypi/onnxruntime@{version('onnxruntime')}"]
    # The same contents have the same list.
    assert describe("convoy/n", "1") == listed
    assert describe("convoy/n", "2")["serialNumber"] != listed["serialNumber"]
    assert json.dumps(listed)


def test_the_list_names_the_libraries_inside_of_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(make_model(tmp_path / "model").parent)
    listed = describe("convoy/n", "1")
    components = {component["bom-ref"]: component for component in listed["components"]}
    assert len(components) == len(listed["components"])
    assert [ref for ref, component in components.items() if not component["purl"].startswith("pkg:")] == []
    depends = {one["ref"]: one["dependsOn"] for one in listed["dependencies"]}

    def libraries(package):
        refs = depends[f"pkg:pypi/{package}@{version(package)}"]
        return {components[ref]["name"]: components[ref]["version"] for ref in refs if "#" in ref}

    # Names and versions are those of Pillow's own list.
    pillow = libraries("pillow")
    assert pillow["libwebp"] == features.version("webp")
    assert {"libtiff", "libavif", "OpenJPEG", "FreeType"} <= pillow.keys()
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert libraries("numpy")["openblas"] == blas["version"]
    assert re.fullmatch(r"[23]\.\d+\.\d+", libraries("simplejpeg")["libjpeg-turbo"])
    # Rust's crates, which the wheel lists itself.
    assert libraries("pydantic-core")["jiter"]


def test_what_no_endpoint_uses_is_taken_out(tmp_path, monkeypatch, capsys):
    packages = tmp_path / "lib/python3.11/site-packages"
    kept = ["numpy/__init__.py", "numpy.libs/blas.so", "onnxruntime/capi/onnxruntime_pybind11_state.so", "a/test.py"]
    gone = ["numpy/tests/a.py", "numpy/f2py/tests/b.py", "uvloop/loop.pyx", "onnxruntime/capi/libonnxruntime.so.1.32.0"]
    for name in [*kept, *gone]:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(bytes(1_000_000))
    monkeypatch.setattr(slim, "UNSTRIPPED", ())
    monkeypatch.setattr(sys, "argv", ["slim", str(tmp_path)])
    slim.main()
    assert capsys.readouterr().out == "slimmed by 4.0 MB\n"
    files = {path.relative_to(packages).as_posix() for path in packages.rglob("*") if path.is_file()}
    assert files == set(kept)


def test_the_scripts_need_nothing_that_is_not_in_every_python():
    program = (
        "import sys; from serving.endpoint import healthcheck; from serving.packaging import bytecode, sbom, slim; "
        "print({'numpy', 'pydantic', 'yaml'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_labels_leave_out_what_is_not_known(tmp_path):
    known = labels(make_bento(tmp_path))
    assert known["org.opencontainers.image.created"] == "2026-01-01T00:00:00+00:00"
    assert "convoy.git_commit" not in known
    assert labels(make_bento(tmp_path, git_commit="0a1b"))["convoy.git_commit"] == "0a1b"


def test_an_image_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(image_module, "docker", lambda *_: pytest.fail("something was built"))
    with pytest.raises(UserError, match=r"--platform linux/arm64: gpu is built for linux/amd64$"):
        build_image(make_bento(tmp_path), "linux/arm64")


def test_a_bento_of_an_earlier_version_is_told(tmp_path):
    bento = make_bento(tmp_path)
    (tmp_path / "src" / "placement.json").unlink()
    with pytest.raises(UserError, match="n:1-gpu-1 was packed by an earlier version: pack the model again"):
        labels(bento)


@pytest.mark.parametrize("own", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_an_index_of_the_machine_is_a_secret_of_the_build(tmp_path, monkeypatch, own):
    for name in image_module.INDEXES:
        monkeypatch.delenv(name, raising=False)
    assert "--secret" not in list(image_module._arguments(make_bento(tmp_path), "n:1", None))
    monkeypatch.setenv(own, "address")
    arguments = list(image_module._arguments(make_bento(tmp_path), "n:1", "linux/amd64"))
    assert arguments[arguments.index("--secret") + 1] == f"id=index,env={own}"
    assert arguments[arguments.index("--platform") + 1] == "linux/amd64"
    assert not any("address" in argument for argument in arguments)
