import json
import math
import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from serve_app.config import ONLY_MODEL, AppArgs, EngineConfig
from serve_app.ingress.requests import request_model
from serve_app.recipe import SEED_SPAN
from serve_app.schemas import longest_body

MANY_WAIT = {"admission": {"max_waiting_images": 3000}}

WRONG_ORIGINS = [
    ("https://app.example.com/", "as https://app.example.com$"),
    ("https://App.Example.com", "as https://app.example.com$"),
    ("HTTPS://app.example.com:443", "as https://app.example.com$"),
    ("http://localhost:0080", "as http://localhost$"),
    ("https://b\u00fc.example", "as https://xn--b-eha.example$"),
    (" https://app.example.com", "as https://app.example.com$"),
    ("app.example.com", "app.example.com is not an origin: write scheme"),
    ("localhost:3000", "localhost:3000 is not an origin"),
    ("https://*.example.com", "is not an origin"),
    ("", "is not an origin"),
]


def configs() -> list[type[BaseModel]]:
    parts = [f.annotation for f in AppArgs.model_fields.values()]
    return [AppArgs, *(p for p in parts if isinstance(p, type) and issubclass(p, BaseModel))]


@pytest.mark.parametrize("config", configs(), ids=lambda c: c.__name__)
def test_every_field_is_described_and_unknown_keys_are_errors(config: type[BaseModel]) -> None:
    for name, field in config.model_fields.items():
        part = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert field.description or (part and field.annotation.__doc__), name
    with pytest.raises(ValidationError, match="Extra inputs"):
        config.model_validate({"no_such_key": 1})


