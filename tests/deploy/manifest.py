"""deploy.yaml as the tests read it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from serve_app.config import AppArgs

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Manifest:
    """The objects that are applied together."""

    documents: tuple[dict[str, Any], ...]

    @cached_property
    def service(self) -> dict[str, Any]:
        """The RayService, of which there is one."""
        (service,) = self.of_kind("RayService")
        return service

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind."""
        return [document for document in self.documents if document["kind"] == kind]

    def named(self, kind: str, name: str) -> dict[str, Any]:
        """Return the object of a kind with a name."""
        (found,) = [document for document in self.of_kind(kind) if document["metadata"]["name"] == name]
        return found

    @property
    def cluster(self) -> dict[str, Any]:
        """The Ray cluster's config."""
        cluster: dict[str, Any] = self.service["spec"]["rayClusterConfig"]
        return cluster

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The head and all groups of workers, by name."""
        return {
            "head": self.cluster["headGroupSpec"],
            **{group["groupName"]: group for group in self.cluster["workerGroupSpecs"]},
        }

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """The pods of all groups."""
        return {name: group["template"]["spec"] for name, group in self.groups.items()}

    @property
    def application(self) -> dict[str, Any]:
        """The application of the Serve config."""
        (application,) = yaml.safe_load(self.service["spec"]["serveConfigV2"])["applications"]
        found: dict[str, Any] = application
        return found

    @property
    def args(self) -> AppArgs:
        """The application's settings."""
        return AppArgs.model_validate(self.application["args"])


def parse(text: str) -> Manifest:
    """Return the objects in a YAML text."""
    return Manifest(tuple(yaml.safe_load_all(text)))


def container(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the only container of a pod that is not there for its start."""
    (found,) = pod["containers"]
    return dict(found)


def environment(of: dict[str, Any]) -> dict[str, str]:
    """Return a container's environment, as far as the manifest has its values."""
    return {variable["name"]: variable["value"] for variable in of.get("env", []) if "value" in variable}
