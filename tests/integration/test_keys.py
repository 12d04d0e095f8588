"""A service that asks for a key."""

from pathlib import Path

import httpx2
import pytest
from openai import AuthenticationError, OpenAI
from ray import serve
from ray.serve import RunTarget

from serve_app.app import build
from serve_app.config import AuthConfig
from tests.integration.conftest import KEY, Cluster, eventually, let_go, tiny_args


def test_the_sdk_gets_in_with_a_key_and_not_without(locked: str) -> None:
    with OpenAI(api_key=KEY, base_url=f"{locked}/v1", max_retries=0, timeout=60) as sdk:
        assert [card.id for card in sdk.models.list()] == ["tiny"]
        assert sdk.images.generate(prompt="a", size="64x64", extra_body={"num_inference_steps": 1}).data
    with (
        OpenAI(api_key="guess", base_url=f"{locked}/v1", max_retries=0, timeout=60) as sdk,
        pytest.raises(AuthenticationError) as raised,
    ):
        sdk.images.generate(prompt="a")
    assert raised.value.code == "invalid_api_key"


def test_below_a_prefix_the_same_is_open(locked: str) -> None:
    assert httpx2.get(f"{locked}/health").status_code == 200
    assert httpx2.get(f"{locked}/status").status_code == 401
    page = httpx2.get(locked, follow_redirects=True)
    assert (page.status_code, str(page.url)) == (200, f"{locked}/")
    document = httpx2.get(f"{locked}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert document["servers"] == [{"url": "/locked"}]


def test_a_change_whose_keys_are_missing_is_told_and_leaves_the_old_ingress_serving(
    cluster: Cluster, tiny_path: Path, tmp_path: Path
) -> None:
    def deploy(keys: Path) -> None:
        # Only the ingress starts: nothing here has a thousand processors for the replica.
        args = tiny_args(tiny_path, num_replicas=1, num_cpus=1000, auth=AuthConfig(keys_file=str(keys)))
        serve.run_many(
            [RunTarget(build(args), name="changed", route_prefix="/changed")], wait_for_applications_running=False
        )

    key = {"Authorization": f"Bearer {KEY}"}
    http = httpx2.Client(base_url=f"{cluster.url}/changed", headers=key, timeout=60)

    def answers() -> int:
        return http.get("/status").status_code

    right = tmp_path / "keys"
    right.write_text(f"{KEY}\n")
    try:
        deploy(right)
        eventually(lambda: answers() == 200)
        deploy(tmp_path / "missing")
        eventually(
            lambda: (
                f"there is no file {tmp_path / 'missing'}"
                in serve.status().applications["changed"].deployments["Ingress"].message
            )
        )
        assert answers() == 200
    finally:
        http.close()
        let_go("changed")
