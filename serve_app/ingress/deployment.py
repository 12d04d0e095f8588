"""The Serve deployment that takes HTTP."""

import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank

from serve_app.config import AppArgs
from serve_app.errors import ServiceError
from serve_app.fanout.models import Models
from serve_app.fanout.peers import Peers
from serve_app.fanout.pool import Pool
from serve_app.ingress.answers import Answers
from serve_app.ingress.api import create_api
from serve_app.ingress.live import LiveApi
from serve_app.line import Outcome
from serve_app.metrics import INGRESS, REQUEST_SECONDS, REQUESTS, Metrics
from serve_app.quiet import drop_access_log
from serve_app.readings import Part
from serve_app.recipe import Changes

logger = logging.getLogger("ray.serve")

_GONE = (TaskCancelledError, RayActorError)
"""What Serve makes `receive` raise when the client has gone, or the proxy that held its connection."""

_SENDING_S = 3.0
"""How long after the grace answers may still be sent: files may be stored first."""


class Ingress:
    """Fans requests out to the replicas. The constructor does no work, so /health answers from the start."""

    def __init__(self, args: AppArgs, replicas: Mapping[str, DeploymentHandle]) -> None:
        """`replicas` are those of each model, by the names in `args.served`."""
        drop_access_log()
        self._args = args
        self._metrics = Metrics(INGRESS, args.served)
        pools = {name: Pool(replicas[name], own.may_sleep) for name, own in args.served.items()}
        self._service = Models(pools, Peers(), args, self._metrics)
        self._answers = Answers()
        self._api = create_api(self._service, args, _GONE, self._answers, self._count_request)
        self._started = False

    async def cancel(self, id: str, index: int | None) -> list[int]:
        """Cancel a request's images if this replica holds them. Its peers call this: any of them may get the DELETE."""
        return self._service.generations.cancel_here(id, index)

    async def resume_images(
        self, id: str, images: Collection[int] | None, changes: Changes
    ) -> list[int] | ServiceError | None:
        """Let paused images of a request go on if this replica holds it. Its peers call this, as they do `cancel`.

        What is wrong is returned: raised, Serve would log it as a fault of this service.
        """
        return await self._service.generations.resume_images_here(id, images, changes)

    async def here(self) -> None:
        """Do nothing. Who asks all replicas for it sees which of them Serve still passes calls to."""

    async def note_start(self, deployment: str, replica: str, words: str) -> None:
        """Hear how far a start is. Replicas call this: they can be asked nothing before they are ready."""
        self._service.note_start(deployment, replica, words)

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and return when the running ones are answered, at most some seconds after the grace."""
        ends = time.monotonic() + grace_s
        await self._service.generations.drain(grace_s)
        await self._answers.sent(max(_SENDING_S, ends - time.monotonic()))

    async def next_part(self, id: str, after: int, wait_s: float) -> Part | None:
        """Return what a generation has after an event if this replica holds it. Its peers call this as well."""
        return await self._service.generations.next_part_here(id, after, wait_s)

    async def reconfigure(self, user_config: Mapping[str, Any] | None, rank: ReplicaRank) -> None:
        """Take other `LiveSettings`. Serve calls this at the start and whenever `user_config` changes.

        Settings that cannot be used end a start with a ValueError; later, the service keeps those it has and says so.
        Of `rank` nothing is used: without it Serve would not tell when `user_config` is taken away.
        """
        try:
            args = self._args.changed(user_config or {})
            await self._api.change(args)
        except ValueError as error:
            if not self._started:
                raise
            logger.error("user_config was refused, the settings stay as they are: %s", error)
            self._service.refuse_settings(str(error))
        else:
            self._service.reconfigure(args)
        self._started = True

    # Bound late: Serve pickles an app passed to the decorator by value, with frozen copies of all module globals.
    def __serve_build_asgi_app__(self) -> LiveApi:
        return self._api

    def _count_request(self, route: str, outcome: Outcome, seconds: float) -> None:
        self._metrics.add(REQUESTS, route=route, outcome=outcome)
        if outcome == "succeeded":
            self._metrics.observe(REQUEST_SECONDS, seconds, route=route)
