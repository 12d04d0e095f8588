"""The Serve deployment that takes HTTP."""

from fastapi import FastAPI
from ray.exceptions import TaskCancelledError
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppArgs
from serve_app.fanout.fanout import FanOut
from serve_app.fanout.peers import Peers
from serve_app.fanout.pool import Pool
from serve_app.ingress.api import create_api
from serve_app.metrics import IngressMetrics


class Ingress:
    """Fans requests out to the replicas. Its constructor does no work, so that /health answers from the start."""

    def __init__(self, args: AppArgs, replicas: DeploymentHandle) -> None:
        self._args = args
        self._service = FanOut(Pool(replicas), Peers(), args, IngressMetrics())

    async def cancel(self, id: str, index: int | None) -> list[int]:
        """Cancel what this replica holds of a request; for its peers, which may have got the call instead."""
        return self._service.cancel_here(id, index)

    # Bound late: Serve would pickle an app given to the decorator by value, with all module globals frozen.
    def __serve_build_asgi_app__(self) -> FastAPI:
        # Once the client has gone, Serve cancels with this error what asks its proxy for the request.
        return create_api(self._service, self._args, disconnect=TaskCancelledError)
