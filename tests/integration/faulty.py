"""A replica whose UNet calls fail in a way that the picture's width chooses."""

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


class Replica(deployment.Replica):
    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(args)
        denoiser: Any = self._engine._models.denoiser
        predict = denoiser.predict

        def faulty(trajectories: Any) -> Any:
            match trajectories[0].latents.shape[-1] * 8:
                case 136:
                    while True:
                        time.sleep(1)
                case 144:
                    raise torch.AcceleratorError("an illegal memory access was encountered")
            return predict(trajectories)

        denoiser.predict = faulty


def build(args: AppArgs) -> Application:
    """Return the application with such replicas."""
    with patch.object(app, "Replica", Replica):
        return app.build(args)
