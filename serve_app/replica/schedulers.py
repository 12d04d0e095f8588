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

from serve_app.recipe import SchedulerName

# The checkpoint's own flags stay, except those that make the difference between two names.
_RECIPES: Mapping[SchedulerName, tuple[type[SchedulerMixin], Mapping[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmpp_2m": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False},
    ),
    "dpmpp_2m_karras": (
        DPMSolverMultistepScheduler,
        {
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "use_karras_sigmas": True,
            "use_exponential_sigmas": False,  # there can be only one
            "use_beta_sigmas": False,
        },
    ),
    "ddim": (DDIMScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}

SCHEDULER_NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)


def make_scheduler(name: SchedulerName, config: Mapping[str, Any], **others: Any) -> Any:
    """Return a fresh scheduler. `clip_sample` is off: SDXL's latents are not bounded by 1."""
    cls, changes = _RECIPES[name]
    return cls.from_config(config, **{"clip_sample": False, **changes, **others})


def set_steps(scheduler: Any, steps: int) -> None:
    """Make a scheduler ready for `steps` steps from noise. Raises ValueError where its config has no such schedule."""
    # On the CPU, whatever the device: a step computes its coefficients from them, and would wait for the device.
    scheduler.set_timesteps(steps, device="cpu")
    if len(scheduler.timesteps) == steps + 1:
        # `trailing` counts down in fractions, and for some numbers ends with a timestep too many, -1.
        scheduler.timesteps = scheduler.timesteps[:steps]
        scheduler.num_inference_steps = steps
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
    if not _is_sound(scheduler, steps):
        raise ValueError(f"{type(scheduler).__name__} has no schedule of {steps} steps with this config")
    if hasattr(scheduler, "set_begin_index"):
        # Else it looks its first timestep up, and finds the second of two that are equal.
        scheduler.set_begin_index(0)


def _is_sound(scheduler: Any, steps: int) -> bool:
    """Whether a schedule has the right length and goes down from one timestep and noise level to the next."""
    timesteps = scheduler.timesteps
    # Karras' levels lie so close at the start that their timesteps are rounded to the same.
    levels = scheduler.sigmas[:steps] if hasattr(scheduler, "sigmas") else timesteps
    return (
        len(timesteps) == steps
        and 0 <= timesteps[-1] <= timesteps[0] < scheduler.config.num_train_timesteps
        and bool((timesteps.diff() <= 0).all())
        and bool(levels.isfinite().all() and (levels.diff() < 0).all())
    )


def most_steps(name: SchedulerName, config: Mapping[str, Any], most: int) -> int:
    """Return up to which number of steps, at most `most`, a scheduler can take each."""
    # Karras' levels, which a checkpoint may ask for, come in any number, and would take seconds to compute.
    scheduler = make_scheduler(name, config, use_karras_sigmas=False)
    for steps in range(1, most + 1):
        try:
            set_steps(scheduler, steps)
        except ValueError:
            return steps - 1
    return most


def scheduler_name(config: Mapping[str, Any]) -> SchedulerName | None:
    """Return the name under which a checkpoint's own scheduler can be asked for, or None if it has none here."""
    return next((name for name, others in _nearest(config).items() if not others), None)


def other_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options by which a checkpoint's own scheduler is none of ours, if one of ours has its class."""
    return min(_nearest(config).values(), key=len, default={})


def _nearest(config: Mapping[str, Any]) -> Mapping[SchedulerName, Mapping[str, Any]]:
    """Return the schedulers of a config's class, each with the options in which the config is another."""
    return {
        name: {key: config[key] for key, value in changes.items() if config.get(key, value) != value}
        for name, (cls, changes) in _RECIPES.items()
        if config.get("_class_name") == cls.__name__
    }


def predicted_clean(scheduler: Any, output: Any) -> torch.Tensor:
    """Return the clean latent (x0) that `output = scheduler.step(...)` was made from.

    The multistep solvers do not return it, but keep it as the newest of their model outputs.
    """
    clean: torch.Tensor | None = getattr(output, "pred_original_sample", None)
    return clean if clean is not None else scheduler.model_outputs[-1]
