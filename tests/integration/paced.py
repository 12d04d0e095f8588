"""Replicas whose UNet calls take their time, hang or fail, as an image's size and steps choose.

Tests that act in the middle of a long image need it to last, not to keep the processor busy: on a GPU it would not.
So few of its steps call the UNet; the others take the last prediction again. The picture still depends on its seed.
"""

import asyncio
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from ray.serve import Application

from serve_app import app
from serve_app.config import AppArgs
from serve_app.replica import deployment

HANGS = {"width": 136, "height": 64}
BREAKS_THE_DEVICE = {"width": 144, "height": 64}
_LONG_STEPS, _ENDLESS_STEPS = 60, 400
_PAUSE_S, _ENDLESS_PAUSE_S = 0.006, 0.05
_LOOK_BACK_S = 3.0
UNET_EVERY = 10
"""Which steps of a long image call the UNet. One that goes on elsewhere must do so after one of these."""


def hold_of(model: str) -> Path:
    """Return the file that holds back the replicas of a model: none starts while it exists."""
    return Path(f"{model}.hold")


class Replica(deployment.Replica):
    async def __init__(self, args: AppArgs) -> None:  # type: ignore[misc]  # Serve awaits it
        while hold_of(args.model.path).exists():  # noqa: ASYNC110 - another process removes it
            await asyncio.sleep(0.05)
        await super().__init__(args)
        models: Any = self._engine._models
        predict = models.predict
        last = WeakKeyDictionary[Any, Any]()

        def paced(slots: Any) -> Any:
            trajectories = [slot.trajectory for slot in slots]
            match trajectories[0].latents.shape[-1] * 8:
                case 136:
                    while True:
                        time.sleep(1)
                case 144:
                    import torch  # here: the tests' other deployments import this module too, and need no torch

                    raise torch.AcceleratorError("an illegal memory access was encountered")
            steps = max(len(trajectory._timesteps) for trajectory in trajectories)
            if steps < _LONG_STEPS:
                return predict(slots)
            time.sleep(_ENDLESS_PAUSE_S if steps >= _ENDLESS_STEPS else _PAUSE_S)
            due = [slot for slot in slots if slot.trajectory.step % UNET_EVERY == 0 or _is_short(slot.trajectory)]
            # Copies, since the UNet's next call may overwrite what it has returned.
            made = predict(due) if due else ()
            last.update({slot.trajectory: part.clone() for slot, part in zip(due, made, strict=True)})
            return [last[each] for each in trajectories]

        models.predict = paced


def _is_short(trajectory: Any) -> bool:
    return len(trajectory._timesteps) < _LONG_STEPS


def words(pixels: Any, prompt: str) -> int:
    """Score a sketch by its prompt alone."""
    return len(prompt.split())


def build(args: AppArgs) -> Application:
    """Return the application with such replicas, whose number follows soon."""
    with patch.object(app, "Replica", Replica), patch.object(app, "_LOOK_BACK_S", _LOOK_BACK_S):
        return app.build(args)
