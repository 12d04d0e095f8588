"""kustomization.yaml sets what differs from cluster to cluster. kubectl needs none to render it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import serve_app
from tests.deploy.manifest import ROOT, Manifest, parse

KUBECTL = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")


def rendered(folder: Path) -> Manifest:
    assert KUBECTL, "make .venv/dev installs it"
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout)


def by_name(manifest: Manifest) -> dict[tuple[str, str], dict[str, Any]]:
    return {(document["kind"], document["metadata"]["name"]): document for document in manifest.documents}


def test_as_it_is_it_gives_deploy_yaml() -> None:
    assert by_name(rendered(ROOT)) == by_name(parse((ROOT / "deploy.yaml").read_text()))


def test_what_is_set_there_arrives_everywhere_and_nothing_else_changes(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "kustomization.yaml").read_text())
    settings["namespace"] = "images"
    settings["images"][0]["newName"] = "registry.example.com/parallel-sdxl"
    claim, service = settings["patches"]
    claim["patch"] = claim["patch"].replace("shared", "nfs")
    service["patch"] = service["patch"].replace("value: 8", "value: 16")
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(ROOT / "deploy.yaml", tmp_path)

    expected = parse((ROOT / "deploy.yaml").read_text())
    for document in expected.documents:
        document["metadata"]["namespace"] = "images"
    for pod in expected.pods.values():
        for of in (*pod["containers"], *pod.get("initContainers", [])):
            of["image"] = f"registry.example.com/parallel-sdxl:{serve_app.__version__}"
    expected.named("PersistentVolumeClaim", "parallel-sdxl-models")["spec"]["storageClassName"] = "nfs"
    expected.groups["gpu"]["maxReplicas"] = 16
    assert by_name(rendered(tmp_path)) == by_name(expected)
