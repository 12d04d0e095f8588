"""The ingress replicas as one of them sees them."""

import asyncio

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.errors import NotReady

_TIMEOUT_S = 2.0


class Peers:
    """Calls every replica of the deployment that this process is a replica of."""

    async def cancel(self, id: str, index: int | None) -> list[int]:
        """Return what the replica that holds the request says, empty where none does. Raises NotReady where one does not answer."""
        own = serve.get_replica_context()
        # In a thread, because it asks Serve's controller and waits.
        handle = await asyncio.to_thread(serve.get_deployment_handle, own.deployment, own.app_name)
        try:
            async with asyncio.timeout(_TIMEOUT_S):  # and not Serve's, for the reason that Fleet gives
                answers = await handle.broadcast("cancel", id, index).results_async(return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError) as error:
            raise NotReady("not all ingress replicas have answered; try again") from error
        # One that died in between has taken its requests along.
        return next((answer for answer in answers if isinstance(answer, list) and answer), [])
