"""The service with replicas that generate nothing: `benchmarks.nothing:build` instead of `serve_app.app:build`.

They answer at once with a file of as many bytes as `FILE_BYTES` in the environment says. What is left is the way
through the proxy and the ingress.
"""

import base64
import os
from collections.abc import AsyncGenerator
from unittest.mock import patch

from ray import serve
from ray.serve import Application

from serve_app import app
from serve_app.config import AppArgs
from serve_app.messages import Call, Generated, OpenCalls, ReplicaStatus, Slot, SlotEvent, Work
from serve_app.schemas import ModelInfo

FILE_BYTES = "PARALLEL_SDXL_FILE_BYTES"
_MODEL = ModelInfo(name="nothing", revision=None, hash="0000000000")
_WORK = Work(encode_prompt=0, denoise=0, decode=0, encode=0)


class Replica:
    """Answers as a replica does, without an engine."""

    def __init__(self, args: AppArgs) -> None:
        self._file = base64.b64encode(os.urandom(int(os.environ[FILE_BYTES]))).decode()
        self._status = ReplicaStatus(
            id=str(serve.get_replica_context().replica_id.unique_id),
            model=_MODEL,
            scheduler="euler",
            schedulers=("euler",),
            has_previews=False,
            capacity=args.engine.max_batch_size,
            active=0,
            waiting=0,
            finished=0,
        )

    async def generate(self, slot: Slot, call: Call) -> Generated:
        return Generated(slot.recipe.width, slot.recipe.height, "image/jpeg", self._file, _WORK, _MODEL)

    async def stream(self, slot: Slot, call: Call) -> AsyncGenerator[SlotEvent]:
        yield await self.generate(slot, call)

    async def poll(self, open_calls: OpenCalls) -> ReplicaStatus:
        return self._status


def build(args: AppArgs) -> Application:
    """Return the application with such replicas."""
    with patch.object(app, "Replica", Replica):
        return app.build(args)
