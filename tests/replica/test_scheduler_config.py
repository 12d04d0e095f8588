"""What a checkpoint says about sampling, and how settings override it."""

import json
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
)

from serve_app.config import AppArgs, LimitsConfig, ModelConfig
from serve_app.errors import CheckpointError
from serve_app.recipe import SchedulerName
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.loading import load
from serve_app.replica.markers import marked
from serve_app.replica.scheduler_config import default_scheduler, effective_config, fitting_schedulers
from serve_app.replica.schedulers import SCHEDULER_NAMES, make_scheduler
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
    config = make_scheduler(name, effective_config(own(**BETAS), changes)).config
    assert {setting: config[setting] for setting in changes} == changes


def test_settings_override_the_checkpoint(with_scheduler: WithScheduler) -> None:
    path = with_scheduler(EulerDiscreteScheduler(**BETAS, **ZERO_SNR, timestep_spacing="leading"))
    own, changed = (
        loaded(path=str(path), **settings).info.model_dump(exclude={"name", "revision", "hash"})
        for settings in ({}, {"rescale_betas_zero_snr": False, "timestep_spacing": "trailing"})
    )
    assert own == {**ZERO_SNR, "timestep_spacing": "leading"}
    assert changed == {**ZERO_SNR, "rescale_betas_zero_snr": False, "timestep_spacing": "trailing"}


UNSUPPORTED = [
    EDMEulerScheduler(prediction_type="v_prediction", sigma_max=120.0),
    EDMDPMSolverMultistepScheduler(),
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
    sde = DPMSolverMultistepScheduler(**BETAS, algorithm_type="sde-dpmsolver++", prediction_type="sample")
    config = effective_config(sde, {})
    others = "choose one of euler, dpmpp_2m, dpmpp_2m_karras, ddim, unipc$"
    option = "DPMSolverMultistepScheduler with algorithm_type sde-dpmsolver[+]{2}"
    with pytest.raises(CheckpointError, match=rf"^model\.scheduler: .* own {option} is not supported; {others}"):
        default_scheduler(sde, config, None)
    third = DPMSolverMultistepScheduler(**BETAS, solver_order=3, use_karras_sigmas=True)
    with pytest.raises(CheckpointError, match=r" own DPMSolverMultistepScheduler with solver_order 3 is not supported"):
        default_scheduler(third, effective_config(third, {}), None)
    pndm = PNDMScheduler(**BETAS)
    with pytest.raises(CheckpointError, match=r" own PNDMScheduler is not supported; choose one of euler, "):
        default_scheduler(pndm, effective_config(pndm, {}), None)
    with pytest.raises(CheckpointError, match=rf"^model\.scheduler: euler_a cannot sample this checkpoint; {others}"):
        default_scheduler(sde, config, "euler_a")
    assert default_scheduler(sde, config, "unipc") == "unipc"
    lcm = LCMScheduler(**BETAS)
    with pytest.raises(CheckpointError, match=r"^model\.scheduler: .* LCMScheduler, which is not supported$"):
        default_scheduler(lcm, effective_config(lcm, {}), None)
    assert default_scheduler(lcm, effective_config(lcm, {}), "euler") == "euler"


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

    assert unfit() == unfit(**ZERO_SNR) == set()
    assert unfit(prediction_type="sample") == {"euler_a"}
    assert unfit(rescale_betas_zero_snr=True) == {"ddim"}


def test_more_steps_than_the_checkpoint_has_are_refused_at_the_start(with_scheduler: WithScheduler) -> None:
    path = str(with_scheduler(EulerDiscreteScheduler(**BETAS, num_train_timesteps=50, timestep_spacing="leading")))
    with pytest.raises(CheckpointError, match=r"^limits\.max_steps: .* dpmpp_2m cannot take 49 steps; set it to 48$"):
        load(AppArgs(model=ModelConfig(path=path)))
    load(AppArgs(model=ModelConfig(path=path), limits=LimitsConfig(max_steps=48)))
