"""The manifests: Kubernetes' own schemas where they are installed, and that they fit the server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.files import CLOSE_SECONDS, DEPLOY, documents, paths_of_the_server, program, serve_arguments

FOLDER = DEPLOY / "kubernetes"
UNITS = {"": 1, "Mi": 2**20, "Gi": 2**30}


def parts() -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in documents(FOLDER / "base/jaxinfer.yaml")}


def pod() -> dict[str, Any]:
    return parts()["Deployment"]["spec"]["template"]["spec"]


def server() -> dict[str, Any]:
    (container,) = pod()["containers"]
    return container


def size(text: str) -> int:
    found = re.fullmatch(r"(\d+)(Mi|Gi|)", str(text))
    assert found is not None, text
    return int(found[1]) * UNITS[found[2]]


def test_probes_ask_for_what_the_server_has():
    ports = {port["name"]: port["containerPort"] for port in server()["ports"]}
    assert ports == {"http": 8000, "grpc": 50051}
    probes = {name: server()[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "readiness": "/ready",  # 503 while it drains
        "liveness": "/health",  # 200 while it drains, or its pod would be killed for it
    }
    for probe in probes.values():
        assert probe["path"] in paths_of_the_server()
        assert probe["port"] in ports
    startup = server()["startupProbe"]
    assert (
        startup["periodSeconds"] * startup["failureThreshold"]
        < parts()["Deployment"]["spec"]["progressDeadlineSeconds"]
    )


def test_a_pod_that_goes_has_time_to_drain():
    arguments = serve_arguments(server()["args"])
    word, seconds = server()["lifecycle"]["preStop"]["exec"]["command"]
    assert word == "sleep"
    needed = int(seconds) + arguments.grace_seconds + 2 * CLOSE_SECONDS
    assert pod()["terminationGracePeriodSeconds"] > needed
    # It is taken out of the service before it stops taking requests.
    readiness = server()["readinessProbe"]
    assert int(seconds) >= readiness["periodSeconds"]


def test_labels_ports_and_volumes_fit_together():
    found = parts()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    names = {port["name"] for port in server()["ports"]}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == names
    assert {mount["name"] for mount in server()["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}
    notes = found["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert notes["prometheus.io/path"] in paths_of_the_server()
    assert found["Deployment"]["spec"]["replicas"] > found["PodDisruptionBudget"]["spec"]["minAvailable"]


def test_it_asks_for_what_it_needs_and_is_nobody():
    resources = server()["resources"]
    assert size(resources["requests"]["memory"]) <= size(resources["limits"]["memory"])
    assert float(resources["requests"]["cpu"]) >= 1
    assert "cpu" not in resources["limits"]
    user = pod()["securityContext"]
    assert user["runAsNonRoot"] is True
    image = (DEPLOY / "docker/cpu.Dockerfile").read_text()
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}" in image
    inside = server()["securityContext"]
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (cache,) = [mount["mountPath"] for mount in server()["volumeMounts"] if mount["name"] == "cache"]
    assert f'VOLUME ["{cache}"]' in image


def built(folder: Path) -> list[dict[str, Any]]:
    import yaml

    kubectl = program("kubectl", "kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_overlay_puts_it_on_a_gpu():
    (deployment,) = [each for each in built(FOLDER / "gpu") if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example/jaxinfer:cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    assert container["args"] == server()["args"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}


@pytest.mark.parametrize("folder", ["base", "gpu"])
def test_the_schemas_of_kubernetes_hold(folder):
    """Strict: an unknown field is an error."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: pip install '.[deploy]'"
    )
    for each in built(FOLDER / folder):
        validate.validate(each, "1.36", strict=True)
