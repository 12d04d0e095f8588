"""A replica says how far its start is while Serve passes no calls on to it."""

import asyncio

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.background import background
from serve_app.replica import progress

WORDS = "compiling 2 of 5"


class Hears:
    """In place of the ingress: remembers what it is told."""

    async def __init__(self, _: DeploymentHandle) -> None:  # type: ignore[misc]  # for its loop
        self._heard = asyncio.Future[tuple[str, str, str]]()

    async def note_start(self, deployment: str, replica: str, words: str) -> None:
        if not self._heard.done():
            self._heard.set_result((deployment, replica, words))

    async def heard(self) -> tuple[str, str, str]:
        return await self._heard


class StartsLong:
    """In place of a replica: its start goes on until the ingress has heard of it."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it
        progress._QUICK_S = 0.0
        telling = progress.Progress()
        telling.words = WORDS
        ingress = await asyncio.to_thread(serve.get_app_handle, serve.get_replica_context().app_name)
        async with asyncio.timeout(60), background(telling.keep_telling()):
            await ingress.heard.remote()

    async def id(self) -> str:
        return str(serve.get_replica_context().replica_id.unique_id)


@pytest.mark.usefixtures("cluster")
def test_a_start_is_heard_of_before_it_has_ended() -> None:
    options = {"ray_actor_options": {"num_cpus": 0}}
    starting = serve.deployment(StartsLong, **options).bind()
    handle = serve.run(serve.deployment(Hears, **options).bind(starting), name="starting", route_prefix=None)
    try:
        own = serve.get_deployment_handle("StartsLong", "starting").id.remote().result(timeout_s=30)
        assert handle.heard.remote().result(timeout_s=30) == ("StartsLong", own, WORDS)
    finally:
        serve.delete("starting", _blocking=False)
