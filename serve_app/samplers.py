"""The schedulers that a request can name, each in one row: what makes it, its names elsewhere, what it can do.

`replica/schedulers.py` makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from serve_app.recipe import Recipe, SchedulerName, SigmaSchedule

SCHEDULES: Mapping[SigmaSchedule, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
    "align_your_steps": "Align Your Steps",
}
"""What popular UIs call the schedules."""

_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""diffusers' options that ask for levels; it allows one."""
_LEVELS = frozenset[SigmaSchedule]({"karras", "exponential", "beta"})
_SPACED = frozenset[SigmaSchedule]({"sgm_uniform"})
_LISTED = frozenset[SigmaSchedule]({"align_your_steps"})
_UNLISTED, _ANY, _OWN = _LEVELS | _SPACED, _LEVELS | _SPACED | _LISTED, frozenset[SigmaSchedule]()
_MOST_LISTED = 300
"""Up to so many steps Align Your Steps has a timestep for each."""


class Spacing(Enum):
    """What depends on how the model spaces its timesteps (`model.timestep_spacing`)."""

    ALL = "all"
    """All timesteps; with a schedule of noise levels, still its highest and lowest."""
    STEPS = "steps"
    """All timesteps, and nothing of a schedule of noise levels, which covers all levels of the model."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Sampler:
    """What is known of a scheduler. Its name is in `recipe.SchedulerName`.

    Attributes:
        said: what popular UIs call it; `aliases` is what else.
        made_by: diffusers' class.
        options: what distinguishes names of one class, or means another thing to others; all else is the checkpoint's.
        always: options that distinguish nothing: the class would choose them itself, with a warning.
        order: how often a step calls the UNet, the last step once.
        extra_calls: how often the first step calls it besides.
        goes_on: whether it can begin after some steps, with a picture. diffusers' PNDM then ends a step too early.
    """

    said: str
    made_by: str
    schedules: frozenset[SigmaSchedule]
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    spacing: Spacing = Spacing.ALL
    order: int = 1
    extra_calls: int = 0
    least_steps: int = 1
    most_steps: int | None = None
    goes_on: bool = True


def schedule_options(schedule: SigmaSchedule | None) -> Mapping[str, Any]:
    """Return the options that ask diffusers' schedulers for a schedule; none: what the checkpoint's config says."""
    flags = dict.fromkeys(_FLAGS, False)
    match schedule:
        case None:
            return {}
        case "karras":
            return {**flags, "use_karras_sigmas": True}
        case "exponential" | "beta":  # see `replica.sigmas.follow_beta`
            return {**flags, "use_exponential_sigmas": True}
        case "sgm_uniform":
            return {**flags, "timestep_spacing": "trailing"}
        case "align_your_steps":
            return flags


_ODE = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_PLAIN, _KARRAS = {**_ODE, "use_karras_sigmas": False}, {**_ODE, **schedule_options("karras")}
_SDE = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
_SDE_3 = {**_SDE, "solver_order": 3}
_DEIS, _SA = {"algorithm_type": "deis"}, {"algorithm_type": "data_prediction"}
_PLMS = {"skip_prk_steps": True}
_TO_ZERO = {"lower_order_final": True}
_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_EDM_2M = "EDMDPMSolverMultistepScheduler"

SAMPLERS: Mapping[SchedulerName, Sampler] = {
    "euler": Sampler("Euler", "EulerDiscreteScheduler", _ANY, ("k_euler",)),
    "euler_a": Sampler("Euler a", "EulerAncestralDiscreteScheduler", _SPACED, ("k_euler_a", "k_euler_ancestral")),
    "heun": Sampler("Heun", "HeunDiscreteScheduler", _ANY, ("k_heun",), order=2),
    "dpm2": Sampler("DPM2", "KDPM2DiscreteScheduler", _UNLISTED, ("k_dpm_2",), order=2),
    "dpm2_a": Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler", _UNLISTED, ("k_dpm_2_a",), order=2),
    "lms": Sampler("LMS", "LMSDiscreteScheduler", _UNLISTED, ("k_lms",)),
    "dpmpp_2m": Sampler("DPM++ 2M", _MULTISTEP, _ANY, ("k_dpmpp_2m",), _PLAIN, spacing=Spacing.STEPS),
    "dpmpp_2m_karras": Sampler(
        "DPM++ 2M Karras", _MULTISTEP, frozenset(("karras",)), ("k_dpmpp_2m_ka",), _KARRAS, spacing=Spacing.NONE
    ),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", _MULTISTEP, _ANY, ("k_dpmpp_2m_sde",), _SDE, spacing=Spacing.STEPS),
    "dpmpp_3m_sde": Sampler("DPM++ 3M SDE", _MULTISTEP, _ANY, ("k_dpmpp_3m_sde",), _SDE_3, spacing=Spacing.STEPS),
    "dpmpp_2s": Sampler("DPM++ 2S", _SINGLESTEP, _LEVELS | _LISTED, (), _ODE, _TO_ZERO, Spacing.NONE),
    "dpmpp_sde": Sampler("DPM++ SDE", _SINGLESTEP, _LEVELS | _LISTED, ("k_dpmpp_sde",), _SDE, _TO_ZERO, Spacing.NONE),
    "ddim": Sampler("DDIM", "DDIMScheduler", _SPACED),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler", _UNLISTED, spacing=Spacing.STEPS),
    "deis": Sampler("DEIS", "DEISMultistepScheduler", _UNLISTED, (), _DEIS, spacing=Spacing.STEPS, least_steps=2),
    "pndm": Sampler("PLMS", "PNDMScheduler", _SPACED, ("PNDM",), _PLMS, extra_calls=1, least_steps=2, goes_on=False),
    "sa_solver": Sampler("SA Solver", "SASolverScheduler", _UNLISTED, (), _SA, spacing=Spacing.STEPS, least_steps=2),
    "ddpm": Sampler("DDPM", "DDPMScheduler", _SPACED | _LISTED),
    "lcm": Sampler("LCM", "LCMScheduler", _OWN, spacing=Spacing.NONE, most_steps=50),
    "tcd": Sampler("TCD", "TCDScheduler", _OWN, spacing=Spacing.NONE, most_steps=50),
    "edm_euler": Sampler("EDM Euler", "EDMEulerScheduler", _OWN, ("EDMEuler",), spacing=Spacing.NONE),
    "edm_dpmpp_2m": Sampler("EDM DPM++ 2M", _EDM_2M, _OWN, ("EDMDPM++ 2M",), _ODE, spacing=Spacing.NONE),
}


def said_of(scheduler: SchedulerName, schedule: SigmaSchedule | None) -> tuple[str, str | None]:
    """Return what popular UIs call a scheduler and its schedule; None: their "automatic", the model's own."""
    if scheduler == "dpmpp_2m_karras":
        scheduler, schedule = "dpmpp_2m", "karras"
    return SAMPLERS[scheduler].said, SCHEDULES[schedule] if schedule else None


