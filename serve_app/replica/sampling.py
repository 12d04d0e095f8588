"""How a checkpoint is sampled: what it says itself, what the settings say instead, and which schedulers can do it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from diffusers import SchedulerMixin
from diffusers.schedulers import KarrasDiffusionSchedulers

from serve_app.config import ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import SchedulerName
from serve_app.replica.markers import read_markers
from serve_app.replica.schedulers import SCHEDULER_NAMES, most_steps, scheduler_name
from serve_app.schemas import PredictionType, TimestepSpacing

SETTINGS = ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr")
"""What `model` may set in the place of the checkpoint's own scheduler config, by the same names."""


def config_changes(path: Path, model: ModelConfig) -> dict[str, Any]:
    """Return what changes the scheduler config that comes with a checkpoint: its markers and, above them, the settings.

    Raises CheckpointError where the checkpoint cannot be sampled at all.
    """
    return _markers(path) | _settings(model)


def departures(path: Path, own: Mapping[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Return the settings that differ from the checkpoint's own, in its scheduler config `own` or its markers."""
    says = {**own, **_markers(path)}
    return {name: value for name, value in _settings(model).items() if says.get(name) != value}


def effective_config(own: SchedulerMixin, changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config that a checkpoint's schedulers are made from. Raises CheckpointError where none can do it."""
    config = {**own.config, **changes}
    # Another class of scheduler would put its own defaults in the place of what this one lists as defaults.
    config["_use_default_values"] = [name for name in own.config.get("_use_default_values", ()) if name not in changes]
    if fault := _fault(type(own).__name__, config, changes):
        raise CheckpointError(fault)
    return config


def fitting_schedulers(config: Mapping[str, Any]) -> tuple[SchedulerName, ...]:
    """Return the names of the schedulers that can sample with an effective config."""
    unfit: set[SchedulerName] = set()
    if config["prediction_type"] == "sample":
        unfit.add("euler_a")  # diffusers has not written it
    if config["prediction_type"] == "epsilon" and config.get("rescale_betas_zero_snr"):
        unfit.add("ddim")  # it divides by the signal, of which nothing is left; the others take a little for it
    return tuple(name for name in SCHEDULER_NAMES if name not in unfit)


def default_scheduler(own: SchedulerMixin, config: Mapping[str, Any], asked: SchedulerName | None) -> SchedulerName:
    """Return the scheduler of requests that name none: `asked`, else the checkpoint's own. Raises CheckpointError."""
    fitting, kind = fitting_schedulers(config), type(own).__name__
    name = asked or scheduler_name({**config, "_class_name": kind})
    if name in fitting:
        return name
    if name is None and kind not in KarrasDiffusionSchedulers.__members__:
        # A model of few steps, such as LCM: the others can take its steps, but do not paint what it was distilled for.
        raise CheckpointError(f"model.scheduler: the checkpoint is made for {kind}, which is not supported")
    fault = f"the checkpoint's own {kind} is not supported" if name is None else f"{name} cannot sample this checkpoint"
    raise CheckpointError(f"model.scheduler: {fault}; choose one of {', '.join(fitting)}")


def check_steps(config: Mapping[str, Any], most: int) -> None:
    """Raise CheckpointError unless each of the schedulers can take 1 to `most` steps."""
    names = [name for name in fitting_schedulers(config) if name != "dpmpp_2m_karras"]  # which goes by its levels alone
    can = {name: most_steps(name, config, most) for name in names}
    worst = min(can, key=lambda name: can[name])
    if can[worst] < most:
        fault = f"with the checkpoint's scheduler config {worst} cannot take {can[worst] + 1} steps"
        raise CheckpointError(f"limits.max_steps: {fault}; set it to {can[worst]}")


def _markers(path: Path) -> dict[str, Any]:
    return read_markers(path) if path.is_file() else {}


def _settings(model: ModelConfig) -> dict[str, Any]:
    return {name: value for name in SETTINGS if (value := getattr(model, name)) is not None}


def _fault(kind: str, config: Mapping[str, Any], changes: Mapping[str, Any]) -> str | None:
    """Return why no scheduler of ours is right for a config, whatever `model.scheduler` names."""
    prediction, spacing = config.get("prediction_type"), config.get("timestep_spacing")
    flow = prediction == "flow_prediction" or config.get("use_flow_sigmas")
    continuous = prediction == "v_prediction" and config.get("timestep_type") == "continuous"
    if flow or continuous or "beta_schedule" not in config:
        return f"model.path: the checkpoint's {kind} has continuous noise levels (EDM, flow), which are not supported"
    for setting, value, known in (
        ("prediction_type", prediction, get_args(PredictionType)),
        ("timestep_spacing", spacing, (None, *get_args(TimestepSpacing))),
    ):
        if value not in known:
            choice = ", ".join(filter(None, known))
            return f"model.{setting}: the checkpoint's own {value} is not supported; choose one of {choice}"
    if prediction == "epsilon" and changes.get("rescale_betas_zero_snr"):
        return (
            "model.rescale_betas_zero_snr: where nothing but noise is left, a model that predicts noise says nothing; "
            "set model.prediction_type: v_prediction, or this to false"
        )
    return None