def test_command_line_values_are_strings_and_are_converted() -> None:
    assert AppArgs.model_validate({"num_replicas": "3", "num_gpus": "1"}).num_replicas == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"num_replicas": 0}, "num_replicas.*greater than or equal to 1"),
        ({"num_gpus": 2}, "num_gpus.*less than or equal to 1"),
        ({"num_gpus": 1 / 3}, "num_gpus.*at most 4 decimal places.*0.3333"),
        ({"num_cpus": 0.00001}, "num_cpus.*at most 4 decimal places"),
        ({"num_cpus": math.inf}, "num_cpus.*finite"),
        ({"request_timeout_s": math.nan}, "request_timeout_s.*greater than or equal to 1"),
        ({"request_timeout_s": 0.5}, "request_timeout_s.*greater than or equal to 1"),
        ({"engine": {"scorers": {"mine": "somewhere"}}}, "engine.scorers.mine.*module:function"),
        ({"model": {"path": ""}}, "model.path.*must hold text"),
        ({"model": {"path": "embedded "}}, "model.path.*without surrounding spaces"),
        (
            {"model": {"path": "/models/other"}, "adapters": {"path": "embedded"}},
            "adapters.path: embedded goes only with model.path: embedded",
        ),
        ({"adapters": {"path": "loras"}}, "adapters.path.*must be an absolute path"),
        ({"model": {"revision": ""}}, "model.revision.*leave it out for the default"),
        ({"model": {"variant": " "}}, "model.variant.*must hold text"),
        ({"model": {"config_path": ""}}, "model.config_path.*must hold text"),
        ({"model": {"name": "my\nmodel"}}, "model.name.*line breaks"),
        ({"model": {"name": "my\u2028model"}}, "model.name.*line breaks"),
        ({"model": {"name": "\ud800"}}, "model.name.*must hold text"),
        ({"model": {"preview_path": ""}}, "model.preview_path.*must hold text"),
        ({"model": {"vae_path": ""}}, "model.vae_path.*must hold text"),
        ({"model": {"guidance_scale": math.nan}}, "model.guidance_scale.*less than or equal to 30"),
        (
            {"model": {"prediction_type": "epsilon", "rescale_betas_zero_snr": True}},
            "model.rescale_betas_zero_snr: true cannot go with model.prediction_type: epsilon",
        ),
        ({"model": {"width": 1024}}, r"model.width \(1024\) must lie between"),
        ({"model": {"height": 100}}, "model.height.*multiple of 8"),
        ({"model": {"min_size": 512, "max_size": 256}}, r"model.min_size \(512\) must not be above model.max_size"),
        ({"model": {"num_inference_steps": 101}}, "model.num_inference_steps must not be above limits.max_steps"),
        ({"engine": {"calls_at_once": 0}}, "engine.calls_at_once.*greater than or equal to 1"),
        ({"engine": {"images_per_call": 0}}, "engine.images_per_call.*greater than or equal to 1"),
        ({"engine": {"images_per_call": 8}}, r"engine.images_per_call \(8\) must not be above engine.max_batch_size"),
        ({"engine": {"warm_up_sizes": ["big"]}}, "engine.warm_up_sizes.0.*big is not a size.*such as 1152x896"),
        ({"engine": {"warm_up_sizes": ["0x256"]}}, "engine.warm_up_sizes.0.*0x256 is not a size"),
        ({"engine": {"warm_up_sizes": ["256x256\n"]}}, "engine.warm_up_sizes.0.*is not a size"),
        ({"engine": {"warm_up_sizes": "1152x896"}}, "engine.warm_up_sizes .*must be a list.*such as \\[1152x896\\]"),
        ({"engine": {"warm_up_sizes": ["256x100"]}}, "engine.warm_up_sizes.*multiples of 8"),
        ({"engine": {"warm_up_sizes": ["1024x256"]}}, "engine.warm_up_sizes.*model.max_size"),
        ({"engine": {"compile_cache": ""}}, "engine.compile_cache.*must hold text"),
        ({"engine": {"quantization": "fp8"}, "num_gpus": 1}, "engine.quantization: fp8 on a GPU needs model.dtype"),
        ({"limits": {"max_body_bytes": 20_000}}, r"limits.max_body_bytes \(20000\) must be at least 9"),
        (
            {"limits": {"max_images": 3000, "max_body_bytes": 65536}, **MANY_WAIT},
            r"limits.max_body_bytes \(65536\) must be at least 1",
        ),
        ({"admission": {"max_waiting_images": 8}}, "admission.max_waiting_images must be at least limits.max_images"),
        ({"files": {"path": "files"}}, "files.path.*absolute path"),
        ({"files": {"path": "/srv\0"}}, "files.path.*must hold text"),
        ({"files": {"path": "/srv", "max_bytes": 2**20}, "model": {"max_size": 1024}}, "files.max_bytes.*at least 314"),
        ({"files": {"path": "/srv", "ttl_s": 0.001}}, "files.ttl_s.*greater than or equal to 1"),
        ({"files": {"base_url": "https://a.b"}}, "files.base_url needs files.path"),
        ({"files": {"path": "/srv", "base_url": "images.example.com"}}, "files.base_url.*must be http:// or https://"),
        ({"files": {"path": "/srv", "base_url": "https://"}}, "files.base_url.*and a host"),
        ({"files": {"path": "/srv", "base_url": "ftp://a.b"}}, "files.base_url.*must be http"),
        ({"files": {"path": "/srv", "base_url": "https://a.b/?x=1"}}, "files.base_url.*without user, [?] or #"),
        ({"files": {"path": "/srv", "base_url": "https://a.b/#"}}, "files.base_url.*without user, [?] or #"),
        ({"files": {"path": "/srv", "base_url": "https://me:secret@a.b"}}, "files.base_url.*without user"),
        ({"auth": {"keys_env": ""}}, "auth.keys_env.*name of an environment variable"),
        ({"auth": {"keys_env": "$KEYS"}}, "auth.keys_env.*such as API_KEYS"),
        ({"auth": {"keys_env": "KEYS=one"}}, "auth.keys_env.*the variable holds the keys"),
        ({"auth": {"keys_file": "keys"}}, "auth.keys_file.*absolute path"),
        ({"auth": {"keys_file": "/srv/x/../keys"}, "files": {"path": "/srv/"}}, "auth.keys_file must not lie in files"),
        ({"auth": {"keys_file": "/srv"}, "files": {"path": "/srv"}}, "auth.keys_file must not lie in files.path"),
        ({"cors": {"allow_origins": ["https://a.b", "https://c.d/page"]}}, "cors.allow_origins.1.*as https://c.d$"),
        ({"cors": {"allow_origins": ["*", "https://a.b"]}}, "cors.allow_origins.*[*] stands for any origin"),
        ({"cors": {"allow_origins": "https://a.b"}}, "cors.allow_origins .*must be a list.*such as \\[https://a.b\\]"),
        ({"models": ["a"]}, "models.*valid dictionary"),
        ({"models": {"a": None}}, "models.a.*valid dictionary"),
        ({"models": {"a/b": {}}}, "models.a/b.*match pattern"),
        ({"models": {"a": {"files": {}}}}, "models.a.files: a model may have these settings of its own: num_replicas"),
        ({"models": {"a": {"model": {"widht": 64}}}}, "models.a.model.widht: Extra inputs are not permitted"),
        ({"models": {"a": {"model": 7}}}, "models.a.model: .*valid dictionary"),
        ({"models": {"a": {"model": {"width": 1024}}}}, r"models.a: model.width \(1024\) must lie between"),
        ({"models": {"a": {"model": {"name": "b"}}}}, "models.a: a is the model's name already; leave out model.name"),
        (
            {"models": {"a": {}}, "model": {"name": "b"}},
            "models.a: a is the model's name already; leave out model.name",
        ),
        ({"models": {"a": {"limits": {"max_steps": 9}}}}, "models.a: model.num_inference_steps must not be above"),
        ({"models": {"a": {}, "b": {}}}, "default_model: say which of the models.*: a, b"),
        ({"models": {"a": {}}, "default_model": "b"}, r"default_model \(b\) must be one of models: a"),
        ({"default_model": "b"}, r"default_model \(b\) must be one of models: there are none"),
        *[({"cors": {"allow_origins": [origin]}}, f"cors.allow_origins.0.*{says}") for origin, says in WRONG_ORIGINS],
    ],
)
def test_what_can_never_work_is_refused_with_a_sentence_that_names_it(args: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError) as raised:
        AppArgs.model_validate(args)
    (fault,) = raised.value.errors()
    assert re.search(says, f"{'.'.join(map(str, fault['loc']))} {fault['msg']}", re.DOTALL)


