"""What the builder does before anything of a running service stops."""

from pathlib import Path

import pytest

from serve_app.app import build, check_keys
from serve_app.config import AppArgs, AuthConfig
from serve_app.fanout.slot_record import LEAST_KEPT


def test_a_file_without_a_key_is_refused_before_anything_stops(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n")
    with pytest.raises(ValueError, match=r"auth\.keys_file.*holds no key"):
        build(AppArgs(auth=AuthConfig(keys_file=str(keys))))


def test_a_variable_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"auth\.keys_env.*KEYS"):
        check_keys(AuthConfig(keys_env="KEYS"), {"KEYS": " "})


def test_keys_that_are_elsewhere_are_left_to_the_ingress(tmp_path: Path) -> None:
    check_keys(AuthConfig(keys_file=str(tmp_path / "missing"), keys_env="KEYS"), {})
    check_keys(AuthConfig())


def test_each_model_is_a_deployment_of_its_own_behind_one_ingress() -> None:
    models = {"a": {"num_replicas": 3}, "b": {"engine": {"max_batch_size": 8}}}
    ingress = build(AppArgs(models=models, default_model="a"))._bound_deployment
    replicas = {name: bound._bound_deployment for name, bound in ingress.init_args[1].items()}
    assert ingress.name == "Ingress"
    assert {name: one.name for name, one in replicas.items()} == {"a": "Replica-a", "b": "Replica-b"}
    assert {name: one._deployment_config.num_replicas for name, one in replicas.items()} == {"a": 3, "b": 2}
    assert replicas["b"]._deployment_config.max_ongoing_requests > replicas["a"]._deployment_config.max_ongoing_requests
    assert replicas["b"].init_args[0].model.name == "b", "and knows nothing of the others"


def test_a_model_without_a_name_is_the_deployment_of_before() -> None:
    (replicas,) = build(AppArgs())._bound_deployment.init_args[1].values()
    assert replicas._bound_deployment.name == "Replica"


def test_streams_that_wait_for_people_leave_places_on_the_ingress() -> None:
    args = AppArgs()
    ingress = build(args)._bound_deployment._deployment_config
    assert ingress.max_ongoing_requests > args.trajectories.max_bytes / LEAST_KEPT + 1000
