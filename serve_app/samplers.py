"""What is known of each scheduler without making it: its names elsewhere, its UNet calls, the schedules it takes.

`replica/schedulers.py` makes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from serve_app.recipe import Recipe, SchedulerName, SigmaSchedule

SCHEDULES: Mapping[SigmaSchedule, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "sgm_uniform": "SGM Uniform",
    "align_your_steps": "Align Your Steps",
}
"""What popular UIs call the schedules."""

_LEVELS = frozenset[SigmaSchedule]({"karras", "exponential", "beta"})
_SPACED = frozenset[SigmaSchedule]({"sgm_uniform"})
_LISTED = frozenset[SigmaSchedule]({"align_your_steps"})
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
    """What is known of a scheduler.

    `said` is what popular UIs call it, `aliases` is what else. `order` is how often a step calls the UNet, the last
    step once; `extra_calls` are what the first step calls it besides.
    """

    said: str
    schedules: frozenset[SigmaSchedule]
    aliases: tuple[str, ...] = ()
    spacing: Spacing = Spacing.ALL
    order: int = 1
    extra_calls: int = 0
    least_steps: int = 1
    most_steps: int | None = None


SAMPLERS: Mapping[SchedulerName, Sampler] = {
    "euler": Sampler("Euler", _LEVELS | _SPACED | _LISTED, ("k_euler",)),
    "euler_a": Sampler("Euler a", _SPACED, ("k_euler_a", "k_euler_ancestral")),
    "heun": Sampler("Heun", _LEVELS | _SPACED | _LISTED, ("k_heun",), order=2),
    "dpm2": Sampler("DPM2", _LEVELS | _SPACED, ("k_dpm_2",), order=2),
    "dpm2_a": Sampler("DPM2 a", _LEVELS | _SPACED, ("k_dpm_2_a",), order=2),
    "lms": Sampler("LMS", _LEVELS | _SPACED, ("k_lms",)),
    "dpmpp_2m": Sampler("DPM++ 2M", _LEVELS | _SPACED | _LISTED, ("k_dpmpp_2m",), Spacing.STEPS),
    "dpmpp_2m_karras": Sampler("DPM++ 2M Karras", frozenset({"karras"}), ("k_dpmpp_2m_ka",), Spacing.NONE),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", _LEVELS | _SPACED | _LISTED, ("k_dpmpp_2m_sde",), Spacing.STEPS),
    "dpmpp_3m_sde": Sampler("DPM++ 3M SDE", _LEVELS | _SPACED | _LISTED, ("k_dpmpp_3m_sde",), Spacing.STEPS),
    "dpmpp_2s": Sampler("DPM++ 2S", _LEVELS | _LISTED, (), Spacing.NONE),
    "dpmpp_sde": Sampler("DPM++ SDE", _LEVELS | _LISTED, ("k_dpmpp_sde",), Spacing.NONE),
    "ddim": Sampler("DDIM", _SPACED),
    "unipc": Sampler("UniPC", _LEVELS | _SPACED, (), Spacing.STEPS),
    "deis": Sampler("DEIS", _LEVELS | _SPACED, (), Spacing.STEPS),
    "pndm": Sampler("PLMS", _SPACED, ("PNDM",), extra_calls=1, least_steps=2),
    "sa_solver": Sampler("SA Solver", _LEVELS | _SPACED, (), Spacing.STEPS),
    "ddpm": Sampler("DDPM", _SPACED | _LISTED),
    "lcm": Sampler("LCM", frozenset(), (), Spacing.NONE, most_steps=50),
    "tcd": Sampler("TCD", frozenset(), (), Spacing.NONE, most_steps=50),
    "edm_euler": Sampler("EDM Euler", frozenset(), ("EDMEuler",), Spacing.NONE),
    "edm_dpmpp_2m": Sampler("EDM DPM++ 2M", frozenset(), ("EDMDPM++ 2M",), Spacing.NONE),
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


def refusal(scheduler: SchedulerName, schedule: SigmaSchedule | None, steps: int) -> tuple[str, str] | None:
    """Return the field that cannot be as it is asked for, and why; None if a scheduler can do it."""
    sampler = SAMPLERS[scheduler]
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
