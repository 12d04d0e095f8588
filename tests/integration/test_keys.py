"""A service whose keys are missing when its settings change."""

from pathlib import Path

import httpx2
from ray import serve
from ray.serve import RunTarget

from serve_app.app import build
from serve_app.config import AuthConfig
from tests.integration.conftest import KEY, Cluster, eventually, let_go, tiny_args


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
