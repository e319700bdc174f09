"""While an image is built: list what is in it, as CycloneDX 1.6 does. Runs inside, with the standard library only."""

import json
import platform
import re
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

MANIFEST = Path("model/manifest.json")
DEBIAN_PACKAGES = Path("/var/lib/dpkg/status")


def main() -> None:
    """Print the list of the image that is named; the current folder is the Bento's `src`."""
    title, _, version = sys.argv[1].partition(":")
    print(json.dumps(describe(title, version), indent=1))


def describe(title: str, version: str) -> dict[str, Any]:
    """Make the document: the model, Python and its packages, Debian's packages."""
    image = {"type": "container", "bom-ref": "image", "name": title, "version": version}
    packages = sorted(distributions(), key=lambda one: _normal(one.name))
    components = [_model(), _python(), *map(_package, packages), *_debian()]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same contents have the same list: no time, no chance.
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([title, version, components])).urn,
        "version": 1,
        "metadata": {"component": image},
        "components": components,
        "dependencies": [
            {"ref": "image", "dependsOn": [component["bom-ref"] for component in components]},
            *_dependencies(packages),
        ],
    }


def _model() -> dict[str, Any]:
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    names = ("run_id", "data_version", "git_commit", "network")
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest["name"],
        "version": manifest["version"],
        "hashes": [{"alg": "SHA-256", "content": manifest["onnx_sha256"]}],
        "properties": [{"name": f"convoy:{name}", "value": str(manifest[name])} for name in names if manifest[name]],
    }


def _python() -> dict[str, Any]:
    version = platform.python_version()
    return {"type": "platform", "bom-ref": f"python@{version}", "name": "python", "version": version}


def _package(package: Distribution) -> dict[str, Any]:
    purl = f"pkg:pypi/{_normal(package.name)}@{package.version}"
    component = {"type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl}
    return component | {"licenses": licenses} if (licenses := _licenses(package)) else component


def _licenses(package: Distribution) -> list[dict[str, Any]]:
    for expression in package.metadata.get_all("License-Expression", []):
        return [{"expression": expression}]
    classifiers = package.metadata.get_all("Classifier", [])
    classified = [line.rpartition(" :: ")[2] for line in classifiers if "License ::" in line]
    # Some put the whole text there.
    named = [text for text in package.metadata.get_all("License", []) if len(text) < 64 and "\n" not in text]
    return [{"license": {"name": name}} for name in classified or named]


def _dependencies(packages: list[Distribution]) -> Iterator[dict[str, Any]]:
    refs = {_normal(package.name): f"pkg:pypi/{_normal(package.name)}@{package.version}" for package in packages}
    for package in packages:
        # What is only for an extra or for another system is not here, or is here for somebody else.
        asked = {_normal(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in package.requires or []}
        found = sorted(refs[name] for name in asked & refs.keys())
        yield {"ref": refs[_normal(package.name)], "dependsOn": found}


def _debian() -> Iterator[dict[str, Any]]:
    if not DEBIAN_PACKAGES.is_file():
        return
    for paragraph in DEBIAN_PACKAGES.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            purl = f"pkg:deb/debian/{fields['Package']}@{fields['Version']}?arch={fields['Architecture']}"
            yield {
                "type": "library",
                "bom-ref": purl,
                "name": fields["Package"],
                "version": fields["Version"],
                "purl": purl,
            }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
