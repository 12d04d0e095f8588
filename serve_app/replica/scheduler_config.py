"""How a checkpoint is sampled: its own scheduler config, the settings that override it, and the schedulers that fit."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

from diffusers import SchedulerMixin
from diffusers.schedulers import KarrasDiffusionSchedulers

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import SchedulerName
from serve_app.replica.refusals import refused
from serve_app.replica.schedulers import (
    SCHEDULER_NAMES,
    can_sample,
    is_edm,
    make_scheduler,
    most_steps,
    other_options,
    scheduler_name,
    set_steps,
)
from serve_app.schemas import PredictionType, TimestepSpacing

SETTINGS = ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr")
"""The fields of `model` that override the field of the same name in the checkpoint's scheduler config."""


_SPACED: tuple[SchedulerName, ...] = ("euler", "dpmpp_2m", "dpmpp_2s", "unipc", "ddim", "pndm")
"""Among them they have every way to space timesteps: where these can take a number of steps, so can all others."""


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """Return the settings that override the checkpoint's scheduler config."""
    return {name: value for name in SETTINGS if (value := getattr(model, name)) is not None}


def departures(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from the checkpoint's own config."""
    return {name: value for name, value in settings.items() if own.get(name) != value}


def effective_config(
    own: SchedulerMixin, settings: Mapping[str, Any], markers: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Return the config that a checkpoint's schedulers are made from.

    Settings override markers, and markers override its own config. Raises CheckpointError if no scheduler can sample
    with the result.
    """
    changes = {**(markers or {}), **settings}
    config = {**own.config, **changes}
    # Another scheduler class replaces everything listed here with its own defaults.
    config["_use_default_values"] = [name for name in own.config.get("_use_default_values", ()) if name not in changes]
    if fault := _fault(type(own).__name__, config, settings, markers or {}):
        raise CheckpointError(fault)
    return config


def said(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an effective config's values for `SETTINGS`. None means each scheduler's own default."""
    unsaid = config.get("_use_default_values", ())
    return {name: None if name in unsaid else config.get(name) for name in SETTINGS}


def check_usable(config: Mapping[str, Any], fault: Callable[[str], CheckpointError]) -> None:
    """Raise `fault` if one of the fitting schedulers cannot be made from an effective config, or has no steps."""
    for name in fitting_schedulers(config):
        with refused(fault, f"has a config that {name} cannot use"):
            set_steps(make_scheduler(name, config), 1)


def fitting_schedulers(config: Mapping[str, Any]) -> tuple[SchedulerName, ...]:
    """Return the names of the schedulers that can sample with an effective config."""
    return tuple(name for name in SCHEDULER_NAMES if can_sample(name, config))


def default_scheduler(own: SchedulerMixin, config: Mapping[str, Any], asked: SchedulerName | None) -> SchedulerName:
    """Return the scheduler for requests that name none: `asked`, or the checkpoint's own. Raises CheckpointError."""
    fitting, kind = fitting_schedulers(config), type(own).__name__
    name = asked or scheduler_name({**config, "_class_name": kind})
    if name in fitting:
        return name
    if name is None and kind not in KarrasDiffusionSchedulers.__members__:
        # A few-step model such as LCM: other schedulers run, but not with the results it was distilled for.
        raise CheckpointError(f"model.scheduler: the checkpoint is made for {kind}, which is not supported")
    options = " and ".join(f"{key} {value}" for key, value in other_options({**config, "_class_name": kind}).items())
    own_kind = f"the checkpoint's own {kind}{options and f' with {options}'}"
    fault = f"{own_kind} is not supported" if name is None else f"{name} cannot sample this checkpoint"
    raise CheckpointError(f"model.scheduler: {fault}; choose one of {', '.join(fitting)}")


def check_steps(config: Mapping[str, Any], most: int) -> None:
    """Raise CheckpointError unless every fitting scheduler can take 1 to `most` steps."""
    if (most + 1) * (config.get("steps_offset", 0) + 1) <= config["num_train_timesteps"]:
        return  # there are enough timesteps for each way to space them
    can = {name: most_steps(name, config, most) for name in _SPACED if name in fitting_schedulers(config)}
    worst = min(can, key=lambda name: can[name], default=None)
    if worst and can[worst] < most:
        fault = f"with the checkpoint's scheduler config {worst} cannot take {can[worst] + 1} steps"
        raise CheckpointError(f"limits.max_steps: {fault}; set it to {can[worst]}")


def _fault(kind: str, config: Mapping[str, Any], settings: Mapping[str, Any], markers: Mapping[str, Any]) -> str | None:
    """Return why none of the schedulers can sample with a config, or None if one can."""
    prediction, spacing = config.get("prediction_type"), config.get("timestep_spacing")
    flow = prediction == "flow_prediction" or config.get("use_flow_sigmas")
    continuous = prediction == "v_prediction" and config.get("timestep_type") == "continuous"
    if flow or continuous or not ("beta_schedule" in config or is_edm(config)):
        return f"model.path: the checkpoint's {kind} has continuous noise levels, which are not supported"
    for setting, value, known in (
        ("prediction_type", prediction, get_args(PredictionType)),
        ("timestep_spacing", spacing, (None, *get_args(TimestepSpacing))),
    ):
        if value not in known:
            choice = ", ".join(filter(None, known))
            return f"model.{setting}: the checkpoint's own {value} is not supported; choose one of {choice}"
    zero_snr = "rescale_betas_zero_snr"
    if prediction == "epsilon" and {**markers, **settings}.get(zero_snr):
        asked = "" if zero_snr in settings else "the file asks for it (`ztsnr` or `ss_zero_terminal_snr`), but "
        return (
            f"model.{zero_snr}: {asked}a model that predicts noise cannot start from pure noise; "
            "set model.prediction_type: v_prediction, or this to false"
        )
    return None
