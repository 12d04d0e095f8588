"""What a checkpoint says about sampling, and how settings override it."""

import inspect
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    SchedulerMixin,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from serve_app.config import AppArgs, LimitsConfig, ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.loading import load
from serve_app.replica.markers import marked
from serve_app.replica.scheduler_config import (
    check_steps,
    check_usable,
    default_scheduler,
    effective_config,
    fitting_schedulers,
)
from serve_app.replica.schedulers import SCHEDULER_NAMES, make_scheduler, most_steps, scheduler_name
from serve_app.schemas import TimestepSpacing
from tests.conftest import BETAS, ZERO_SNR, WithScheduler


def loaded(**model: Any) -> Checkpoint:
    return load_checkpoint(ModelConfig(**model), torch.device("cpu"))


V = {"prediction_type": "v_prediction"}


@pytest.mark.parametrize(
    ("keys", "metadata", "says"),
    [
        ((), {}, {}),
        (("v_pred",), {}, V),
        (("v_pred", "ztsnr"), {}, ZERO_SNR),
        *[
            ((), {"modelspec.prediction_type": word}, V)
            for word in ("v", "V", "v_prediction", "v-prediction", "v_pred")
        ],
        *[((), {"modelspec.prediction_type": word}, {}) for word in ("epsilon", "eps", "Epsilon", "")],
        ((), {"modelspec.prediction_type": "Flow"}, {"prediction_type": "Flow"}),
        ((), {"modelspec.prediction_type": "a\n b"}, {"prediction_type": "a b"}),
        (("v_pred",), {"modelspec.prediction_type": "epsilon"}, V),
        ((), {"ss_v_parameterization": "True"}, V),
        ((), {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, {}),
        ((), {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, ZERO_SNR),
        (("first_stage_model.v_pred",), {}, {}),
    ],
)
def test_a_file_says_how_it_is_sampled(keys: tuple[str, ...], metadata: dict[str, str], says: dict[str, Any]) -> None:
    assert marked(["model.diffusion_model.out.2.bias", *keys], metadata) == says


@pytest.mark.parametrize("own", [EulerDiscreteScheduler, PNDMScheduler])
@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_an_override_reaches_every_scheduler(own: Any, name: SchedulerName) -> None:
    """Even if the checkpoint's config does not mention it, or its scheduler class does not know it."""
    changes = {**ZERO_SNR, "timestep_spacing": "trailing"}
    scheduler = make_scheduler(name, effective_config(own(**BETAS), changes))
    known = changes.keys() & inspect.signature(type(scheduler)).parameters.keys()
    assert {setting: scheduler.config[setting] for setting in known} == {name: changes[name] for name in known}


def test_settings_override_the_checkpoint(with_scheduler: WithScheduler) -> None:
    path = with_scheduler(EulerDiscreteScheduler(**BETAS, **ZERO_SNR, timestep_spacing="leading"))
    own, changed = (
        loaded(path=str(path), **settings).info.model_dump(exclude={"name", "revision", "hash"})
        for settings in ({}, {"rescale_betas_zero_snr": False, "timestep_spacing": "trailing"})
    )
    assert own == {**ZERO_SNR, "timestep_spacing": "leading"}
    assert changed == {**ZERO_SNR, "rescale_betas_zero_snr": False, "timestep_spacing": "trailing"}


UNSUPPORTED = [
    FlowMatchEulerDiscreteScheduler(),
    DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
]


@pytest.mark.parametrize("scheduler", ["euler", None])
@pytest.mark.parametrize("own", UNSUPPORTED, ids=lambda own: type(own).__name__)
def test_models_with_continuous_noise_levels_get_no_advice(
    own: SchedulerMixin,
    scheduler: str | None,
    with_scheduler: WithScheduler,
) -> None:
    with pytest.raises(CheckpointError) as refused:
        loaded(path=str(with_scheduler(own)), scheduler=scheduler)
    assert str(refused.value).startswith(f"model.path: the checkpoint's {type(own).__name__} ")
    assert not any(name in str(refused.value) for name in ("model.scheduler", *SCHEDULER_NAMES))


def test_the_advice_is_right_for_the_config() -> None:
    third = DPMSolverMultistepScheduler(**BETAS, solver_order=3, use_karras_sigmas=True, prediction_type="sample")
    config = effective_config(third, {})
    others = "choose one of euler, heun, lms, dpmpp_2m, .*, tcd$"
    option = "DPMSolverMultistepScheduler with solver_order 3"
    with pytest.raises(CheckpointError, match=rf"^model\.scheduler: .* own {option} is not supported; {others}"):
        default_scheduler(third, config, None)
    with pytest.raises(CheckpointError, match=rf"^model\.scheduler: euler_a cannot sample this checkpoint; {others}"):
        default_scheduler(third, config, "euler_a")
    assert default_scheduler(third, config, "unipc") == "unipc"
    pndm = PNDMScheduler(**BETAS)
    with pytest.raises(CheckpointError, match=r" own PNDMScheduler with skip_prk_steps False is not supported; choose"):
        default_scheduler(pndm, effective_config(pndm, {}), None)
    consistency = CMStochasticIterativeScheduler()
    config = effective_config(EulerDiscreteScheduler(**BETAS), {})
    with pytest.raises(CheckpointError, match=r"^model\.scheduler: .* CMStochasticIterativeScheduler, which is not "):
        default_scheduler(consistency, config, None)
    assert default_scheduler(consistency, config, "euler") == "euler"


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++"), "dpmpp_2m_sde"),
        (DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++", solver_order=3), "dpmpp_3m_sde"),
        (DPMSolverSinglestepScheduler(beta_schedule="scaled_linear"), "dpmpp_2s"),
        (EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True), "euler"),
        (PNDMScheduler(**BETAS, skip_prk_steps=True), "pndm"),
        (LCMScheduler(**BETAS), "lcm"),
        (TCDScheduler(**BETAS), "tcd"),
        (EDMEulerScheduler(prediction_type="v_prediction", sigma_max=120.0), "edm_euler"),
        (EDMDPMSolverMultistepScheduler(), "edm_dpmpp_2m"),
    ],
)
def test_a_checkpoints_own_scheduler_is_its_default(own: SchedulerMixin, name: SchedulerName) -> None:
    assert default_scheduler(own, effective_config(own, {}), None) == name


