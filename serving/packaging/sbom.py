"""Build step of an image: write its bill of materials in CycloneDX 1.6. Uses the standard library only.

Compiled packages bundle other libraries. They come from the lists in the wheels (PEP 770), and from two packages that
have no list.
"""

import importlib
import json
import platform
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

MANIFEST = Path("model/manifest.json")
DEBIAN_PACKAGES = Path("/var/lib/dpkg/status")


def main() -> None:
    """Print the bill of materials of the image in argv[1]. The current folder is the Bento's `src`."""
    title, _, version = sys.argv[1].partition(":")
    print(json.dumps(describe(title, version), indent=1))


def describe(title: str, version: str) -> dict[str, Any]:
    """Return the document: the model, Python and its packages, Debian's packages."""
    image = _component("container", "image", title, version, f"pkg:docker/{title}@{version}")
    packages = sorted(distributions(), key=lambda one: _normal(one.name))
    bundled = {_ref(package): list(_bundled(package)) for package in packages}
    components = [_model(), _python(), *map(_package, packages), *chain.from_iterable(bundled.values()), *_debian()]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # Derived from the contents, so that the same contents give the same document.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([title, version, components])).urn,
        "version": 1,
        "metadata": {"component": image},
        "components": components,
        "dependencies": [
            {"ref": "image", "dependsOn": [component["bom-ref"] for component in components]},
            *_dependencies(packages, bundled),
        ],
    }


def _component(kind: str, ref: str, name: str, version: str, purl: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": ref, "name": name, "version": version, "purl": purl}


def _model() -> dict[str, Any]:
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    names = ("run_id", "data_version", "git_commit", "network")
    name, version = manifest["name"], manifest["version"]
    purl = f"pkg:mlflow/{quote(name)}@{version}?run_id={quote(manifest['run_id'])}"
    return _component("machine-learning-model", "model", name, version, purl) | {
        "hashes": [{"alg": "SHA-256", "content": manifest["onnx_sha256"]}],
        "modelCard": _model_card(manifest),
        "properties": [{"name": f"convoy:{name}", "value": str(manifest[name])} for name in names if manifest[name]],
    }


def _model_card(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the model does, on which data it was trained, and what it was worth on the test images."""
    data = {"type": "dataset", "name": f"data version {manifest['data_version']}"}
    return {
        "modelParameters": {
            "task": "image-classification",
            "modelArchitecture": manifest["network"],
            "datasets": [data],
            "inputs": [{"format": "image"}],
            "outputs": [{"format": f"probabilities of {len(manifest['classes'])} classes"}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": name, "value": f"{value:.6g}"} for name, value in sorted(manifest["metrics"].items())
            ]
        },
    }


def _python() -> dict[str, Any]:
    version = platform.python_version()
    return _component("platform", f"python@{version}", "python", version, f"pkg:generic/python@{version}")


def _ref(package: Distribution) -> str:
    """Return the package URL."""
    return f"pkg:pypi/{_normal(package.name)}@{package.version}"


def _package(package: Distribution) -> dict[str, Any]:
    component = _component("library", _ref(package), package.name, package.version, _ref(package))
    return component | {"licenses": licenses} if (licenses := _licenses(package)) else component


def _bundled(package: Distribution) -> Iterator[dict[str, Any]]:
    """List the libraries that a package links statically, or brings as files."""
    report = REPORTS.get(_normal(package.name))
    found = {one: _generic(*one) for one in report(package)} if report else dict(_carried(package))
    for (library, version), purl in sorted(found.items()):
        yield _component("library", f"{_ref(package)}#{library}@{version}", library, version, purl)


def _generic(library: str, version: str) -> str:
    return f"pkg:generic/{quote(library)}@{quote(version)}"


def _numpy(_package: Distribution) -> Iterator[tuple[str, str]]:
    blas = importlib.import_module("numpy").show_config(mode="dicts")["Build Dependencies"]["blas"]
    yield blas["name"].removeprefix("scipy-"), blas["version"]


def _simplejpeg(package: Distribution) -> Iterator[tuple[str, str]]:
    # simplejpeg has no version function. A message of libjpeg-turbo in the binary names its version.
    (module,) = Path(str(package.locate_file("simplejpeg"))).glob("_jpeg*.so")
    if found := re.search(rb"libjpeg-turbo version ([\d.]+)", module.read_bytes()):
        yield "libjpeg-turbo", found[1].decode()


REPORTS: Mapping[str, Callable[[Distribution], Iterable[tuple[str, str]]]] = {
    "numpy": _numpy,
    "simplejpeg": _simplejpeg,
}


def _carried(package: Distribution) -> Iterator[tuple[tuple[str, str], str]]:
    """Read the components of a wheel's CycloneDX files, without Python packages: name and version, and package URL."""
    for file in package.files or []:
        if file.parent.name == "sboms" and file.suffix == ".json":
            for component in json.loads(file.read_text(encoding="utf-8")).get("components", []):
                name, version = component["name"], component.get("version")
                purl = component.get("purl") or (version and _generic(name, version))
                if version and not purl.startswith("pkg:pypi/"):
                    yield (name, version), purl


def _licenses(package: Distribution) -> list[dict[str, Any]]:
    for expression in package.metadata.get_all("License-Expression", []):
        return [{"expression": expression}]
    classifiers = package.metadata.get_all("Classifier", [])
    classified = [line.rpartition(" :: ")[2] for line in classifiers if "License ::" in line]
    # Some packages put the whole license text there.
    named = [text for text in package.metadata.get_all("License", []) if len(text) < 64 and "\n" not in text]
    return [{"license": {"name": name}} for name in classified or named]


def _dependencies(
    packages: list[Distribution], bundled: Mapping[str, list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    refs = {_normal(package.name): _ref(package) for package in packages}
    for package in packages:
        # Markers are ignored: a requirement of an extra or of another system counts if it is installed.
        asked = {_normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in package.requires or []}
        found = sorted(refs[name] for name in asked & refs.keys())
        libraries = [component["bom-ref"] for component in bundled[_ref(package)]]
        yield {"ref": _ref(package), "dependsOn": [*found, *libraries]}


def _debian() -> Iterator[dict[str, Any]]:
    if not DEBIAN_PACKAGES.is_file():
        return
    for paragraph in DEBIAN_PACKAGES.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={fields['Architecture']}"
            yield _component("library", purl, name, version, purl)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
