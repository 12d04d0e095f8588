"""The OpenAPI document describes every route, event and error correctly."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from aiopenapi3 import OpenAPI
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.testclient import TestClient

from serve_app import line
from serve_app.config import FilesConfig
from serve_app.ingress.api import create_api
from serve_app.ingress.stored import StoredEvent
from serve_app.schemas import Event
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS

ROUTES = {
    ("/", "get"),
    ("/generate", "post"),
    ("/stream", "post"),
    ("/generations/{id}", "get"),
    ("/generations/{id}", "delete"),
    ("/generations/{id}/events", "get"),
    ("/generations/{id}/images/{index}", "delete"),
    ("/generations/{id}/resume", "post"),
    ("/generations/{id}/images/{index}/resume", "post"),
    ("/loras", "get"),
    ("/models", "get"),
    ("/embeddings", "get"),
    ("/schedulers", "get"),
    ("/status", "get"),
    ("/health", "get"),
    ("/v1/images/generations", "post"),
    ("/v1/images/edits", "post"),
    ("/v1/images/variations", "post"),
    ("/v1/models", "get"),
    ("/v1/models/{model}", "get"),
    ("/fal-ai/fast-sdxl", "post"),
    ("/fal-ai/fast-sdxl/stream", "post"),
    ("/fal-ai/fast-sdxl/image-to-image", "post"),
    ("/fal-ai/fast-sdxl/image-to-image/stream", "post"),
    ("/fal-ai/fast-sdxl/inpainting", "post"),
    ("/fal-ai/fast-sdxl/inpainting/stream", "post"),
    ("/files/{name}", "get"),
    *((f"/sdapi/v1/{path}", "post") for path in ("txt2img", "img2img", "options", "interrupt", "png-info")),
    *((f"/sdapi/v1/{path}", "get") for path in ("options", "progress", "sd-models", "sd-vae", "loras", "embeddings")),
    *((f"/sdapi/v1/{path}", "get") for path in ("samplers", "schedulers", "upscalers", "latent-upscale-modes")),
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    args = ARGS.model_copy(update={"files": FilesConfig(path=str(tmp_path_factory.mktemp("files")))})
    with TestClient(create_api(OneModel(FakePool(), args, Metrics()), args)) as client:
        answer: dict[str, Any] = client.get("/openapi.json").json()
        return answer


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from references(inner)


def events_of(document: dict[str, Any], path: str, method: str = "post") -> list[dict[str, Any]]:
    """Return the events that a stream is said to have."""
    content = document["paths"][path][method]["responses"]["200"]["content"]["text/event-stream"]
    events: list[dict[str, Any]] = content["schema"]["anyOf"]
    return events


def test_it_is_a_document_of_its_version(document: dict[str, Any]) -> None:
    """Checked by the official schema and by a strict client."""
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []
    OpenAPI("http://testserver/openapi.json", document)


def test_every_route_is_there_with_a_sentence(document: dict[str, Any]) -> None:
    assert {(path, method) for path, operations in document["paths"].items() for method in operations} == ROUTES
    assert all(
        operation["description"] for operations in document["paths"].values() for operation in operations.values()
    )


def test_all_routes_that_generate_are_counted_by_name(document: dict[str, Any]) -> None:
    others = {f"/sdapi/v1/{name}" for name in ("interrupt", "png-info", "options")}
    others |= {"/generations/{id}/resume", "/generations/{id}/images/{index}/resume"}
    assert {path for path, methods in document["paths"].items() if "post" in methods} - others == set(line.ROUTES)


def test_nothing_refers_to_what_is_not_there(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for reference in set(references(document)):
        head, _, name = reference.rpartition("/")
        assert head == "#/components/schemas"
        assert name in document["components"]["schemas"], reference


def test_errors_are_described_in_the_words_of_their_api(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        body = {"v1": "OpenAIErrorBody", "fal-ai": "FalErrorBody", "sdapi": "A1111ErrorBody"}.get(
            path.split("/")[1], "ErrorBody"
        )
        for operation in operations.values():
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            for status, answer in errors.items():
                assert list(answer["content"]) == ["application/json"], (path, status)
                told = "Health" if (path, status) == ("/health", "503") else body
                assert answer["content"]["application/json"]["schema"]["$ref"].endswith(f"/{told}"), (path, status)
            if path.startswith("/v1"):
                assert "422" not in errors, "bad input is a 400 there"


@pytest.mark.parametrize(("path", "method"), [("/stream", "post"), ("/generations/{id}/events", "get")])
def test_every_event_of_a_stream_is_described(document: dict[str, Any], path: str, method: str) -> None:
    events = (*get_args(Event), *get_args(StoredEvent))
    assert [(told["title"], told["properties"]["type"]["const"]) for told in events_of(document, path, method)] == [
        (event.__name__, event.model_fields["type"].default) for event in events
    ]


def test_also_those_of_the_other_apis(document: dict[str, Any]) -> None:
    for path, kind in (("generations", "generation"), ("edits", "edit"), ("variations", "edit")):
        *events, done = events_of(document, f"/v1/images/{path}")
        assert done == {"type": "string", "const": "[DONE]"}
        assert [told["properties"]["type"]["const"] for told in events] == [
            f"image_{kind}.partial_image",
            f"image_{kind}.completed",
            f"image_{kind}.failed",
            f"image_{kind}.warnings",
            "error",
        ]
    assert [told["title"] for told in events_of(document, "/fal-ai/fast-sdxl/stream")] == [
        "PreviewFrame",
        "FastSdxlOutput",
        "FalErrorBody",
    ]


def test_bounds_are_those_of_this_service(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["GenerateRequest"]["properties"]["num_images"]["maximum"] == 9
    n = schemas["ImagesRequest"]["properties"]["n"]
    assert (n["anyOf"][0]["maximum"], n["default"]) == (9, 1)
    assert "multiples of 8 from 64 to 512" in schemas["ImagesRequest"]["properties"]["size"]["description"]
    assert schemas["FastSdxlInput"]["properties"]["num_inference_steps"]["anyOf"][0]["maximum"] == 50
    for name in ("GenerateRequest", "ImagesRequest", "FastSdxlInput"):
        assert schemas[name]["properties"]["seed"]["anyOf"][0] == {
            "type": "integer",
            "minimum": -1,
            "exclusiveMaximum": 2**32,
        }
    for name in ("GenerateRequest", "ImagesRequest"):
        assert schemas[name]["properties"]["seeds"]["anyOf"][0]["items"] == {
            "type": "integer",
            "minimum": 0,
            "exclusiveMaximum": 2**32,
        }
    for name in ("GenerateRequest", "ImagesRequest", "FastSdxlInput"):
        assert all(field.get("description") for field in schemas[name]["properties"].values()), name