@pytest.mark.parametrize(
    ("own", "changes", "message"),
    [
        ({"prediction_type": "eps"}, {}, r"^model\.prediction_type: the checkpoint's own eps is not supported; choose"),
        ({"timestep_spacing": "even"}, {}, r"^model\.timestep_spacing: the checkpoint's own even is not"),
        ({}, {"rescale_betas_zero_snr": True}, r"^model\.rescale_betas_zero_snr: .*: v_prediction"),
    ],
)
def test_a_nonsensical_config_is_refused(own: dict[str, str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        effective_config(EulerDiscreteScheduler(**BETAS, **own), changes)


@pytest.mark.parametrize("settings", [{}, {"prediction_type": "epsilon"}])
def test_zero_snr_that_a_file_asks_for_is_refused_as_the_files(settings: dict[str, Any]) -> None:
    markers = {"rescale_betas_zero_snr": True, **(V if settings else {})}
    own = EulerDiscreteScheduler(**BETAS)
    with pytest.raises(
        CheckpointError,
        match=r"^model\.rescale_betas_zero_snr: the file asks for it \(`ztsnr` or .*, or this to false$",
    ):
        effective_config(own, settings, markers)
    assert not effective_config(own, {**settings, "rescale_betas_zero_snr": False}, markers)["rescale_betas_zero_snr"]


def test_a_files_unknown_prediction_type_is_refused_unless_a_setting_overrides_it() -> None:
    own, markers = EulerDiscreteScheduler(**BETAS), marked([], {"modelspec.prediction_type": "flow"})
    with pytest.raises(CheckpointError, match=r"^model\.prediction_type: .* own flow is not supported; choose one of"):
        effective_config(own, {}, markers)
    assert effective_config(own, V, markers)["prediction_type"] == "v_prediction"


def test_defaults_of_the_scheduler_are_not_reported(with_scheduler: WithScheduler) -> None:
    """Its class may have a different default than the class that a request names."""
    path = with_scheduler(DDIMScheduler())
    (path / "scheduler/scheduler_config.json").write_text(json.dumps({**BETAS, "_class_name": "DDIMScheduler"}))
    checkpoint = loaded(path=str(path), rescale_betas_zero_snr=False)
    says = {"prediction_type": None, "timestep_spacing": None, "rescale_betas_zero_snr": False}
    assert checkpoint.info.model_dump(include={*says}) == says
    assert make_scheduler("euler", checkpoint.scheduler_config).config.timestep_spacing == "linspace"
    assert make_scheduler("ddim", checkpoint.scheduler_config).config.timestep_spacing == "leading"


def test_schedulers_that_cannot_sample_a_config_are_not_offered() -> None:
    def unfit(**config: Any) -> set[SchedulerName]:
        fit = fitting_schedulers(effective_config(EulerDiscreteScheduler(**BETAS, **config), {}))
        return {*SCHEDULER_NAMES} - {*fit}

    edm: set[SchedulerName] = {"edm_euler", "edm_dpmpp_2m"}
    assert unfit() == edm
    assert unfit(timestep_spacing="linspace") == {*edm, "pndm"}
    assert unfit(prediction_type="sample") == {*edm, "euler_a", "dpm2", "dpm2_a", "pndm"}
    without = {"heun", "dpm2", "dpm2_a", "dpmpp_2s", "dpmpp_sde", "deis", "pndm", "sa_solver"}
    assert unfit(**ZERO_SNR) == {*edm, *without}
    assert unfit(rescale_betas_zero_snr=True) == {*edm, *without, "ddim", "ddpm", "lcm", "tcd"}
    own = EDMEulerScheduler()
    assert {*fitting_schedulers(effective_config(own, {}))} == edm
    few = LCMScheduler(**BETAS, original_inference_steps=25)
    assert not {"lcm", "tcd"} & {*fitting_schedulers(effective_config(few, {}))}


OWN = [
    *(DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler),
    *(HeunDiscreteScheduler, LCMScheduler, SASolverScheduler, TCDScheduler, UniPCMultistepScheduler),
    *(DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler),
    partial(DPMSolverMultistepScheduler, algorithm_type="sde-dpmsolver++", solver_order=3),
    partial(PNDMScheduler, skip_prk_steps=True),
]


@pytest.mark.parametrize("own", OWN, ids=str)
def test_what_a_file_says_for_one_class_stops_no_other(own: Any) -> None:
    """Classes have options of one name whose values mean nothing to others; a saved config holds all of them."""
    config = {**own(beta_schedule="scaled_linear").config}
    del config["_use_default_values"]
    check_usable(config, CheckpointError)
    assert scheduler_name({**config, "_class_name": getattr(own, "func", own).__name__}) in fitting_schedulers(config)


def test_any_number_of_steps_that_the_check_allows_can_be_taken_by_all() -> None:
    for spacing in get_args(TimestepSpacing):
        for offset in (0, 1, 3):
            own = EulerDiscreteScheduler(
                beta_schedule="scaled_linear", num_train_timesteps=24, timestep_spacing=spacing, steps_offset=offset
            )
            config = effective_config(own, {})
            allowed = next(most for most in range(24, 0, -1) if allows(config, most))
            for name in fitting_schedulers(config):
                if name not in ("lcm", "tcd"):  # which are bounded by their own number
                    assert most_steps(name, config, allowed) == allowed, (name, spacing, offset)


def allows(config: Mapping[str, Any], most: int) -> bool:
    try:
        check_steps(config, most)
    except CheckpointError:
        return False
    return True


def test_more_steps_than_the_checkpoint_has_are_refused_at_the_start(with_scheduler: WithScheduler) -> None:
    path = str(with_scheduler(EulerDiscreteScheduler(**BETAS, num_train_timesteps=50, timestep_spacing="leading")))
    with pytest.raises(CheckpointError, match=r"^limits\.max_steps: .* dpmpp_2m cannot take 49 steps; set it to 48$"):
        load(AppArgs(model=ModelConfig(path=path)))
    load(AppArgs(model=ModelConfig(path=path), limits=LimitsConfig(max_steps=48)))
