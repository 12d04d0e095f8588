"""The schedulers that a request can name, all from diffusers and made from the checkpoint's scheduler config."""

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

# Options that distinguish the names. All other options are the checkpoint's.
_SCHEDULERS: Mapping[SchedulerName, tuple[type[SchedulerMixin], Mapping[str, Any]]] = {
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
            "use_exponential_sigmas": False,  # diffusers allows only one of the three
            "use_beta_sigmas": False,
        },
    ),
    "ddim": (DDIMScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}

SCHEDULER_NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)


def make_scheduler(name: SchedulerName, config: Mapping[str, Any], **others: Any) -> Any:
    """Return a fresh scheduler. `clip_sample` is off: SDXL's latents are not bounded by 1."""
    cls, changes = _SCHEDULERS[name]
    return cls.from_config(config, **{"clip_sample": False, **changes, **others})


def set_steps(scheduler: Any, steps: int) -> None:
    """Prepare a scheduler for `steps` steps from noise. Raises ValueError if its config has no such schedule."""
    # Always on the CPU: a step computes its coefficients from the timesteps, and would wait for the device.
    scheduler.set_timesteps(steps, device="cpu")
    if len(scheduler.timesteps) == steps + 1:
        # `trailing` counts down in fractions, and for some numbers of steps it ends with an extra timestep, -1.
        scheduler.timesteps = scheduler.timesteps[:steps]
        scheduler.num_inference_steps = steps
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
    if not _is_sound(scheduler, steps):
        raise ValueError(f"{type(scheduler).__name__} has no schedule of {steps} steps with this config")
    begin_at(scheduler, 0)


def begin_at(scheduler: Any, step: int) -> None:
    """Tell a scheduler before which step of its schedule it begins."""
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise it looks up its first timestep, and finds the second of two equal ones.
        scheduler.set_begin_index(step)


def noise_levels(scheduler: Any, step: int) -> tuple[float, float]:
    """Return how much of clean latents and of noise there is before a step, the next one that a scheduler takes."""
    # On the CPU: given latents on the device, it would copy its levels there, and wait.
    clean, noise = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    of_clean, of_noise = scheduler.add_noise(clean, noise, scheduler.timesteps[step : step + 1]).flatten().tolist()
    return of_clean, of_noise


def _is_sound(scheduler: Any, steps: int) -> bool:
    """Return whether a schedule has the right length, and its timesteps and noise levels decrease."""
    timesteps = scheduler.timesteps
    # Karras' first levels are so close that their timesteps are rounded to the same number.
    levels = scheduler.sigmas[:steps] if hasattr(scheduler, "sigmas") else timesteps
    return (
        len(timesteps) == steps
        and 0 <= timesteps[-1] <= timesteps[0] < scheduler.config.num_train_timesteps
        and bool((timesteps.diff() <= 0).all())
        and bool(levels.isfinite().all() and (levels.diff() < 0).all())
    )


def most_steps(name: SchedulerName, config: Mapping[str, Any], most: int) -> int:
    """Return the largest number up to `most` such that a scheduler can take every number of steps up to it."""
    # Without Karras' levels, which a checkpoint may ask for: they exist for any number, but take seconds to compute.
    scheduler = make_scheduler(name, config, use_karras_sigmas=False)
    for steps in range(1, most + 1):
        try:
            set_steps(scheduler, steps)
        except ValueError:
            return steps - 1
    return most


def scheduler_name(config: Mapping[str, Any]) -> SchedulerName | None:
    """Return the name of a checkpoint's own scheduler, or None if requests cannot name it."""
    return next((name for name, others in _nearest(config).items() if not others), None)


def other_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options in which a checkpoint's own scheduler differs from the nearest of ours of the same class."""
    return min(_nearest(config).values(), key=len, default={})


def _nearest(config: Mapping[str, Any]) -> Mapping[SchedulerName, Mapping[str, Any]]:
    """Return the schedulers of a config's class, each with the options in which the config differs."""
    return {
        name: {key: config[key] for key, value in changes.items() if config.get(key, value) != value}
        for name, (cls, changes) in _SCHEDULERS.items()
        if config.get("_class_name") == cls.__name__
    }


def predicted_clean(scheduler: Any, output: Any) -> torch.Tensor:
    """Return the clean latent (x0) that `output = scheduler.step(...)` was made from.

    Multistep solvers do not return it, but keep it as the newest of their model outputs.
    """
    clean: torch.Tensor | None = getattr(output, "pred_original_sample", None)
    return clean if clean is not None else scheduler.model_outputs[-1]