def unet_calls(recipe: Recipe) -> int:
    """Return how often a recipe calls the UNet. Its scheduler is known."""
    assert recipe.scheduler is not None
    sampler, steps = SAMPLERS[recipe.scheduler], recipe.num_inference_steps - recipe.first_step
    return steps * sampler.order - (sampler.order - 1) + sampler.extra_calls


def needs_spacing(scheduler: SchedulerName, schedule: SigmaSchedule | None) -> bool:
    """Return whether pictures depend on how the model spaces its timesteps."""
    spacing = SAMPLERS[scheduler].spacing
    if schedule in _LEVELS:
        return spacing is Spacing.ALL
    return schedule is None and spacing is not Spacing.NONE


def refusal(
    scheduler: SchedulerName, schedule: SigmaSchedule | None, steps: int, first_step: int = 0
) -> tuple[str, str] | None:
    """Return the field that cannot be as it is asked for, and why; None if a scheduler can do it."""
    sampler = SAMPLERS[scheduler]
    if first_step and not sampler.goes_on:
        return "scheduler", f"{scheduler} cannot go on from a picture; choose another"
    if schedule and schedule not in sampler.schedules:
        can = [name for name in SCHEDULES if name in sampler.schedules]
        advice = f"it takes {', '.join(can)}" if can else "it has a schedule of its own; leave this out"
        return "sigma_schedule", f"{scheduler} cannot follow {schedule}; {advice}"
    if steps < sampler.least_steps:
        return "num_inference_steps", f"{scheduler} needs at least {sampler.least_steps} steps"
    most, what = (_MOST_LISTED, schedule) if schedule in _LISTED else (sampler.most_steps, scheduler)
    if most and steps > most:
        return "num_inference_steps", f"{what} has at most {most} steps"
    return None
