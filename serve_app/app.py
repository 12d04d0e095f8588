"""The Serve application: HTTP ingress -> fan-out -> N single-GPU replicas."""

from ray import serve
from ray.serve import Application

from serve_app.config import AppArgs
from serve_app.fanout.router import directed
from serve_app.ingress.deployment import Ingress
from serve_app.replica.deployment import Replica

_CONTROL_CALLS = 16


def shutdown_s(args: AppArgs) -> float:
    """Return how long a replica may take to end: as long as a request, and what answering takes."""
    return args.request_timeout_s + 10


def build(args: AppArgs) -> Application:
    """Return the application for `serve run serve_app.app:build key=value ...` or a Serve config file."""
    # One batch running and one queued; the rest waits in the ingress for the first replica with room.
    places = 2 * args.engine.max_batch_size
    replicas = serve.deployment(
        Replica,
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        # The ingress limits slots. The extra room is for status calls, which must not wait behind images.
        max_ongoing_requests=args.ingress_replicas * places + _CONTROL_CALLS,
        request_router_config=directed(),
        graceful_shutdown_timeout_s=shutdown_s(args),
        # Serve replaces a hung replica after three timeouts; its slots are generated elsewhere.
        health_check_period_s=5,
        health_check_timeout_s=10,
    ).bind(args)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=Ingress.__name__,
        num_replicas=args.ingress_replicas,
        # The ingress mostly waits. Reserving a CPU for it would take one from the replicas.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=shutdown_s(args),
        health_check_period_s=2,  # Serve finds one that has died at its next check
    )
    return ingress.bind(args, replicas)
