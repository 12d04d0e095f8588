"""The forms of edits and variations, and their translation to the service's own requests."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, create_model

from serve_app.ingress.forms import KIND
from serve_app.ingress.offers import Offer
from serve_app.ingress.openai.requests import SAME, images_fields, own_request
from serve_app.ingress.openai.schemas import NO_EFFECT, ImagesRequest
from serve_app.schemas import GenerateRequest

NAMES = {"init_image": "image", "mask_image": "mask"}
"""What OpenAI calls our fields."""
_PICTURES = "init_image", "mask_image"
_NOTHING_SAID = " "
"""A prompt has at least one character; the model reads this one as none."""


def _only_one(pictures: Any) -> Any:
    if isinstance(pictures, list):
        if len(pictures) > 1:
            raise ValueError("more than one picture is not supported; send one")
        return pictures[0]
    return pictures


File = Annotated[str, WithJsonSchema({"type": "string", "format": "binary"}), BeforeValidator(_only_one)]


class EditForm(ImagesRequest):
    """The form of `POST /v1/images/edits`. Left empty means the default."""

    image: File = Field(min_length=1, description="The picture to edit; also as `image[]`, but only one.")
    mask: File | None = Field(
        default=None,
        min_length=1,
        description="A picture that is transparent where to generate anew. Null: all of the picture.",
    )
    input_fidelity: Literal["high", "low"] | None = Field(default=None, description=NO_EFFECT)


class VariationForm(ImagesRequest):
    """The form of `POST /v1/images/variations`. Left empty means the default."""

    prompt: str = Field(default=_NOTHING_SAID, min_length=1, description="What to generate; OpenAI has no such field.")
    image: File = Field(min_length=1, description="The picture to vary.")


def edit_form(offer: Offer) -> type[EditForm]:
    """Return the class that validates forms of edits for a model, with its bounds and defaults."""
    fields = _fields(offer)
    return create_model("EditForm", __base__=EditForm, __doc__=EditForm.__doc__, **fields)


def variation_form(offer: Offer) -> type[VariationForm]:
    """Return the class that validates forms of variations for a model, with its bounds and defaults."""
    fields = _fields(offer)
    del fields["prompt"]
    return create_model("VariationForm", __base__=VariationForm, __doc__=VariationForm.__doc__, **fields)


def _fields(offer: Offer) -> dict[str, Any]:
    """Return the fields of all requests. The picture has the name that OpenAI gives it."""
    return {name: field for name, field in images_fields(offer).items() if name not in _PICTURES}


async def own_request_of(form: EditForm | VariationForm, offer: Offer) -> GenerateRequest:
    """Translate a form to a request of this service. Raises InvalidRequest or RequestValidationError."""
    given = {"init_image": form.image}
    if isinstance(form, EditForm) and form.mask is not None:
        given["mask_image"] = await offer.service.hole(form.mask, "mask_image")
    return own_request(form, offer, SAME - {*_PICTURES}, **given)


def described(form: type[EditForm] | type[VariationForm]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that is such a form."""
    schema = form.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # those of other routes are the same
    return {"requestBody": {"required": True, "content": {KIND: {"schema": schema}}}}
