"""The schedulers that a request can name, made from the checkpoint's scheduler config."""

import inspect
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any, get_args

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    TCDScheduler,
)

from serve_app.recipe import SchedulerName, SigmaSchedule
from serve_app.replica.quick_schedulers import (
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)
from serve_app.replica.sigmas import follow_beta, listed_timesteps
from serve_app.samplers import SAMPLERS, schedule_options

_OURS = (HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler, LMSDiscreteScheduler)
_CLASSES: Mapping[str, type[SchedulerMixin]] = {
    **{sampler.made_by: getattr(diffusers, sampler.made_by) for sampler in SAMPLERS.values()},
    **{cls.__name__: cls for cls in _OURS},
}

SCHEDULER_NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)

_HIDE_CLEAN = (PNDMScheduler, DEISMultistepScheduler, TCDScheduler)
"""These neither return nor keep the clean latent."""

_MOST_PREPARED = 64
"""How many combinations of scheduler, steps and schedule are kept, of up to 25 kB each."""


def make_scheduler(
    name: SchedulerName, config: Mapping[str, Any], schedule: SigmaSchedule | None = None, **others: Any
) -> Any:
    """Return a fresh scheduler. `clip_sample` is off: SDXL's latents are not bounded by 1."""
    sampler = SAMPLERS[name]
    cls = _CLASSES[sampler.made_by]
    options = {"clip_sample": False, **sampler.always, **sampler.options, **schedule_options(schedule), **others}
    if not cls._compatibles:  # it would warn of each option that it does not know
        known = {"_use_default_values", *inspect.signature(cls).parameters}
        config = {key: value for key, value in config.items() if key in known}
    scheduler = cls.from_config(config, **options)
    if schedule == "beta":
        follow_beta(scheduler)
    return scheduler


def set_steps(scheduler: Any, steps: int, schedule: SigmaSchedule | None = None) -> None:
    """Prepare a scheduler for `steps` steps from noise. Raises ValueError if its config has no such schedule."""
    # Always on the CPU: a step computes its coefficients from the timesteps, and would wait for the device.
    if schedule == "align_your_steps":
        scheduler.set_timesteps(timesteps=listed_timesteps(steps), device="cpu")
    else:
        scheduler.set_timesteps(steps, device="cpu")
        if len(each_step(scheduler, scheduler.timesteps)) == steps + 1:
            _leave_out_the_last(scheduler, steps)
    if not _is_sound(scheduler, steps):
        raise ValueError(f"{type(scheduler).__name__} has no schedule of {steps} steps with this config")
    begin_at(scheduler, 0)


class PreparedSchedulers:
    """The schedulers of a config with their steps set. Each is prepared once and copied, in a fifth of the time."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._of = lru_cache(_MOST_PREPARED)(partial(_prepared, config))

    def copy(self, name: SchedulerName, steps: int, schedule: SigmaSchedule | None) -> Any:
        """Return a scheduler of one's own. Raises ValueError as `set_steps` does."""
        return deepcopy(self._of(name, steps, schedule))


def _prepared(config: Mapping[str, Any], name: SchedulerName, steps: int, schedule: SigmaSchedule | None) -> Any:
    scheduler = make_scheduler(name, config, schedule)
    set_steps(scheduler, steps, schedule)
    return scheduler


def _leave_out_the_last(scheduler: Any, steps: int) -> None:
    """Mend a schedule of a step too many: `trailing` counts down in fractions, and for some numbers ends with -1."""
    if scheduler.order > 1:  # much follows from these timesteps: let it count down from a little less
        for less in (1e-9, 1e-10):
            scheduler.set_timesteps(steps, "cpu", num_train_timesteps=scheduler.config.num_train_timesteps - less)
            if len(each_step(scheduler, scheduler.timesteps)) == steps:
                return
    scheduler.timesteps = scheduler.timesteps[:-1]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])


def each_step(scheduler: Any, of_calls: torch.Tensor) -> torch.Tensor:
    """Return, of what a schedule has for each UNet call, that of the calls that begin a step."""
    if isinstance(scheduler, PNDMScheduler):  # it begins with two calls
        return torch.cat([of_calls[:1], of_calls[2:]])
    return of_calls[:: scheduler.order]


def first_call(scheduler: Any, step: int) -> int:
    """Return the UNet call, counted from 0, that comes after `step` steps of a schedule, as diffusers counts them."""
    return step * int(scheduler.order)


def begin_at(scheduler: Any, step: int) -> None:
    """Tell a scheduler before which step of its schedule it begins."""
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise it looks up its first timestep, and finds the second of two equal ones.
        scheduler.set_begin_index(first_call(scheduler, step))


