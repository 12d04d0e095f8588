"""The Serve application: HTTP ingress -> fan-out -> N single-GPU replicas."""

import os
from collections.abc import Mapping
from pathlib import Path

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.config import ONLY_MODEL, AppArgs, AuthConfig
from serve_app.fanout.router import directed
from serve_app.ingress.deployment import Ingress
from serve_app.ingress.keys import KeyRing
from serve_app.replica.deployment import Replica
from serve_app.scaling import ImagesPolicy

_CONTROL_CALLS = 16
_MOST_OPEN = 10_000
"""Requests that an ingress replica answers at once; beyond it even /health would wait. More than there can be streams
of paused images, by default."""
_MOST_STARTS = 10_000
"""Of all replicas together. How often each may fail to start, the environment says (`serve.ENVIRONMENT`)."""
_CHECK_PERIOD_S = 2.0
"""How often Serve looks after each replica: one that has died is found, and replaced, at the next look."""
_LOOK_BACK_S = 15.0
"""Over which time the numbers for the policy are averaged; Serve asks for them every 10 s unless told otherwise."""


def shutdown_s(args: AppArgs) -> float:
    """Return how long a replica may take to end: as long as a request, and what answering takes."""
    return args.request_timeout_s + 10


def _autoscaling(args: AppArgs) -> AutoscalingConfig | None:
    if args.scaling is None:
        return None
    # Not Serve's initial_replicas: with each change of `args` it would take away what has been added for the images.
    policy = {
        "target_wait_s": args.scaling.target_wait_s,
        "capacity": args.engine.max_batch_size,
        "at_first": args.num_replicas,
    }
    return AutoscalingConfig(
        min_replicas=args.scaling.min_replicas,
        max_replicas=args.scaling.max_replicas,
        upscale_delay_s=args.scaling.upscale_delay_s,
        downscale_delay_s=args.scaling.downscale_delay_s,
        look_back_period_s=_LOOK_BACK_S,
        policy=AutoscalingPolicy(policy_function=ImagesPolicy, policy_kwargs=policy),
    )


def check_keys(auth: AuthConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Raise ValueError if keys that can be seen from here cannot be used: nothing has been stopped yet.

    What is not here may be where the ingress runs, which looks for itself.
    """
    file = auth.keys_file if auth.keys_file and Path(auth.keys_file).exists() else None
    variable = auth.keys_env if auth.keys_env and auth.keys_env in environ else None
    KeyRing(AuthConfig(keys_file=file, keys_env=variable), environ)


def build(args: AppArgs) -> Application:
    """Return the application for `serve run serve_app.app:build key=value ...` or a Serve config file."""
    check_keys(args.auth)
    replicas = {name: _replicas(name, own) for name, own in args.served.items()}
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name=Ingress.__name__,
        num_replicas=args.ingress_replicas,
        # The ingress mostly waits. Reserving a CPU for it would take one from the replicas.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_MOST_OPEN,
        # The old one serves until the new one is ready, and for good if that cannot start. Replicas lack the GPUs.
        max_surge_percent=100,
        graceful_shutdown_timeout_s=shutdown_s(args),
        health_check_period_s=_CHECK_PERIOD_S,
    )
    return ingress.bind(args, replicas)


def _replicas(name: str, args: AppArgs) -> Application:
    """Return the replicas of a model: a deployment of its own, named after it where there is more than one model."""
    # One batch running and one queued; the rest waits in the ingress for the first replica with room.
    places = 2 * args.engine.max_batch_size
    return serve.deployment(
        Replica,
        name=Replica.__name__ if name == ONLY_MODEL else f"{Replica.__name__}-{name}",
        num_replicas=None if args.scaling else args.num_replicas,
        autoscaling_config=_autoscaling(args),
        ray_actor_options={"num_cpus": args.num_cpus, "num_gpus": args.num_gpus},
        # The ingress limits slots. The extra room is for status calls, which must not wait behind images.
        max_ongoing_requests=args.ingress_replicas * places + _CONTROL_CALLS,
        request_router_config=directed(),
        max_constructor_retry_count=_MOST_STARTS,
        graceful_shutdown_timeout_s=shutdown_s(args),
        # Serve replaces a hung replica after three timeouts; its slots are generated elsewhere.
        health_check_period_s=_CHECK_PERIOD_S,
        health_check_timeout_s=10,
    ).bind(args)
