"""A question to all replicas of a deployment at once, for what concerns them rather than their work."""

import asyncio
from typing import Any

from ray.serve.handle import DeploymentHandle

TIMEOUT_S = 2.0
"""How long replicas may take to answer."""


async def broadcast(handle: DeploymentHandle, method: str, *args: Any) -> list[Any]:
    """Return the answers of all replicas that gave one.

    Raises TimeoutError where one hangs, DeploymentUnavailableError where none is.
    """
    # Not Serve's own timeout: it is a wait_for, which in Python 3.11 loses a cancellation that comes together with the
    # answers; a poll would go on after the ingress is told to end, and hold it to the end of its grace.
    async with asyncio.timeout(TIMEOUT_S):
        answers = await handle.broadcast(method, *args).results_async(return_exceptions=True)
    return [a for a in answers if not isinstance(a, BaseException)]
