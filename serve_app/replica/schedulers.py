"""The schedulers a request can name. All are diffusers' own, made from the checkpoint's scheduler config."""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from serve_app.schemas import SchedulerName

# The checkpoint's own flags stay, except those that make the difference between two names.
_RECIPES: Mapping[SchedulerName, tuple[type[SchedulerMixin], Mapping[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}),
    "ddim": (DDIMScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}

SCHEDULER_NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)


def make_scheduler(name: SchedulerName, config: Mapping[str, Any]) -> Any:
    """Return a fresh scheduler. `clip_sample` is off: SDXL's latents are not bounded by 1."""
    cls, changes = _RECIPES[name]
    return cls.from_config(config, clip_sample=False, **changes)


def scheduler_name(config: Mapping[str, Any]) -> SchedulerName | None:
    """Return the name under which a checkpoint's own scheduler can be asked for, or None if it has none here."""
    for name, (cls, changes) in _RECIPES.items():
        if config.get("_class_name") == cls.__name__ and all(config.get(k, changes[k]) == changes[k] for k in changes):
            return name
    return None


def predicted_clean(scheduler: Any, output: Any) -> torch.Tensor:
    """Return the clean latent (x0) that `output = scheduler.step(...)` was made from.

    The multistep solvers do not return it, but keep it as the newest of their model outputs.
    """
    clean: torch.Tensor | None = getattr(output, "pred_original_sample", None)
    return clean if clean is not None else scheduler.model_outputs[-1]
