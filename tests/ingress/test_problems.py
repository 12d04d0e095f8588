"""Every way to be refused, in one shape."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.fakes import FakeFleet

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
    ({"seed": -1}, "seed"),
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
    ({"grid": "yes"}, "grid"),
    ({"steps": 20}, "steps"),
]


@pytest.mark.parametrize("route", ["/generate", "/stream"])
@pytest.mark.parametrize(("change", "param"), BAD, ids=lambda value: json.dumps(value)[:40])
def test_bad_input_is_a_422_that_names_the_field(client: TestClient, fleet: FakeFleet, route: str, change: dict[str, Any], param: str) -> None:
    response = client.post(route, json={"prompt": "a", **change} if change else {})
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request", param)
    assert error["message"].startswith(f"{param}: ")
    assert fleet.slots == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"prompt": "a"', "not valid JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'"a"', "JSON object"),
        (b"null", "JSON object"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "finite"),
        (b'{"prompt": "\\ud800"}', "unicode"),
        (b"\xff\xfe", ""),
        (b'{"prompt": "\xff\xfe\x80"}', "not valid JSON"),
        (b"[" * 9_000, "nested"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}", "digits"),
    ],
)
def test_a_body_that_is_no_request_is_a_422(client: TestClient, content: bytes, says: str) -> None:
    response = client.post("/generate", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert says in response.json()["error"]["message"]


def test_many_faults_are_counted_and_not_all_told(client: TestClient) -> None:
    message = client.post("/generate", json={f"unknown_{i}": i for i in range(100)}).json()["error"]["message"]
    assert message.count(";") == 5
    assert message.endswith("and 96 more")


def test_json_under_another_content_type_says_what_to_send(client: TestClient) -> None:
    response = client.post("/generate", content=b'{"prompt": "a"}', headers={"content-type": "application/x-www-form-urlencoded"})
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_a_413(client: TestClient, chunked: bool) -> None:
    body = json.dumps({"prompt": "a" * 70_000}).encode()
    content = iter([body[:50_000], body[50_000:]]) if chunked else body
    response = client.post("/generate", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "payload_too_large"
    assert "60000 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status", "type_"), [("GET", "/nope", 404, "not_found"), ("GET", "/generate", 405, "method_not_allowed")])
def test_wrong_routes_and_methods_answer_in_the_same_shape(client: TestClient, method: str, path: str, status: int, type_: str) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"type", "message", "param"}
    assert response.json()["error"]["type"] == type_


def test_a_fault_of_ours_keeps_its_details_to_itself(client: TestClient, fleet: FakeFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ref: object) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(fleet, "pixels", broken)
    response = client.post("/generate", json={"prompt": "a", "grid": True})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal"
    assert "secret" not in response.text
    assert "ZeroDivision" not in response.text