@pytest.mark.parametrize(
    "args",
    [
        {"num_gpus": 0.5},
        {"num_gpus": 0.3333, "num_cpus": 1.5},
        {"num_cpus": 0},
        {"request_timeout_s": math.inf, "files": {"ttl_s": math.inf}},
        {"model": {"dtype": "float16"}},
        {"model": {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}},
        {"model": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}},
        {"model": {"rescale_betas_zero_snr": True}},
        {"engine": {"quantization": "fp8"}},
        {"engine": {"quantization": "fp8"}, "model": {"dtype": "float16"}, "num_gpus": 0.5},
        {"model": {"name": "my model: \U0001f9d1\u200d\U0001f680"}},
        {"model": {"min_size": 8, "width": 8, "height": 8}},
        {"engine": {"warm_up_sizes": ["256x256", "512x256", "512x256"]}},
        {"limits": {"max_steps": 998}},
        {"files": {"path": "/srv/images", "base_url": "http://[::1]:8000/images/"}},
        {"files": {"path": "/srv/images"}, "auth": {"keys_file": "/srv/images.keys"}},
        {"auth": {"keys_env": "API_KEYS"}},
        {"cors": {"allow_origins": ["*"]}},
        {"cors": {"allow_origins": ["null", "http://localhost:3000", "http://[::1]:3000", "chrome-extension://abc"]}},
    ],
)
def test_what_can_work_is_taken(args: dict[str, object]) -> None:
    AppArgs.model_validate(args)


def test_the_smallest_body_allowed_fits_every_request_without_phases() -> None:
    limits = {"max_images": 100, "max_steps": 998}
    smallest = longest_body(**limits)
    args = AppArgs.model_validate({"limits": {**limits, "max_body_bytes": smallest}, **MANY_WAIT})
    text = "\U0001f34e" * 2000
    body = {
        "prompt": text,
        "prompt_2": text,
        "negative_prompt": text,
        "negative_prompt_2": text,
        "negative_original_size": [16384, 16384],
        "negative_target_size": [16384, 16384],
        "seeds": list(range(SEED_SPAN - 100, SEED_SPAN)),
        "variations": [{"seed": SEED_SPAN - 1, "strength": 0.12345678901234567}] * 8,
        "width": 512,
        "height": 512,
        "num_inference_steps": 998,
        "guidance_scale": 12.345678901234567,
        "scheduler": "dpmpp_2m_karras",
        "output_format": "jpeg",
        "output_compression": 100,
        "preview_steps": list(range(1, 998)),
        "grid": False,
    }
    request_model(args).model_validate(body)
    assert smallest - 1024 < len(json.dumps(body)) <= smallest


def test_the_default_size_is_the_first_to_get_ready_for() -> None:
    sizes = ["512x256", "256x256", "512x256"]
    args = AppArgs.model_validate({"engine": {"warm_up_sizes": sizes}})
    assert args.warm_up_sizes == ((256, 256), (512, 256)), "and each is so once"


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AppArgs().num_replicas = 5  # type: ignore[misc]  # what is to be refused


