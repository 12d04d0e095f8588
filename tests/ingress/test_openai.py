"""The OpenAI Images API over a fake pool."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from starlette.testclient import TestClient

from serve_app.recipe import Phase
from tests.clients.bodies import LIBRECHAT_OPENAI, OPEN_WEBUI_OPENAI
from tests.fakes import FakePool
from tests.ingress.openai_api import URL


def test_an_answer_has_openais_fields_and_ours(client: TestClient) -> None:
    answer = client.post(URL, json={"prompt": "a", "n": 2, "seed": 7}).json()
    assert answer.pop("created") > 0
    assert answer == {
        "background": "opaque",
        "output_format": "png",
        "quality": "auto",
        "size": "256x256",
        "warnings": [],
        "data": [
            {
                "b64_json": f"picture{7 + i}",
                "url": None,
                "image_index": i,
                "seed": 7 + i,
                "variations": [],
                "model": None,
                "failure": None,
            }
            for i in range(2)
        ],
    }


def test_relatives_say_which_they_are(sdk: OpenAI) -> None:
    variations = [{"seed": 100, "strength": 0.2}]
    answer = sdk.images.generate(prompt="a", n=2, extra_body={"seed": 7, "variations": variations})
    said = [(item["seed"], item["variations"]) for item in answer.model_dump()["data"]]
    assert said == [(7, variations), (7, [{"seed": 101, "strength": 0.2}])]


def test_branches_in_every_dialect(sdk: OpenAI, client: TestClient, pool: FakePool) -> None:
    before: list[dict[str, Any]] = [{"until_step": 4, "prompt": "b"}, {"until_step": 8, "prompt_2": None}]
    sdk.images.generate(prompt="a", extra_body={"before": before})
    for path in ("/generate", "/fal-ai/fast-sdxl"):
        assert client.post(path, json={"prompt": "a", "num_images": 1, "before": before}).status_code == 200
    form = {"prompt": (None, "a"), "num_images": (None, "1"), "before": (None, json.dumps(before))}
    assert client.post("/generate", files=form).status_code == 200
    expected = (Phase(until_step=4, prompt="b"), Phase(until_step=8))
    assert [slot.recipe.before for slot in pool.slots] == [expected] * 4
    refused = client.post("/v1/images/generations", json={"prompt": "a", "before": [{"until_step": 20}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "before")
    refused = client.post("/generate", json={"prompt": "a", "before": [{"until_step": 2, "width": 64}]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "before.0.width")


def test_the_best_alone_are_answered_in_every_dialect(sdk: OpenAI, client: TestClient, pool: FakePool) -> None:
    pool.scores = {0: 1.0, 1: 3.0, 2: 2.0}
    keep = {"at_step": 6, "best": 1, "by": "sharpness"}
    data = sdk.images.generate(prompt="a", n=3, extra_body={"keep": keep}).data
    assert data is not None
    assert [item.model_dump()["image_index"] for item in data] == [1]
    steps = {"num_inference_steps": 12}
    stream = sdk.images.generate(prompt="a", n=3, stream=True, partial_images=1, extra_body={"keep": keep, **steps})
    told = [(event.type, event.model_dump()["image_index"]) for event in stream]
    sketches = {("image_generation.partial_image", index) for index in range(3)}
    assert sketches < {*told}, "the sketches are made after the step that the client asked to see"
    stream = sdk.images.generate(prompt="a", n=3, stream=True, extra_body={"keep": keep})
    assert [(event.type, event.model_dump()["image_index"]) for event in stream] == [("image_generation.completed", 1)]
    body = {"prompt": "a", "num_images": 3, "keep": keep}
    answer = client.post("/fal-ai/fast-sdxl", json={**body, "seed": 7}).json()
    assert (answer["seeds"], answer["failures"]) == ([8], [])
    form = {"prompt": (None, "a"), "num_images": (None, "3"), "keep": (None, json.dumps(keep))}
    for answer in (client.post("/generate", json=body), client.post("/generate", files=form)):
        images = answer.json()["images"]
        assert [image["status"] for image in images] == ["cancelled", "succeeded", "cancelled"]
        assert images[0]["error"]["type"] == "not_kept"


@pytest.mark.parametrize("body", [OPEN_WEBUI_OPENAI, LIBRECHAT_OPENAI])
def test_what_chat_programs_send(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/images/generations?api-version=2025-04-01-preview", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"].startswith("picture")


def test_what_is_asked_for_is_what_is_generated(sdk: OpenAI, pool: FakePool) -> None:
    sdk.images.generate(
        prompt="a cat",
        n=2,
        size="128x64",
        output_format="webp",
        output_compression=80,
        extra_body={
            "seeds": [5, 9],
            "negative_prompt": "dull",
            "num_inference_steps": 12,
            "guidance_scale": 4.5,
            "guidance_rescale": 0.7,
            "scheduler": "ddim",
        },
    )
    (slot, other) = pool.slots
    assert slot.recipe.guidance_rescale == 0.7
    assert (slot.seed, other.seed, slot.recipe.prompt, slot.recipe.negative_prompt) == (5, 9, "a cat", "dull")
    assert (slot.recipe.width, slot.recipe.height, slot.output.output_format, slot.output.output_compression) == (
        128,
        64,
        "webp",
        80,
    )
    assert (slot.recipe.num_inference_steps, slot.recipe.guidance_scale, slot.recipe.scheduler) == (12, 4.5, "ddim")


def test_where_nothing_is_said_it_is_one_image_by_the_models_defaults(client: TestClient, pool: FakePool) -> None:
    nulls = dict.fromkeys(
        (
            "n",
            "size",
            "model",
            "quality",
            "background",
            "response_format",
            "stream",
            "partial_images",
            "user",
            "seed",
            "style",
        )
    )
    for body in ({"prompt": "a"}, {"prompt": "a", "size": "auto"}, {"prompt": "a", **nulls}):
        assert client.post(URL, json=body).status_code == 200
    assert {
        (s.recipe.width, s.recipe.height, s.recipe.num_inference_steps, s.recipe.guidance_scale, s.output.output_format)
        for s in pool.slots
    } == {(256, 256, 20, 3.0, "png")}
    assert len(pool.slots) == 3


@pytest.mark.parametrize(
    "body",
    [
        {"quality": "hd"},
        {"quality": "max"},
        {"style": "vivid"},
        {"moderation": "low"},
        {"user": "me"},
        {"safety_identifier": "me"},
        {"background": "opaque"},
        {"partial_images": 0},
    ],
    ids=str,
)
def test_what_has_no_effect_is_accepted(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post(URL, json={"prompt": "a", **body}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": None}, "prompt", "required"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 10}, "n", "less than or equal to 9"),
        ({"n": "2"}, "n", "integer"),
        (
            {"size": "1024x1024"},
            "size",
            "1024x1024 is not served; width and height must be multiples of 8 from 64 to 512",
        ),
        ({"size": "100x100"}, "size", "multiples of 8"),
        ({"size": "big"}, "size", "auto or WIDTHxHEIGHT"),
        ({"size": "٢٥٦x256"}, "size", "auto or WIDTHxHEIGHT"),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"output_compression": 101}, "output_compression", "100"),
        ({"partial_images": 1}, "partial_images", "stream"),
        ({"partial_images": 4, "stream": True}, "partial_images", "3"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"response_format": "url"}, "response_format", "files.path"),
        ({"response_format": "url", "stream": True}, "response_format", "files.path"),
        ({"response_format": "file"}, "response_format", "url"),
        ({"seed": -2}, "seed", "greater than or equal to -1"),
        ({"seed": 1, "seeds": [1]}, "seeds", "either"),
        ({"seeds": [1, 1]}, "seeds", "distinct"),
        ({"seeds": [1, 2], "n": 3}, "n", "number of seeds"),
        ({"num_inference_steps": 51}, "num_inference_steps", "50"),
        ({"guidance_scale": 31}, "guidance_scale", "30"),
        ({"scheduler": "plms"}, "scheduler", "euler"),
        ({"steps": 5}, "steps", "no such field"),
    ],
    ids=str,
)
def test_bad_input_is_a_400_in_openais_words(
    sdk: OpenAI, client: TestClient, pool: FakePool, body: dict[str, Any], param: str, says: str
) -> None:
    response = client.post(URL, json={"prompt": "a", **body})
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (400, {"message", "type", "param", "code"})
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "invalid_value")
    assert error["message"].startswith(f"{param}: ")
    assert says in error["message"]
    assert not pool.slots
    with pytest.raises(BadRequestError, match=param) as raised:
        sdk.images.generate(prompt="a", extra_body=body)
    assert raised.value.param == param


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_a_body_that_is_no_request_is_a_400(client: TestClient, content: bytes) -> None:
    response = client.post(URL, content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
