import pytest
from pydantic import BaseModel, ValidationError

from serve_app.config import AppArgs


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
        ({"model": {"width": 1024}}, "model.width"),
        ({"model": {"height": 100}}, "multiple of 8"),
        ({"model": {"num_inference_steps": 101}}, "limits.max_steps"),
        ({"engine": {"images_per_call": 0}}, "images_per_call"),
        ({"engine": {"warm_up_sizes": ["big"]}}, "engine.warm_up_sizes.0"),
        ({"engine": {"warm_up_sizes": ["256x100"]}}, "multiples of 8"),
        ({"engine": {"warm_up_sizes": ["1024x256"]}}, "model.max_size"),
        ({"admission": {"max_waiting_images": 8}}, "max_waiting_images"),
        ({"num_gpus": 2}, "less than or equal to 1"),
        ({"files": {"path": "files"}}, "files.path"),  # relative to what, on which node?
        ({"files": {"base_url": "images.example.com"}}, "files.base_url"),
        ({"auth": {"keys_file": "keys"}}, "auth.keys_file"),
        ({"num_replicas": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(args: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AppArgs.model_validate(args)


def test_the_default_size_is_the_first_to_get_ready_for() -> None:
    assert AppArgs.model_validate({"engine": {"warm_up_sizes": ["512x256"]}}).warm_up_sizes == ((256, 256), (512, 256))


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        AppArgs().num_replicas = 5  # type: ignore[misc]  # what is to be refused