def test_live_settings_change_section_by_section() -> None:
    args = AppArgs.model_validate({"limits": {"max_steps": 50}, "num_replicas": 3, "cors": {"allow_origins": ["*"]}})
    changed = args.changed({"limits": {"max_images": 4}, "cors": {"allow_origins": []}})
    assert (changed.limits.max_images, changed.limits.max_steps, changed.num_replicas) == (4, 50, 3)
    assert changed.cors.allow_origins == ()
    assert args.changed({}) == args


@pytest.mark.parametrize(
    ("live", "message"),
    [
        ({"model": {"path": "x"}}, "model is not one of the settings that can change"),
        ({"limits": {"max_image": 4}}, r"limits\.max_image"),
        ({"admission": {"max_waiting_images": 1}}, "admission.max_waiting_images must be at least"),
        ({"limits": 4}, "limits"),
    ],
)
def test_other_live_settings_are_refused(live: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AppArgs().changed(live)


@pytest.mark.parametrize(
    ("settings", "cpu", "gpu"),
    [
        ({}, 1, 2),
        ({"max_batch_size": 1}, 1, 1),
        ({"max_batch_size": 8, "images_per_call": 8}, 1, 1),
        ({"max_batch_size": 8, "images_per_call": 4}, 1, 2),
        ({"calls_at_once": 3}, 3, 3),
        ({"calls_at_once": 3, "max_batch_size": 2}, 2, 2),
    ],
)
def test_no_more_calls_at_once_than_a_batch_takes(settings: dict[str, int], cpu: int, gpu: int) -> None:
    engine = EngineConfig(**settings)
    assert (engine.lanes(on_gpu=False), engine.lanes(on_gpu=True)) == (cpu, gpu)


MODELS = {
    "limits": {"max_steps": 10},
    "num_replicas": 3,
    "default_model": "b",
    "models": {
        "a": {"limits": {"max_images": 2}, "model": {"path": "/a", "num_inference_steps": 4}},
        "b": {"model": {"num_inference_steps": 9}, "num_replicas": 1, "scaling": {"max_replicas": 4}},
    },
}


def test_each_model_has_all_settings_with_its_own() -> None:
    served = AppArgs.model_validate(MODELS).served
    assert list(served) == ["b", "a"], "the default first"
    a, b = served["a"], served["b"]
    assert (a.limits.max_images, a.limits.max_steps, a.num_replicas, a.model.name) == (2, 10, 3, "a")
    assert (b.limits.max_images, b.limits.max_steps, b.num_replicas, b.model.name) == (16, 10, 1, "b")
    assert (a.model.num_inference_steps, b.model.num_inference_steps) == (4, 9)
    assert (a.scaling, b.scaling and b.scaling.max_replicas) == (None, 4)
    assert not a.models


def test_one_model_without_a_name_is_the_service() -> None:
    args = AppArgs(num_replicas=5)
    assert args.served == {ONLY_MODEL: args}
    (named,) = AppArgs(models={"a": {}}).served
    assert named == "a", "the only one is the default"


def test_the_largest_body_is_that_of_any_model() -> None:
    limits = {"a": {"limits": {"max_body_bytes": 2**20}}, "b": {"limits": {"max_body_bytes": 2**22}}}
    assert AppArgs(models=limits, default_model="a", limits={"max_body_bytes": 2**18}).max_body_bytes == 2**22


def test_limits_of_models_change_in_a_run() -> None:
    args = AppArgs.model_validate(MODELS)
    changed = args.changed({"limits": {"max_images": 5}, "models": {"b": {"limits": {"max_prompt_tokens": 75}}}})
    a, b = changed.served["a"].limits, changed.served["b"].limits
    assert (a.max_images, a.max_steps, a.max_prompt_tokens) == (2, 10, 225), "its own goes before"
    assert (b.max_images, b.max_steps, b.max_prompt_tokens) == (5, 10, 75)
    assert args.changed({}) == args


@pytest.mark.parametrize(
    ("live", "says"),
    [
        ({"models": {"b": {"model": {"width": 64}}}}, "models.b.model is not one of the settings that can change"),
        ({"models": {"c": {}}}, "models.c is not one of the settings that can change in a run: a, b"),
        ({"models": {"b": {"limits": {"max_steps": 5}}}}, "models.b: model.num_inference_steps must not be above"),
        ({"models": 7}, "models must be a mapping"),
        ({"models": {"b": None}}, "models.b must be a mapping"),
        ({"default_model": "a"}, "default_model is not one of the settings that can change"),
    ],
)
def test_which_models_there_are_does_not_change_in_a_run(live: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AppArgs.model_validate(MODELS).changed(live)
