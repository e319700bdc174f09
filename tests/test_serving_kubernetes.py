import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from serving.targets import TARGETS

FOLDER = Path(__file__).parents[1] / "serving/kubernetes"
# The first in which a pod can wait before its end without a program for it.
KUBERNETES = "1.30"


def documents(text):
    return list(yaml.safe_load_all(text))


def resource_files(folder):
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return [folder / name for name in content["resources"]]


def merged(one, patch):
    """What kustomize makes of a patch, as far as ours go: maps are merged, containers by their names."""
    if isinstance(patch, dict):
        return one | {key: merged(one[key], value) if key in one else value for key, value in patch.items()}
    if isinstance(patch, list):
        named = {item["name"]: item for item in patch}
        return [merged(item, named.get(item["name"], {})) for item in one]
    return patch


def require_deployment_of(target, deployment):
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    row = TARGETS[target]
    limits = container["resources"]["limits"]
    assert {key: limits[key] for key in ("cpu", "memory")} == {"cpu": f"{row.cpus:g}", "memory": f"{row.memory_mb}Mi"}
    assert container["resources"]["requests"] == limits
    assert ("nvidia.com/gpu" in limits) == (target == "gpu")
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1034,
        "runAsGroup": 1034,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("path", resource_files(FOLDER / "base"), ids=lambda path: path.name)
def test_a_manifest_is_what_kubernetes_reads(path):
    for document in documents(path.read_text()):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schemas_find_a_mistake():
    service = yaml.safe_load((FOLDER / "base/service.yaml").read_text())
    service["spec"]["prots"] = service["spec"].pop("ports")
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate(service, KUBERNETES, strict=True)


def test_every_target_has_its_manifests():
    assert {path.name for path in FOLDER.iterdir()} == {"base", *TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_a_pod_gets_what_its_target_asks_for(target):
    (base,) = documents((FOLDER / "base/deployment.yaml").read_text())
    (patch,) = documents((FOLDER / target / "resources.yaml").read_text())
    deployment = merged(base, patch)
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    require_deployment_of(target, deployment)


def test_a_pod_has_time_to_end():
    # Longer than it waits before its end and than the server may take for requests in flight.
    from serving.server import DRAIN_SECONDS

    (base,) = documents((FOLDER / "base/deployment.yaml").read_text())
    pod = base["spec"]["template"]["spec"]
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait + DRAIN_SECONDS


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize")
@pytest.mark.parametrize("target", TARGETS)
def test_kustomize_makes_a_target_whole(target):
    done = subprocess.run(
        ["kubectl", "kustomize", FOLDER / target], capture_output=True, text=True, check=True, timeout=60
    )
    made = {document["kind"]: document for document in documents(done.stdout)}
    for document in made.values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        assert document["metadata"]["name"] == f"classifier-{target}"
    require_deployment_of(target, made["Deployment"])
    pods = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service"]["spec"]["selector"] == pods
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == pods
    assert made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == f"classifier-{target}"
