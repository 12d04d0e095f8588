"""JSON objects in requests: strict, frozen, and the same for our own fields and those of other APIs."""

from typing import Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(item) if isinstance(item, float) else item for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Body(BaseModel):
    """A JSON object in a request body, nested ones included."""

    # Strict: "4" is not a number and true is not 1. A client that sends them has a bug that it should hear about.
    # A least length, because pydantic lets surrogates pass in texts without bounds: they are no Unicode.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_min_length=0)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_are_integers(cls, body: Any) -> Any:
        """Accept 7.0 as 7: some languages write integers that way, and JSON Schema calls both integers."""
        return {name: _whole(value) for name, value in body.items()} if isinstance(body, dict) else body

    @classmethod
    def of(cls, whole: BaseModel) -> Self:
        """Return this class's fields of a validated object."""
        return cls.model_validate({name: getattr(whole, name) for name in cls.model_fields})


def list_like(example: str) -> BeforeValidator:
    """Return what refuses anything but a list of objects, and shows one."""

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(item, dict | Body) for item in value):
            raise ValueError(f"must be a list of objects, such as {example}")
        return value

    return BeforeValidator(check)
