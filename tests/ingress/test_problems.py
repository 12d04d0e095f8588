"""All refusals, in one format."""

import gzip
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from serve_app.fanout.fanout import FanOut
from tests.fakes import FakePool

BAD = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "a" * 2001}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"negative_prompt": "a" * 2001}, "negative_prompt"),
    ({"negative_prompt": None}, "negative_prompt"),
    ({"num_images": 0}, "num_images"),
    ({"num_images": 10}, "num_images"),
    ({"num_images": 1.5}, "num_images"),
    ({"num_images": "4"}, "num_images"),
    ({"num_images": True}, "num_images"),
    ({"seed": -2}, "seed"),
    ({"seed": 2**32}, "seed"),
    ({"seed": "7"}, "seed"),
    ({"seeds": []}, "seeds"),
    ({"seeds": list(range(10))}, "seeds"),
    ({"seeds": [1, 1]}, "seeds"),
    ({"seeds": [1, -1]}, "seeds.1"),
    ({"seeds": [2**32]}, "seeds.0"),
    ({"seeds": [1], "seed": 1}, "seeds"),
    ({"seeds": [1], "num_images": 1}, "seeds"),
    ({"width": 100}, "width"),
    ({"width": 56}, "width"),
    ({"width": 520}, "width"),
    ({"height": 0}, "height"),
    ({"height": "256"}, "height"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 51}, "num_inference_steps"),
    ({"guidance_scale": -0.1}, "guidance_scale"),
    ({"guidance_scale": 30.1}, "guidance_scale"),
    ({"guidance_scale": "5"}, "guidance_scale"),
    ({"scheduler": "plms"}, "scheduler"),
    ({"output_format": "gif"}, "output_format"),
    ({"preview_every": -1}, "preview_every"),
    ({"preview_every": 101}, "preview_every"),
    ({"preview_steps": [0]}, "preview_steps.0"),
    ({"preview_steps": [20]}, "preview_steps"),
    ({"preview_steps": 5}, "preview_steps"),
    ({"preview_steps": [1], "preview_every": 5}, "preview_steps"),
    ({"output_compression": 101}, "output_compression"),
    ({"output_compression": -1}, "output_compression"),
    ({"response_format": "png"}, "response_format"),
    ({"response_format": "url"}, "response_format"),
    ({"grid": "yes"}, "grid"),
    ({"steps": 20}, "steps"),
    ({"prompt_2": "a" * 2001}, "prompt_2"),
    ({"original_size": [512]}, "original_size"),
    ({"original_size": [512, 20000]}, "original_size.1"),
    ({"crops_coords_top_left": [0, -1]}, "crops_coords_top_left.1"),
    ({"negative_original_size": [512, 512]}, "negative_target_size"),
    ({"negative_target_size": [512, 512]}, "negative_original_size"),
    ({"negative_crops_coords_top_left": [8, 0]}, "negative_crops_coords_top_left"),
    ({"keep": {"at_step": 6, "best": 1}}, "keep.by"),
    ({"keep": {"at_step": 20, "best": 1, "by": "sharpness"}}, "keep.at_step"),
    ({"keep": {"at_step": 6, "best": 4, "by": "sharpness"}}, "keep.best"),
    ({"keep": {"at_step": 6, "best": 1, "by": "sharpness"}, "pause_after": 6}, "keep"),
    ({"keep": {"at_step": 6, "best": 1, "by": "taste"}}, "keep.by"),
    ({"before": [{"until_step": step} for step in range(1, 6)]}, "before"),
]


@pytest.mark.parametrize("route", ["/generate", "/stream"])
@pytest.mark.parametrize(("change", "param"), BAD, ids=lambda value: json.dumps(value)[:40])
def test_bad_input_is_a_422_that_names_the_field(
    client: TestClient, pool: FakePool, route: str, change: dict[str, Any], param: str
) -> None:
    response = client.post(route, json={"prompt": "a", **change} if change else {})
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request", param)
    assert error["message"].startswith(f"{param}: ")
    assert pool.slots == []


def test_what_is_no_object_is_told_to_be_one(client: TestClient) -> None:
    for sent in ({"json": {"prompt": "a", "keep": [6]}}, {"files": {"prompt": (None, "a"), "keep": (None, "6")}}):
        error = client.post("/generate", **sent).json()["error"]
        assert (error["param"], error["message"]) == ("keep", "keep: must be an object with named fields")


def test_a_list_that_is_too_long_is_told_how_long_it_may_be(client: TestClient) -> None:
    variations = [{"strength": 0.1}] * 9
    error = client.post("/generate", json={"prompt": "a", "variations": variations}).json()["error"]
    assert error["message"] == "variations: at most 8 may be given, not 9; leave some out"


ROUTES = {
    "/generate": 422,
    "/stream": 422,
    "/v1/images/generations": 400,
    "/fal-ai/fast-sdxl": 422,
    "/fal-ai/fast-sdxl/stream": 422,
}
"""The routes that take a body, with their status for bad input."""


