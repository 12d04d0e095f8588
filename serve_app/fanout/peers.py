"""The ingress replicas as one of them sees them."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.errors import NotReady, ServiceError
from serve_app.fanout.broadcast import ask_each, first_answer
from serve_app.fanout.deployed import Deployed, ask_serve
from serve_app.readings import Part
from serve_app.recipe import Changes


class Peers:
    """Calls every replica of the deployment that this process is a replica of, and asks Serve of its application."""

    async def cancel(self, id: str, index: int | None) -> list[int]:
        """Return what the replica that holds the request says, empty where none does.

        Raises NotReady where none does and one does not answer.
        """
        # Only the replica that holds the request names any; if it has died in between, none does.
        return await self._ask("cancel", id, index) or []

    async def resume_images(
        self, id: str, images: Collection[int] | None, changes: Changes
    ) -> list[int] | ServiceError | None:
        """Return what the replica that holds the request says, None where none does.

        Raises NotReady where none does and one does not answer.
        """
        said: list[int] | ServiceError | None = await self._ask("resume_images", id, images, changes)
        return said

    async def next_part(self, id: str, after: int, wait_s: float) -> Part | None:
        """Return what the replica that holds the generation has after an event, None where none does.

        It waits up to so many seconds for something. Raises NotReady where none does and one does not answer.
        """
        part: Part | None = await self._ask("next_part", id, after, wait_s)
        return part

    async def has_left(self) -> bool:
        """Return whether Serve passes on no calls to this replica any more, which is being replaced, but to others."""
        handle = await asyncio.to_thread(lambda: self._handle)
        try:
            return ray.get_runtime_context().get_actor_id() not in await ask_each(handle, "here")
        except (RayError, RayServeException, TimeoutError):
            return False

    async def deployed(self, replicas: Iterable[str]) -> Mapping[str, Deployed]:
        """Return what Serve says of the deployments of replicas, by their names; empty where it does not answer."""
        return await ask_serve(replicas)

    async def _ask(self, method: str, *args: Any) -> Any:
        # In a thread, because it asks Serve's controller and waits.
        handle = await asyncio.to_thread(lambda: self._handle)
        try:
            return await first_answer(handle, method, *args)
        except (DeploymentUnavailableError, TimeoutError) as error:
            raise NotReady("not all ingress replicas have answered; try again") from error

    @cached_property
    def _handle(self) -> DeploymentHandle:
        own = serve.get_replica_context()
        return serve.get_deployment_handle(own.deployment, own.app_name)
