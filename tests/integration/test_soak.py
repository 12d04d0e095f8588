"""A few seconds of each phase of `make soak`: clients cancel and hang up, and more comes than fits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray import serve
from ray.serve import RunTarget

from benchmarks.soak import witness
from benchmarks.soak.cluster import Service, wait_until
from benchmarks.soak.phases import Size, Soak
from serve_app.config import AdmissionConfig, Config, EngineConfig, LimitsConfig, StreamsConfig
from tests.integration.conftest import Cluster, let_go, tiny_args

NAME = "soak"
TINY = Size(warm_up_s=1, cancels=12, flood_s=1, fault_s=1, kills=(), freezes=False, samples=10, judged=False)
ROOM: dict[str, Config] = {
    "engine": EngineConfig(max_batch_size=2),
    "limits": LimitsConfig(max_images=4),
    "admission": AdmissionConfig(max_waiting_images=4),
}
"""Little, so that a flood is soon over."""


@pytest.fixture(scope="module")
def soaked(cluster: Cluster, tiny_path: Path) -> Iterator[Service]:
    args = tiny_args(tiny_path, num_replicas=1, ingress_replicas=2, streams=StreamsConfig(keep_s=1), **ROOM)
    serve.run_many([RunTarget(witness.build(args), name=NAME, route_prefix=f"/{NAME}")])
    service = Service(f"{cluster.url}/{NAME}", NAME, args)
    wait_until(lambda: service.whole, 60)
    yield service
    let_go(NAME)


async def test_nothing_is_lost_and_nothing_is_left(soaked: Service) -> None:
    soak = Soak(soaked, TINY)
    await soak.run()
    assert not soak.broken
    assert [row.faults > 0 for row in soak.rows] == [False, False, False, True, False]
