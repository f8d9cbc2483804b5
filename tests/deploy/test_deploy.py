"""What deploy/ says is true: its manifests are valid, its command lines are ours, its files exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from search.commands.cli import app
from search.optimize.retries import RetryPolicy

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "deploy").iterdir() if path.is_file())
MANIFESTS = [path for path in FILES if path.suffix == ".yaml"]
KUBERNETES = "1.32"

_PODS = {"type": "object", "properties": {"metadata": {}, "spec": {"type": "object"}}, "additionalProperties": False}
_COUNT = {"type": "integer", "minimum": 0}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _fields(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


_CLUSTER = _fields(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion={"type": "string"},
    authOptions=_fields("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    headGroupSpec=_fields("template", rayStartParams=_TEXTS, template=_PODS),
    workerGroupSpecs={
        "type": "array",
        "items": _fields(
            "groupName minReplicas maxReplicas template",
            groupName={"type": "string"},
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            rayStartParams=_TEXTS,
            template=_PODS,
        ),
    },
)
KUBERAY = {
    "RayCluster": _CLUSTER,
    "RayJob": _fields(
        "entrypoint rayClusterSpec",
        entrypoint={"type": "string"},
        backoffLimit=_COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        rayClusterSpec=_CLUSTER,
    ),
}
"""The fields of KubeRay's ray.io/v1 that are used here, by hand from its API reference (docs/reference/api.md of
ray-project/kuberay, and `authOptions` of its release 1.5.1): KubeRay's own schemas are in no package registry.
"""


def _objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


CLUSTERS = [found for path in MANIFESTS for found in _objects(path) if found["kind"] in KUBERAY]
each_cluster = pytest.mark.parametrize("found", CLUSTERS, ids=lambda found: found["kind"])


def _cluster(found: Mapping[str, Any]) -> dict[str, Any]:
    return found["spec"]["rayClusterSpec"] if found["kind"] == "RayJob" else found["spec"]


def _groups(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    cluster = _cluster(found)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def _pod(group: Mapping[str, Any]) -> dict[str, Any]:
    """The pod that KubeRay makes of a group's template."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group["template"]["spec"]}


@each_cluster
def test_manifests_have_the_fields_that_kuberay_knows(found: dict[str, Any]) -> None:
    assert found["apiVersion"] == "ray.io/v1"
    jsonschema.validate(found["spec"], KUBERAY[found["kind"]])


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_and_claims_follow_the_schemas_of_kubernetes(path: Path) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for found in _objects(path):
        plain = [_pod(group) for group in _groups(found)] if found["kind"] in KUBERAY else [found]
        for one in plain:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


@each_cluster
def test_ray_reads_the_nodes_that_a_manifest_describes(found: dict[str, Any]) -> None:
    """By the code with which Ray's autoscaler reads it: the head runs no trials, a worker has a GPU for one."""
    named = {"metadata": {"name": "overtone", "namespace": "default"}, "spec": _cluster(found)}
    config = _derive_autoscaling_config_from_ray_cr(named)
    nodes = config["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert (nodes["workers"]["resources"]["CPU"], nodes["workers"]["resources"]["GPU"]) == (4, 1)
    assert 1 <= nodes["workers"]["min_workers"] < nodes["workers"]["max_workers"]


@each_cluster
def test_all_nodes_have_the_same_image_store_and_version_of_ray(found: dict[str, Any]) -> None:
    locked = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert _cluster(found)["rayVersion"] == locked[1]
    containers = [group["template"]["spec"]["containers"][0] for group in _groups(found)]
    assert len({container["image"] for container in containers}) == 1
    assert f"--tag {containers[0]['image']} " in (ROOT / "deploy" / "README.md").read_text()
    shared = {"name": "shared", "mountPath": "/shared"}
    ways = [(container.get("envFrom"), shared in container.get("volumeMounts", [])) for container in containers]
    assert all(way == ways[0] and any(way) for way in ways)


def _command_lines() -> Iterator[list[str]]:
    """Every command line of Overtone that is quoted in deploy/, without the program's name."""
    entrypoints = [found["spec"]["entrypoint"] for found in CLUSTERS if found["kind"] == "RayJob"]
    quoted = [line.strip() for path in FILES if path not in MANIFESTS for line in path.read_text().splitlines()]
    for line in [*entrypoints, *quoted]:
        if found := re.search(r"(?:^|-- )(?:overtone|python -m search) ([a-z]+ --.*)$", line):
            yield shlex.split(found[1], comments=True)


COMMAND_LINES = list(_command_lines())


@pytest.mark.parametrize("given", COMMAND_LINES, ids=lambda given: given[0])
def test_command_lines_are_understood(given: list[str]) -> None:
    group = typer.main.get_group(app)
    with group.make_context("overtone", list(given)) as context:
        name, command, rest = group.resolve_command(context, list(given))
        assert command is not None
        assert command.make_context(name, rest, parent=context).params["store"]


def test_command_lines_are_found() -> None:
    quoted = "".join(path.read_text() for path in FILES)
    expected = len(re.findall(r"\b(?:overtone|python -m search) (?:search|resume|status) --", quoted))
    assert len(COMMAND_LINES) == expected >= 6
    remote = [given for given in COMMAND_LINES if given[0] != "status"]
    assert all("--address" in given and "--store" in given for given in remote)


def test_the_image_is_made_of_files_that_are_there() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from=" not in line]
    sources = [source for line in copied for source in line]
    assert all((ROOT / source).exists() for source in sources)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} <= set(sources)


def test_the_readme_links_to_files_that_are_there() -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    linked = re.findall(r"\]\((?!https?:)([^)]+)\)", text) + re.findall(r"--f(?:ile|ilename) (\S+)", text)
    named = [(ROOT / "deploy" / name) if "/" not in name else ROOT / name for name in linked]
    assert len(named) >= 4
    assert all(path.exists() for path in named)


def test_the_readme_asks_for_the_version_of_ray_that_the_package_does() -> None:
    readme = re.search(r"Ray \(([\d.]+) or later\)", (ROOT / "deploy" / "README.md").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    bounds = [name.partition(">=")[2] for name in wanted if name.startswith("ray[")]
    assert readme is not None
    assert bounds == [readme[1]] * 2


def test_the_readme_says_how_often_a_trial_is_run() -> None:
    """A suggestion whose worker dies is made again as often as the README says."""
    policy, again = RetryPolicy(), 0
    while policy.should_retry(f"run-{again}", {"trial": "a"}):
        again += 1
    text = " ".join((ROOT / "deploy" / "README.md").read_text().split())
    assert again == 2
    assert (
        "runs again from its last checkpoint, up to twice; if its node dies a third time, it is kept as failed" in text
    )
