"""The ingress replicas as one of them sees them."""

import asyncio

from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.errors import NotReady
from serve_app.fanout.broadcast import broadcast


class Peers:
    """Calls every replica of the deployment that this process is a replica of."""

    async def cancel(self, id: str, index: int | None) -> list[int]:
        """Return what the replica that holds the request says, empty where none does.

        Raises NotReady where one does not answer.
        """
        own = serve.get_replica_context()
        # In a thread, because it asks Serve's controller and waits.
        handle = await asyncio.to_thread(serve.get_deployment_handle, own.deployment, own.app_name)
        try:
            answers = await broadcast(handle, "cancel", id, index)
        except (DeploymentUnavailableError, TimeoutError) as error:
            raise NotReady("not all ingress replicas have answered; try again") from error
        # Only the replica that holds the request names any; if it has died in between, none does.
        return [index for answer in answers for index in answer]
