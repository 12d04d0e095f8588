"""What schemathesis must be told of the service besides its OpenAPI document."""

import json
from base64 import b64encode
from typing import Any
from uuid import uuid4

import schemathesis

from serve_app.recipe import MOST_PHASES
from serve_app.samplers import SAMPLERS, refusal
from tests.ingress.hostile import plain, saved

Case = schemathesis.Case[Any]

PICTURE = saved(plain(color=(255, 255, 255), size=(64, 64)), "PNG")
"""As a mask it is one too."""


@schemathesis.deserializer("text/event-stream")
def events(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> list[Any]:
    """Return the data of a stream's events, which the document describes (`ingress/sse.py`)."""
    lines = response.content.decode().split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [told if told == "[DONE]" else json.loads(told) for told in data]


@schemathesis.hook
def before_load_schema(_: schemathesis.HookContext, document: dict[str, Any]) -> None:
    """Link what generates to what finds a generation by its id, for the tests of sequences.

    Their forms stay out: all fields of a form are texts, so what is wrong by its type is right once it is sent.
    """
    found = [
        operation["operationId"]
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if path.startswith("/generations/{id}")
    ]
    for path in ("/generate", "/stream"):
        del document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
        document["paths"][path]["post"]["responses"]["200"]["links"] = {
            name: {"operationId": name, "parameters": {"path.id": "$request.body#/id"}} for name in found
        }


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Mend what is sent by the rules that JSON Schema cannot tell."""
    positive = case.meta and case.meta.generation.mode.is_positive
    if positive and case.headers and "Last-Event-ID" in case.headers:
        case.headers["Last-Event-ID"] = "0"  # there are not so many events
    if positive and case.query:
        _drop(case.query, "model")  # any name by the schema, but a served model's
    if not isinstance(case.body, dict):
        return
    if isinstance(timeout_s := case.body.get("timeout_s"), float) and 0 < timeout_s < 1:
        case.body["timeout_s"] = 60.0  # less time than an image takes is a 504
    if positive:
        mend(case.body)
        if case.operation.path.startswith("/sdapi/"):
            mend_a1111(case.body, case.operation.path)
        if case.operation.path in ("/generate", "/stream"):
            _drop(case.body, "model")  # any name by the schema, but a served model's
            if case.operation.path == "/generate" or (case.body.get("num_inference_steps") or 20) == 1:
                _drop(case.body, "pause_after")  # for streams, and below num_inference_steps
            elif case.body.get("pause_after"):
                case.body["pause_after"] = 1
            case.body["id"] = str(uuid4())  # a second generation of one id is refused; without one it is not found


def mend(body: dict[str, Any]) -> None:
    """Make a body right that is right by its schema."""
    if body.get("seeds") is not None:  # instead of those
        _drop(body, "seed", "num_images", "n")
    if body.get("preview_steps") is not None:  # instead of preview_every; and each below num_inference_steps
        _drop(body, "preview_every")
        body["preview_steps"] = []
    _drop(body, "init_image", "mask_image")  # any text by the schema, but a picture
    scheduler: Any = body.get("scheduler") or "euler"  # of A1111 any text
    if scheduler in SAMPLERS and refusal(scheduler, body.get("sigma_schedule"), body.get("num_inference_steps") or 20):
        _drop(body, "scheduler", "sigma_schedule")  # what the first cannot do
    if scheduler == "pndm" and {"image", "image_url"} & body.keys():  # which cannot go on from a picture
        _drop(body, "scheduler")
    steps = body.get("num_inference_steps")
    if "image" in body or not (isinstance(steps, int) and steps > MOST_PHASES):  # each step above the one before
        _drop(body, "before")
    for step, phase in enumerate(body.get("before") or (), 1):
        phase["until_step"] = step
    images = len(body.get("seeds") or ()) or max(body.get("num_images") or 1, body.get("n") or 1)
    if "image" in body or images == 1 or (steps or 20) == 1:  # fewer than the images, before the last step
        _drop(body, "keep")
    elif body.get("keep"):
        body["keep"] = {"at_step": 1, "best": 1, "by": "sharpness"}
        _drop(body, "pause_after")  # instead of it
    _drop(body, "loras")  # any name by the schema, but an adapter's
    _drop(body, "model_name")  # likewise
    _drop(body, "embeddings")  # likewise, and one that a prompt names
    if None in (body.get("negative_original_size"), body.get("negative_target_size")):  # only together
        _drop(body, "negative_original_size", "negative_target_size", "negative_crops_coords_top_left")
    if not body.get("stream"):  # of what has no stream
        _drop(body, "partial_images")
    for name in {"image_url", "mask_url"} & body.keys():
        body[name] = f"data:;base64,{b64encode(PICTURE).decode()}"
    if isinstance(strength := body.get("strength"), float) and strength < 1:  # less than one of the steps
        body["strength"] = 1
    if "init_images" in body:
        body["init_images"] = [b64encode(PICTURE).decode()]
    if "image" in body:  # any file by the schema, but a picture, and a mask with a hole
        body["image"] = PICTURE
        _drop(body, "mask", "image[]")
    if isinstance(body.get("size"), str):  # a text with bounds
        body["size"] = "64x72"
    if isinstance(body.get("image_size"), dict):  # the model's bounds, which are told in words
        body["image_size"] = {"width": 64, "height": 72}
    if body.get("grid"):  # a sheet of large images would take long
        body |= {"width": 64, "height": 64}


def mend_a1111(body: dict[str, Any], path: str) -> None:
    """Make a body of A1111's API right: names of samplers and settings are texts by its schema."""
    if path.endswith("/options"):
        body.clear()
    if "image" in body:
        body["image"] = b64encode(PICTURE).decode()
    _drop(body, "sampler_name", "sampler_index", "scheduler", "override_settings", "n_iter", "batch_size", "mask")
    if "denoising_strength" in body:  # less than one of the steps
        body["denoising_strength"] = 1


def _drop(body: dict[str, Any], *names: str) -> None:
    for name in names:
        body.pop(name, None)
