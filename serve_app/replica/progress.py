"""Tells the ingress how far a start is: until it has ended, Serve passes no calls on to a replica."""

import asyncio
import logging
from functools import cached_property

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.messages import START_NEWS_S

logger = logging.getLogger("ray.serve")

_QUICK_S = 10.0
"""A start that has ended by then tells nobody."""
_TIMEOUT_S = 2.0


class Progress:
    """What a start is doing, in words; any thread may change them."""

    def __init__(self) -> None:
        self.words = "loading the model"

    async def keep_telling(self) -> None:
        """Tell all ingress replicas of this application again and again, until cancelled."""
        await asyncio.sleep(_QUICK_S)
        while True:
            try:
                await self._tell()
            except (RayError, RayServeException, TimeoutError) as error:
                logger.debug("the ingress could not be told how far this start is: %r", error)  # it may start itself
            except Exception:
                logger.exception("the ingress is not told how far this start is")
                return  # no start ends for that
            await asyncio.sleep(START_NEWS_S)

    async def _tell(self) -> None:
        own = serve.get_replica_context()
        ingress = await asyncio.to_thread(lambda: self._ingress)  # it asks Serve's controller and waits
        told = ingress.broadcast("note_start", own.deployment, str(own.replica_id.unique_id), self.words)
        # Not Serve's own timeout: it is a wait_for, which in Python 3.11 loses a cancellation that comes together with
        # the answers. This would go on after the start has ended, and the start wait for its end.
        async with asyncio.timeout(_TIMEOUT_S):
            await told.results_async(return_exceptions=True)

    @cached_property
    def _ingress(self) -> DeploymentHandle:
        return serve.get_app_handle(serve.get_replica_context().app_name)
