"""Which model a request names, and where its pictures can be got."""

from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from starlette.testclient import TestClient

from serve_app.config import FilesConfig, ModelConfig
from serve_app.ingress.api import create_api
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of

HUB_ID = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def serve(pool: FakePool, tmp_path: Path) -> Iterator[Callable[..., OpenAI]]:
    """Return what makes the SDK of a service with files or without, whose model lies at a path."""
    with ExitStack() as open_clients:

        def make(*, path: str = "embedded", files: bool = False) -> OpenAI:
            args = ARGS.model_copy(
                update={"model": ModelConfig(path=path), "files": FilesConfig(path=str(tmp_path) if files else None)}
            )
            service = OneModel(pool, args, Metrics())
            http = open_clients.enter_context(
                TestClient(create_api(service, args)) if files else client_of(service, args)
            )
            return OpenAI(api_key="none", base_url="http://testserver/v1", http_client=http, max_retries=0)

        yield make


@pytest.mark.parametrize(
    "name",
    [
        HUB_ID,
        "fake",
        "openai/fake",
        "gpt-image-1",
        "gpt-image-1-mini",
        "gpt-image-1.5-2025-12-16",
        "chatgpt-image-latest",
        "dall-e-2",
        "dall-e-3",
        "openai/gpt-image-1",
        "openai/dall-e-3",
    ],
)
def test_the_model_has_many_names(serve: Callable[..., OpenAI], name: str) -> None:
    sdk = serve(path=HUB_ID)
    assert sdk.images.generate(prompt="a", model=name).data
    assert sdk.models.retrieve(name).id == name


def test_no_name_is_none(sdk: OpenAI, client: TestClient) -> None:
    for none in ("", " "):
        assert sdk.images.generate(prompt="a", model=none).data
    assert 'the model "" is not served here' in client.get("/v1/models/").json()["error"]["message"]


@pytest.mark.parametrize(
    "name",
    [
        "flux",
        "gpt-image",
        "gpt-4o",
        "dall-e",
        "dall-e-",
        "openai/",
        "openai/flux",
        "azure/dall-e-3",
        "stabilityai/fake",
    ],
)
def test_another_model_is_not_found(serve: Callable[..., OpenAI], name: str) -> None:
    sdk = serve(path=HUB_ID)
    for asked in (lambda: sdk.images.generate(prompt="a", model=name), lambda: sdk.models.retrieve(name)):
        with pytest.raises(
            NotFoundError, match=f'the model "{name}" is not served here; this service has "fake"'
        ) as raised:
            asked()
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_where_the_model_lies_is_told_to_nobody(serve: Callable[..., OpenAI]) -> None:
    folder = "/srv/secret/models/sdxl"
    sdk = serve(path=folder)
    assert sdk.images.generate(prompt="a", model=folder).data, "who knows it may name it"
    answers = [sdk.models.list(), sdk.images.generate(prompt="a", model="dall-e-3"), sdk.models.retrieve("dall-e-3")]
    told = [answer.to_json() for answer in answers] + [sdk._client.get("http://testserver/openapi.json").text]
    with pytest.raises(NotFoundError) as raised:
        sdk.models.retrieve("flux")
    assert not any("/srv" in text for text in (*told, str(raised.value)))


def test_the_served_model_is_listed(sdk: OpenAI) -> None:
    (card,) = sdk.models.list()
    assert (card.id, card.object) == ("fake", "model")
    assert sdk.models.retrieve("fake") == card


@pytest.mark.parametrize(
    ("files", "body", "at_url"),
    [
        (True, {"model": "dall-e-3"}, True),
        (True, {"model": "dall-e-2", "response_format": None}, True),
        (True, {"model": "openai/dall-e-3"}, True),
        (True, {"model": "dall-e-3", "response_format": "b64_json"}, False),
        (True, {"model": "gpt-image-1"}, False),
        (True, {"model": "gpt-image-1", "response_format": "url"}, True),
        (True, {"model": "fake"}, False),
        (True, {}, False),
        (False, {"model": "dall-e-3"}, False),
    ],
    ids=str,
)
def test_dall_e_answers_with_urls_where_it_can(
    serve: Callable[..., OpenAI], files: bool, body: dict[str, Any], at_url: bool
) -> None:
    sdk = serve(files=files)
    answer = sdk.images.generate(prompt="a", n=2, extra_body={"seed": 7, **body})
    assert answer.data
    for item in answer.data:
        assert (item.url is not None, item.b64_json is None) == (at_url, at_url)
        if item.url:
            assert sdk._client.get(item.url).headers["content-type"] == "image/png"


def test_a_stream_has_urls_if_they_are_asked_for(serve: Callable[..., OpenAI]) -> None:
    sdk, more = serve(files=True), {"seed": 7, "num_inference_steps": 2}
    with sdk.images.generate(
        prompt="a", n=2, model="dall-e-3", stream=True, partial_images=1, response_format="url", extra_body=more
    ) as stream:
        events = [event.to_dict() for event in stream]
    with sdk.images.generate(prompt="a", model="dall-e-3", stream=True, extra_body=more) as stream:
        (by_default,) = stream
    partial, completed = (event for event in events if event["image_index"] == 1)
    assert partial["b64_json"] == "preview"
    assert (completed["b64_json"], completed["seed"]) == (None, 8)
    file = sdk._client.get(str(completed["url"]))
    assert (file.headers["content-type"], file.content) == ("image/png", b64decode("picture8"))
    assert by_default.b64_json == "picture7", "whoever asks for a stream reads the pictures from it"
