"""Replicas whose UNet calls take their time, hang or fail, as an image's size and steps choose.

Tests that act in the middle of a long image need it to last, not to keep the processor busy: on a GPU it would not.
"""

import time
from typing import Any
from unittest.mock import patch

import torch
from ray.serve import Application

from serve_app import app
from serve_app.config import AppArgs
from serve_app.replica import deployment

HANGS = {"width": 136, "height": 64}
BREAKS_THE_DEVICE = {"width": 144, "height": 64}
_LONG_STEPS = 60
_PAUSE_S = 0.006


class Replica(deployment.Replica):
    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(args)
        denoiser: Any = self._engine._models.denoiser
        predict = denoiser.predict

        def paced(trajectories: Any) -> Any:
            match trajectories[0].latents.shape[-1] * 8:
                case 136:
                    while True:
                        time.sleep(1)
                case 144:
                    raise torch.AcceleratorError("an illegal memory access was encountered")
            if len(trajectories[0]._timesteps) >= _LONG_STEPS:
                time.sleep(_PAUSE_S)
            return predict(trajectories)

        denoiser.predict = paced


def build(args: AppArgs) -> Application:
    """Return the application with such replicas."""
    with patch.object(app, "Replica", Replica):
        return app.build(args)
