"""The start command drains all applications under one grace."""

import asyncio
from dataclasses import dataclass
from typing import Any

from ray.serve.exceptions import RayServeException

from serve_app.serve import drained


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
