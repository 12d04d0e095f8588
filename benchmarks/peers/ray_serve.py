"""Peer: Ray Serve's documented Stable Diffusion pattern.

It has an ingress and one deployment, makes one pipeline call per request, and returns a PNG. Two settings differ from
the documentation, in the peer's favour: every GPU has a replica from the start, and a replica takes one request at a
time, since two concurrent calls would share the pipeline's scheduler.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import ray
from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve

from benchmarks.clients import keep_asking
from benchmarks.conditions import Conditions
from benchmarks.ports import free_port

_TIMEOUT_S = 300


class StableDiffusion:
    def __init__(self, checkpoint: str, device: str, steps: int, guidance: float) -> None:
        # Here, where they are used: the ingress and the clients need none of it.
        import torch

        from benchmarks.peers.pipeline import load_pipeline

        self._pipe = load_pipeline(Path(checkpoint), device, torch.float16)
        self._call = {"num_inference_steps": steps, "guidance_scale": guidance}

    def generate(self, prompt: str, img_size: int) -> Any:
        return self._pipe(prompt, height=img_size, width=img_size, **self._call).images[0]


class ApiIngress:
    def __init__(self, model: Any) -> None:
        self._model = model

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = FastAPI()

        @app.get("/imagine", response_class=Response)
        async def imagine(prompt: str, img_size: int = 512) -> Response:
            picture = await self._model.generate.remote(prompt, img_size=img_size)
            file = BytesIO()
            picture.save(file, "PNG")
            return Response(content=file.getvalue(), media_type="image/png")

        return app


class RayServe:
    """The running peer, and its clients."""

    def __init__(self, url: str, conditions: Conditions, started_s: float) -> None:
        self.conditions = conditions
        self.started_s = started_s
        self._url = url
        self._http = httpx2.Client(timeout=_TIMEOUT_S, trust_env=False)
        self._numbers = count(1)

    def close(self) -> None:
        self._http.close()

    def together(self, images: int) -> float:
        """Send `images` requests at once; return the seconds until the last answer."""
        started = time.perf_counter()
        with ThreadPoolExecutor(images) as pool:
            for response in pool.map(self._imagine, [self._http] * images):
                response.raise_for_status()
        return time.perf_counter() - started

    def load(self, clients: int, seconds: float) -> list[float]:
        """Send requests for `seconds`, and until each client has two answers; return when each answer came."""
        return keep_asking(clients, seconds, 2, self._imagine, httpx2.Response.raise_for_status, timeout_s=_TIMEOUT_S)

    def _imagine(self, http: httpx2.Client) -> httpx2.Response:
        work = self.conditions.workload
        query: dict[str, str | int] = {"prompt": f"{work.prompt}, {next(self._numbers)}", "img_size": work.size}
        return http.get(self._url, params=query)


@contextmanager
def open_ray_serve(conditions: Conditions) -> Iterator[RayServe]:
    port, work, replicas = free_port(), conditions.workload, len(conditions.devices)
    started = time.perf_counter()
    ray.init(
        address="local", num_cpus=2 + replicas, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        model = serve.deployment(
            StableDiffusion,
            num_replicas=replicas,
            max_ongoing_requests=1,
            ray_actor_options={"num_gpus": 0 if conditions.cpu else 1},
        ).bind(str(conditions.checkpoint), conditions.device, work.steps, work.guidance)
        ingress = serve.deployment(serve.ingress()(ApiIngress), name="ApiIngress", max_ongoing_requests=1000).bind(
            model
        )
        serve.run(ingress, route_prefix="/")
        peer = RayServe(f"http://127.0.0.1:{port}/imagine", conditions, time.perf_counter() - started)
        peer.together(2 * replicas)
        yield peer
        peer.close()
    finally:
        serve.shutdown()
        ray.shutdown()
