"""LoRAs, listed and named in every API."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from serve_app.config import AdaptersConfig
from serve_app.fanout.fanout import FanOut
from tests.fakes import FakePool, Metrics, NoPeers
from tests.ingress.conftest import ARGS, client_of

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def client(pool: FakePool, tmp_path: Path) -> Iterator[TestClient]:
    for name, width in (("ink", 2048), ("old", 768)):
        parts = {"lora_up.weight": torch.ones(640, 4), "lora_down.weight": torch.ones(4, width)}
        tensors = {f"{KEY}.{part}": tensor for part, tensor in parts.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors", {"modelspec.trigger_phrase": f"{name} style"})
    args = ARGS.model_copy(update={"adapters": AdaptersConfig(path=str(tmp_path))})
    with client_of(FanOut(pool, NoPeers(), args, Metrics()), args) as client:
        yield client


def test_they_are_listed_with_what_speaks_against_them(client: TestClient) -> None:
    ink, old = client.get("/loras").json()
    assert ink["unusable"] is None
    assert (ink["name"], ink["trigger_words"], ink["base_model"], ink["rank"]) == ("ink", ["ink style"], "SDXL", 4)
    assert "Stable Diffusion 1.5" in old["unusable"]
    assert [lora["name"] for lora in client.get("/sdapi/v1/loras").json()] == ["ink", "old"]


def test_without_a_folder_there_are_none(pool: FakePool) -> None:
    with client_of(FanOut(pool, NoPeers(), ARGS, Metrics()), ARGS) as client:
        assert client.get("/loras").json() == []


IN_EACH: dict[str, tuple[str, dict[str, Any]]] = {
    "native": ("/generate", {"loras": [{"name": "ink", "scale": 0.5}]}),
    "openai": ("/v1/images/generations", {"loras": [{"name": "ink", "scale": 0.5}]}),
    "fal": ("/fal-ai/fast-sdxl", {"loras": [{"path": "ink", "scale": 0.5}]}),
    "a1111": ("/sdapi/v1/txt2img", {"prompt": "a cat<lora:ink:0.25>, <lora:ink:0.25:0.25>"}),
}


@pytest.mark.parametrize("api", IN_EACH)
def test_a_request_names_them(client: TestClient, pool: FakePool, api: str) -> None:
    path, body = IN_EACH[api]
    response = client.post(path, json={"prompt": "a cat", **body})
    assert response.status_code == 200, response.text
    (lora,) = pool.slots[0].recipe.loras
    assert (lora.name, lora.scale) == ("ink", 0.5)
    assert lora.hash == client.get("/loras").json()[0]["hash"]
    assert pool.slots[0].recipe.prompt.startswith("a cat")
    assert "<" not in pool.slots[0].recipe.prompt


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/generate", {"loras": [{"name": "inc"}]}, "similar names: ink"),
        ("/generate", {"loras": [{"name": "old"}]}, "made for Stable Diffusion 1.5"),
        ("/generate", {"loras": [{"name": "ink"}, {"name": "ink"}]}, "once"),
        ("/generate", {"loras": "ink"}, "must be a list"),
        ("/generate", {"loras": [{"name": "ink", "hash": "sha256:0"}]}, "another file"),
        ("/fal-ai/fast-sdxl", {"loras": [{"path": "https://example.com/ink.safetensors"}]}, "is not in adapters.path"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:inc>"}, "similar names: ink"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:much>"}, "no number"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:1:0.5>"}, "two scales"),
    ],
)
def test_what_cannot_be_used_is_refused(client: TestClient, path: str, body: dict[str, Any], why: str) -> None:
    response = client.post(path, json={"prompt": "a cat", **body})
    assert response.status_code == 422
    assert why in response.text
