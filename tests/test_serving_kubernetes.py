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


MANIFESTS = [*resource_files(FOLDER / "base"), *resource_files(FOLDER / "components/ingress")]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_is_what_kubernetes_reads(path):
    for document in documents(path.read_text()):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_schemas_find_a_mistake():
    service = yaml.safe_load((FOLDER / "base/service.yaml").read_text())
    service["spec"]["prots"] = service["spec"].pop("ports")
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate(service, KUBERNETES, strict=True)


def test_every_target_has_its_manifests():
    assert {path.name for path in FOLDER.iterdir()} == {"base", "components", *TARGETS}


def test_an_endpoint_is_reached_by_pods_only_and_reaches_nothing():
    (policy,) = documents((FOLDER / "base/network.yaml").read_text())
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["egress"] == []
    (rule,) = policy["spec"]["ingress"]
    assert rule == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": "http"}]}


def test_a_way_in_from_outside_has_tls():
    (ingress,) = documents((FOLDER / "components/ingress/ingress.yaml").read_text())
    hosts = [host for entry in ingress["spec"]["tls"] for host in entry["hosts"]]
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == hosts


def test_tokens_come_as_a_file():
    (deployment,) = documents((FOLDER / "base/deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    mount = next(one for one in container["volumeMounts"] if one["name"] == "tokens")
    assert variables == {"CONVOY_TOKENS_FILE": f"{mount['mountPath']}/CONVOY_TOKENS"}
    assert mount["readOnly"]
    assert pod["restartPolicy"] == "Always"


@pytest.mark.parametrize("target", TARGETS)
def test_a_pod_gets_what_its_target_asks_for(target):
    (base,) = documents((FOLDER / "base/deployment.yaml").read_text())
    (patch,) = documents((FOLDER / target / "resources.yaml").read_text())
    deployment = merged(base, patch)
    kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    require_deployment_of(target, deployment)


def test_a_pod_has_time_to_end():
    # Longer than it waits before its end and than the server may take for requests in flight.
    from serving.endpoint.server import DRAIN_SECONDS

    (base,) = documents((FOLDER / "base/deployment.yaml").read_text())
    pod = base["spec"]["template"]["spec"]
    wait = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait + DRAIN_SECONDS


def kustomize(folder):
    """What `kubectl apply -k` would send, by kind."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True, timeout=60)
    return {document["kind"]: document for document in documents(done.stdout)}


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which has kustomize")


@needs_kubectl
@pytest.mark.parametrize("target", TARGETS)
def test_kustomize_makes_a_target_whole(target):
    made = kustomize(FOLDER / target)
    for document in made.values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        assert document["metadata"]["name"] == f"classifier-{target}"
    require_deployment_of(target, made["Deployment"])
    pods = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service"]["spec"]["selector"] == pods
    assert made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == pods
    assert made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == pods
    assert made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == f"classifier-{target}"


@needs_kubectl
@pytest.mark.parametrize("target", TARGETS)
def test_kustomize_adds_a_way_in_and_a_monitor(tmp_path, target):
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    path = tmp_path / "kubernetes" / target / "kustomization.yaml"
    components = "components: [../components/ingress, ../components/monitor]"
    path.write_text(path.read_text().replace("components: []", components))
    made = kustomize(path.parent)
    (rule,) = made["Ingress"]["spec"]["rules"]
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == f"classifier-{target}"
    kubernetes_validate.validate(made["Ingress"], KUBERNETES, strict=True)
    # Of the service of this target, and of no other one.
    assert made["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == made["Service"]["metadata"]["labels"]
    assert made["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == made["Service"]["spec"]["ports"][0]["name"]
