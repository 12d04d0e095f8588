"""What Serve says of this application: how many replicas it wants, and what keeps them from running."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import DeploymentStatus, DeploymentStatusOverview, ReplicaState

logger = logging.getLogger("ray.serve")

_GOING = {ReplicaState.STOPPING, ReplicaState.STOPPED, ReplicaState.PENDING_MIGRATION}
_WELL = {DeploymentStatus.HEALTHY, DeploymentStatus.UPSCALING, DeploymentStatus.DOWNSCALING}
_LONGEST_TROUBLE = 500
_TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True, slots=True)
class Deployed:
    """The numbers of replicas that Serve wants, None before it has said, and its words on what is wrong."""

    replicas: int | None = None
    ingresses: int | None = None
    trouble: str | None = None
    asleep: bool = False
    """Whether Serve wants no replicas, and nothing is wrong."""


async def ask_serve(replicas: Iterable[str]) -> dict[str, Deployed]:
    """Ask Serve's controller once; `replicas` are the names of the replicas' deployments. Empty: no answer."""
    try:
        own = serve.get_replica_context()
        status = await asyncio.to_thread(serve.status)  # it waits for the controller
    except (RayError, RayServeException) as error:
        logger.warning("Serve's controller did not say how many replicas it wants: %r", error)
        return {}
    application = status.applications.get(own.app_name)
    deployments = application.deployments if application else {}
    if (ingress := deployments.get(own.deployment)) is None:
        return {}
    # What Serve does not name any more has ended, since the whole application is about to.
    return {name: deployed_of(deployments[name], ingress) for name in replicas if name in deployments}


def deployed_of(replicas: DeploymentStatusOverview, ingress: DeploymentStatusOverview) -> Deployed:
    """Return what Serve's status of the two deployments says."""
    wanted = _wanted(replicas)
    asleep = wanted == 0 and replicas.status in _WELL
    return Deployed(wanted, _wanted(ingress), _trouble(replicas), asleep)


def _wanted(deployment: DeploymentStatusOverview) -> int:
    return sum(count for state, count in deployment.replica_states.items() if state not in _GOING)


def _trouble(deployment: DeploymentStatusOverview) -> str | None:
    """Return Serve's message if a deployment is not well; of a traceback the last line, which names the error."""
    message = str(deployment.message).strip()
    if deployment.status in _WELL or not message:
        return None
    return (message.splitlines()[-1] if _TRACEBACK in message else message)[:_LONGEST_TROUBLE]
