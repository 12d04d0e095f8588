"""The whole graph: HTTP ingress -> fan-out -> N single-GPU replicas."""

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from serve_app.config import AppArgs
from serve_app.fanout.router import spread
from serve_app.ingress.deployment import Ingress
from serve_app.replica.deployment import Replica

_CONTROL_CALLS = 16


def build(args: AppArgs) -> Application:
    """Return the application for `serve run serve_app.app:build key=value ...` or a Serve config file."""
    shutdown_s = args.request_timeout_s + 10
    # One batch in work and the next in line; the rest waits in the router for whichever replica is free first.
    slots = 2 * args.engine.max_batch_size
    replicas = serve.deployment(
        Replica,
        num_replicas=args.num_replicas,
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        # The router bounds the slots. The rest is room for status and prompt calls, which must not wait behind images.
        max_ongoing_requests=args.ingress_replicas * slots + _CONTROL_CALLS,
        request_router_config=spread(slots),
        graceful_shutdown_timeout_s=shutdown_s,
        # A replica that hangs is replaced after three such timeouts; its slots are generated elsewhere.
        health_check_period_s=5,
        health_check_timeout_s=10,
        logging_config=LoggingConfig(
            enable_access_log=False
        ),  # the ingress logs each request; its polls would drown them
    ).bind(args)
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=Ingress.__name__,
        num_replicas=args.ingress_replicas,
        # It only waits for others: a CPU of its own would be one less for a replica.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        graceful_shutdown_timeout_s=shutdown_s,
    )
    return ingress.bind(args, replicas)
