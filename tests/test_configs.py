"""Config files only have keys that Serve and the builder know: Serve silently drops unknown ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppArgs

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def unknown_keys(data: Any, model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the keys that no field takes."""
    for key, value in data.items():
        if key not in model.model_fields:
            yield path + key
            continue
        for inner in models_in(model.model_fields[key].annotation):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    yield from unknown_keys(item, inner, f"{path}{key}.")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_key_is_known_and_every_value_valid(path: Path) -> None:
    config = load(path)
    assert list(unknown_keys(config, ServeDeploySchema)) == []
    (application,) = ServeDeploySchema.model_validate(config).applications
    args = AppArgs.model_validate(application.args)
    assert config["http_options"]["request_timeout_s"] > args.request_timeout_s + args.trajectories.ttl_s, (
        "Serve's own timeout would cut answers off"
    )


@pytest.mark.parametrize(
    "typo", [{"num_replcas": 1}, {"http_options": {"prot": 1}}, {"applications": [{"rout_prefix": "/"}]}]
)
def test_the_walk_finds_typos(typo: dict[str, Any]) -> None:
    assert len(list(unknown_keys(typo, ServeDeploySchema))) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_serve_does_not_log_what_the_ingress_logs(path: Path) -> None:
    assert load(path)["logging_config"]["enable_access_log"] is False


def test_there_is_a_config_for_the_laptop_and_for_gpus() -> None:
    assert [path.stem for path in CONFIGS] == ["local", "sdxl", "several", "turbo"]


def test_the_local_config_fits_two_cores() -> None:
    args = AppArgs.model_validate(load(ROOT / "configs" / "local.yaml")["applications"][0]["args"])
    assert args.num_replicas * args.num_cpus <= 2
    assert args.num_gpus == 0
