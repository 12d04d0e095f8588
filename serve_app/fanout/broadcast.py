"""A question to all replicas of a deployment at once, for what concerns them rather than their work."""

import asyncio
from contextlib import suppress
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

TIMEOUT_S = 2.0
"""How long replicas may take to answer."""


async def ask_each(handle: DeploymentHandle, method: str, *args: Any) -> "dict[str, ObjectRef[Any]]":
    """Ask all replicas and return their answers to come, by the replica's actor.

    Raises DeploymentUnavailableError where there is none, TimeoutError if Serve does not say which there are.
    """
    # Not Serve's own `results_async`: it gathers the answers, and one replica that hangs would hide the others'.
    # Not its timeout either: it is a wait_for, which in Python 3.11 loses a cancellation that comes together with the
    # answers; a poll would go on after the ingress is told to end, and hold it to the end of its grace.
    async with asyncio.timeout(TIMEOUT_S):
        results = await handle.broadcast(method, *args)._fetch_replica_results_async()
        refs = [await result.to_object_ref_async() for result in results]
    return {ref.task_id().actor_id().hex(): ref for ref in refs}


async def first_answer(handle: DeploymentHandle, method: str, *args: Any) -> Any:
    """Return the first answer that says something, whichever replica gives it; None where all say nothing.

    Raises TimeoutError where one that hangs might say something, DeploymentUnavailableError where none is.
    """
    async with asyncio.timeout(TIMEOUT_S):
        refs = await ask_each(handle, method, *args)
        answers = [asyncio.ensure_future(ref) for ref in refs.values()]
        try:
            for answer in asyncio.as_completed(answers):
                with suppress(RayError):  # it has died, and what it held with it
                    if said := await answer:
                        return said
        finally:
            for answer in answers:
                _forget(answer)
    return None


def _forget(answer: "asyncio.Future[Any]") -> None:
    """Let go of an answer that nobody waits for any more, without a complaint in the log that it was an error."""
    if not answer.cancel() and not answer.cancelled():
        answer.exception()