def noise_levels(scheduler: Any, call: int) -> tuple[float, float]:
    """Return how much of clean latents and of noise there is before a UNet call, the scheduler's next one."""
    # On the CPU: given latents on the device, it would copy its levels there, and wait.
    clean, noise = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    of_clean, of_noise = scheduler.add_noise(clean, noise, scheduler.timesteps[call : call + 1]).flatten().tolist()
    return of_clean, of_noise


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """Return what diffusers' pipelines give each step besides prediction, timestep and latents."""
    takes = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in (("generator", generator), ("eta", 0.0)) if name in takes}


def take_step(
    scheduler: Any, call: int, prediction: torch.Tensor, latents: torch.Tensor, options: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents after a UNet call, and the clean latent (x0) that it predicted. See `step_options`."""
    levels = noise_levels(scheduler, call) if isinstance(scheduler, _HIDE_CLEAN) else None
    output = scheduler.step(prediction, scheduler.timesteps[call], latents, **options)
    clean: torch.Tensor | None = getattr(output, "pred_original_sample", None)
    if clean is None:
        clean = getattr(output, "denoised", None)
    if clean is None and levels is not None:
        clean = _clean_of(scheduler.config.prediction_type, prediction, latents, levels)
    return output.prev_sample, scheduler.model_outputs[-1] if clean is None else clean


def _clean_of(
    prediction_type: str, prediction: torch.Tensor, latents: torch.Tensor, levels: tuple[float, float]
) -> torch.Tensor:
    of_clean, of_noise = levels
    match prediction_type:
        case "sample":
            return prediction
        case "v_prediction":
            return of_clean * latents - of_noise * prediction
        case _:
            return (latents - of_noise * prediction) / of_clean


def _is_sound(scheduler: Any, steps: int) -> bool:
    """Return whether a schedule has the right length, and its timesteps and noise levels decrease."""
    timesteps = each_step(scheduler, scheduler.timesteps)
    calls = len(scheduler.timesteps)
    # Karras' first levels are so close that their timesteps are rounded to the same number.
    levels = each_step(scheduler, scheduler.sigmas[:calls]) if hasattr(scheduler, "sigmas") else timesteps
    return (
        len(timesteps) == steps
        and (is_edm(scheduler.config) or 0 <= timesteps[-1] <= timesteps[0] < scheduler.config.num_train_timesteps)
        and bool((timesteps.diff() <= 0).all())
        and bool(levels.isfinite().all() and (levels.diff() < 0).all())
    )


def is_edm(config: Mapping[str, Any]) -> bool:
    """Return whether a config has the continuous noise levels of EDM, which only its own schedulers take."""
    return "sigma_data" in config


def can_sample(name: SchedulerName, config: Mapping[str, Any]) -> bool:
    """Return whether a scheduler can sample with an effective config."""
    cls, predicts = _CLASSES[SAMPLERS[name].made_by], config["prediction_type"]
    if is_edm(config) or cls in _EDM:
        return is_edm(config) and cls in _EDM and predicts != "sample"
    if cls is PNDMScheduler and _says(config, "timestep_spacing") == "linspace":
        return False  # its steps are shorter than the way to the next timestep, so that noise stays
    if predicts == "sample" and cls in _WITHOUT_SAMPLES:
        return False
    most = SAMPLERS[name].most_steps
    if most and config.get("original_inference_steps", most) < most:
        return False
    if config.get("rescale_betas_zero_snr"):
        knows = "rescale_betas_zero_snr" in inspect.signature(cls).parameters
        # Some divide by the signal, which is zero; the others replace zero with a small number.
        return knows and not (predicts == "epsilon" and cls in _DIVIDES_BY_SIGNAL)
    return True


def _says(config: Mapping[str, Any], name: str) -> Any:
    """Return an option; None: another scheduler class replaces it with its own default."""
    return None if name in config.get("_use_default_values", ()) else config.get(name)


_EDM = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)
_WITHOUT_SAMPLES = (
    *(EulerAncestralDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler, PNDMScheduler),
)
"""Where diffusers has no `sample` prediction."""
_DIVIDES_BY_SIGNAL = (DDIMScheduler, DDPMScheduler, LCMScheduler, TCDScheduler)


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
        name: {key: config[key] for key, value in sampler.options.items() if config.get(key, value) != value}
        for name, sampler in SAMPLERS.items()
        if config.get("_class_name") == sampler.made_by
    }