def refusal(response: Any) -> tuple[str, str | None]:
    """Return the message and the field of an error in any dialect."""
    body = response.json()
    if "detail" in body:
        (item,) = body["detail"]
        return item["msg"], ".".join(item["loc"][1:]) or None
    return body["error"]["message"], body["error"]["param"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"prompt": "a"', "not valid JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'"a"', "JSON object"),
        (b"null", "JSON object"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale: must be a finite number"),
        (b'{"prompt": "\\ud800"}', "unicode"),
        ('{"prompt":"café"}'.encode("latin-1"), "not UTF-8 at byte 14 (0xe9); JSON must be UTF-8"),
        (b'{"prompt": "\xff\xfe\x80"}', "not UTF-8 at byte 12 (0xff)"),
        (b"\xff\xfe", "not valid JSON"),
        ('{"prompt":"a"}'.encode("utf-16")[:-1], "looks like utf-16"),
        (b"[" * 9_000, "nested"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}", "digits"),
    ],
)
def test_a_body_that_is_no_request_is_told_why(client: TestClient, pool: FakePool, content: bytes, says: str) -> None:
    for route, status in ROUTES.items():
        response = client.post(route, content=content, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text
        assert says in refusal(response)[0]
    assert not pool.slots


@pytest.mark.parametrize(
    ("route", "field"),
    [
        *(("/generate", field) for field in ("prompt", "negative_prompt", "id", "scheduler")),
        *(("/v1/images/generations", field) for field in ("prompt", "model", "size", "user", "safety_identifier")),
        *(("/fal-ai/fast-sdxl", field) for field in ("prompt", "image_size", "request_id")),
    ],
)
def test_half_a_character_is_no_text(client: TestClient, pool: FakePool, route: str, field: str) -> None:
    body = json.dumps({"prompt": "a", field: "\ud800"})
    response = client.post(route, content=body, headers={"content-type": "application/json"})
    message, param = refusal(response)
    assert (response.status_code, param and param.split(".")[0]) == (ROUTES[route], field)
    assert "unicode" in message
    assert not pool.slots


def test_a_charset_is_no_help_to_json(client: TestClient) -> None:
    body = '{"prompt":"café"}'
    latin, utf8 = (
        client.post(
            "/generate", content=body.encode(charset), headers={"content-type": f"application/json; charset={charset}"}
        )
        for charset in ("iso-8859-1", "utf-8")
    )
    assert refusal(latin)[0].endswith("JSON must be UTF-8, not iso-8859-1")
    assert utf8.json()["parameters"]["prompt"] == "café"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_of_another_kind_is_read_as_what_it_is(client: TestClient, encoding: str) -> None:
    response = client.post(
        "/generate", content='{"prompt":"café"}'.encode(encoding), headers={"content-type": "application/json"}
    )
    assert response.json()["parameters"]["prompt"] == "café"


@pytest.mark.parametrize(
    ("encoding", "content"),
    [("gzip", gzip.compress(b'{"prompt":"a"}', mtime=0)), ("GZIP, br", b"x"), ("zstd", b'{"prompt":"a"}')],
)
def test_a_compressed_body_is_a_415_that_names_the_header(
    client: TestClient, pool: FakePool, encoding: str, content: bytes
) -> None:
    for route in ROUTES:
        response = client.post(
            route, content=content, headers={"content-type": "application/json", "content-encoding": encoding}
        )
        assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")
        assert f"Content-Encoding: {encoding.lower()}" in refusal(response)[0]
    assert not pool.slots


def test_what_is_not_compressed_may_say_so(client: TestClient) -> None:
    for encoding in ("identity", "Identity", ""):
        assert client.post("/generate", json={"prompt": "a"}, headers={"content-encoding": encoding}).status_code == 200
    assert client.get("/status", headers={"content-encoding": "gzip"}).status_code == 200, "there is no body"


def test_many_faults_are_counted_and_not_all_told(client: TestClient) -> None:
    message = client.post("/generate", json={f"unknown_{i}": i for i in range(100)}).json()["error"]["message"]
    assert message.count(";") == 5
    assert message.endswith("and 96 more")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/json", "json", ""])
def test_json_under_another_content_type_says_what_to_send(client: TestClient, content_type: str) -> None:
    sent_as = f", not as {content_type.partition(';')[0]}" if content_type else ""
    for route, status in ROUTES.items():
        response = client.post(route, content=b'{"prompt": "a"}', headers={"content-type": content_type})
        assert response.status_code == status
        assert refusal(response)[0].endswith(f"a JSON object, sent with Content-Type: application/json{sent_as}")


def test_json_is_no_form(client: TestClient) -> None:
    said = {
        route: refusal(
            client.post(route, content=b'{"prompt": "a"}', headers={"content-type": "multipart/form-data; boundary=x"})
        )[0]
        for route in ROUTES
    }
    for takes_forms in ("/generate", "/stream"):
        assert said.pop(takes_forms) == "the body cannot be read as multipart/form-data: Invalid multipart data."
    assert all(
        text.endswith("sent with Content-Type: application/json, not as multipart/form-data") for text in said.values()
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_a_413(client: TestClient, chunked: bool) -> None:
    body = json.dumps({"prompt": "a" * 600_000}).encode()
    content = iter([body[:50_000], body[50_000:]]) if chunked else body
    response = client.post("/generate", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "payload_too_large"
    assert "500000 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "type_"),
    [("GET", "/nope", 404, "not_found"), ("GET", "/generate", 405, "method_not_allowed")],
)
def test_wrong_routes_and_methods_answer_in_the_same_shape(
    client: TestClient, method: str, path: str, status: int, type_: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"type", "message", "param"}
    assert response.json()["error"]["type"] == type_


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/generate", "POST"),
        ("/generations/some", "GET, DELETE"),
        ("/fal-ai/fast-sdxl/requests/some", "GET, POST, PUT"),
        ("/playground/main.js", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_all_that_are_right(client: TestClient, path: str, allowed: str) -> None:
    response = client.patch(path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)


def test_a_fault_of_ours_keeps_its_details_to_itself(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(FanOut, "generate", broken)
    response = client.post("/generate", json={"prompt": "a"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal"
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text
