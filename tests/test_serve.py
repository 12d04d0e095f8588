"""The start command takes nobody's place, and drains all applications under one grace."""

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.exceptions import RayServeException

from serve_app.replica.imports import COMPILER
from serve_app.serve import OWN, address_of, before_forks, cut_off, drained, prestarted, require_port


@dataclass
class Ingress:
    """A deployment whose drain ends once as many are being drained as there are; `error` instead of an answer."""

    together: asyncio.Barrier
    error: Exception | None = None

    def broadcast(self, method: str, grace_s: float) -> "Ingress":
        assert (method, grace_s) == ("drain", 7)
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        await self.together.wait()
        if self.error:
            raise self.error
        return [None]


async def test_all_applications_drain_at_once_and_none_waits_for_another() -> None:
    together = asyncio.Barrier(3)
    ingresses = [Ingress(together), Ingress(together, RayServeException("gone")), Ingress(together, TimeoutError())]
    async with asyncio.timeout(5):
        await drained(ingresses, 7)


@pytest.mark.parametrize(
    ("option", "variable", "address"),
    [
        (None, None, OWN),
        (None, "", OWN),
        (None, "local", OWN),
        (None, "10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "10.0.0.1:6379", "auto"),
    ],
)
def test_a_running_ray_is_joined_only_if_named(option: str | None, variable: str | None, address: str) -> None:
    assert address_of(option, {} if variable is None else {"RAY_ADDRESS": variable}) == address


@pytest.mark.parametrize("theirs", ["127.0.0.1", "0.0.0.0"])  # noqa: S104, what others may do
def test_a_port_that_another_service_would_share_is_refused(theirs: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    with socket.create_server((theirs, 0), reuse_port=True) as proxy:  # as Serve's proxies listen
        port = proxy.getsockname()[1]
        config.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}}))
        with pytest.raises(SystemExit, match=f"^port {port} of 127.0.0.1 cannot be had: Address already in use$"):
            require_port(str(config))
    require_port(str(config))


@pytest.mark.parametrize("odd", ["", "- a", "words", "applications: 3", "applications: [3]", "http_options: words"])
def test_what_is_odd_in_a_config_is_left_for_serve_to_tell(odd: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(odd)
    assert [*cut_off(str(config))] == []
    assert prestarted(str(config), cores=1) == {}
    assert before_forks(str(config)) == ((), False)


@pytest.mark.parametrize(
    ("limit_s", "args", "warned"),
    [
        (330, {}, True),
        (930, {}, False),
        (330, {"trajectories": {"ttl_s": 20}}, False),
        (930, {"request_timeout_s": 600}, True),
        (330, {"request_timeout_s": "long"}, False),
        (None, {}, False),
    ],
)
def test_who_lets_serve_end_streams_early_is_told(
    limit_s: int | None, args: dict[str, Any], warned: bool, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    others = {"import_path": "their:app", "args": {"anything": 1}}
    ours = {"import_path": "serve_app.app:build", "args": args}
    given = {"http_options": {"request_timeout_s": limit_s}, "applications": [others, ours]}
    config.write_text(yaml.safe_dump(given))
    assert [f"({limit_s})" in warning for warning in cut_off(str(config))] == [True] * warned


@pytest.mark.parametrize(
    ("args", "processes"),
    [
        ({"num_replicas": 4}, 9),
        ({"models": {"a": {}, "b": {"num_replicas": 1}}, "default_model": "a", "num_replicas": 3}, 9),
        ({"num_replicas": "many"}, 5),
    ],
)
def test_ray_starts_the_processes_of_a_service_where_there_are_cores_for_them(
    args: dict[str, Any], processes: int, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]}))
    assert prestarted(str(config), processes - 1) == {}
    assert {*prestarted(str(config), processes).values()} == {str(processes)}


@pytest.mark.parametrize(
    ("args", "modules", "gpus"),
    [
        ({"num_gpus": 0, "engine": {"compile": "none"}}, (), False),
        ({"num_gpus": 1, "engine": {"compile": "full"}}, COMPILER, True),
        (
            {"num_gpus": 0, "models": {"a": {}, "b": {"engine": {"compile": "regional"}}}, "default_model": "a"},
            COMPILER,
            False,
        ),
        ({"num_gpus": 0, "models": {"a": {}, "b": {"num_gpus": 0.5}}, "default_model": "a"}, (), True),
    ],
)
def test_what_is_imported_before_forks_is_what_a_service_needs(
    args: dict[str, Any], modules: tuple[str, ...], gpus: bool, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]}))
    assert before_forks(str(config)) == (modules, gpus)
