"""LoRAs, listed and named in every API."""

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from openai import OpenAI
from safetensors.torch import save_file
from starlette.testclient import TestClient

from serve_app.adapters import AdapterFolder, Version
from serve_app.config import AdaptersConfig
from serve_app.errors import DeadlineExceeded
from serve_app.fanout.adapters import AdapterCheck
from serve_app.recipe import Embedding, Lora
from serve_app.schemas import GenerateRequest
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS, client_of
from tests.ingress.test_pictures import PHOTO

KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def client(pool: FakePool, tmp_path: Path) -> Iterator[TestClient]:
    for name, width in (("ink", 2048), ("old", 768)):
        parts = {"lora_up.weight": torch.ones(640, 4), "lora_down.weight": torch.ones(4, width)}
        tensors = {f"{KEY}.{part}": tensor for part, tensor in parts.items()}
        save_file(tensors, tmp_path / f"{name}.safetensors", {"modelspec.trigger_phrase": f"{name} style"})
    args = ARGS.model_copy(update={"adapters": AdaptersConfig(path=str(tmp_path))})
    with client_of(OneModel(pool, args, Metrics()), args) as client:
        yield client


def test_they_are_listed_with_what_speaks_against_them(client: TestClient) -> None:
    ink, old = client.get("/loras").json()
    assert ink["unusable"] is None
    assert (ink["name"], ink["trigger_words"], ink["base_model"], ink["rank"]) == ("ink", ["ink style"], "SDXL", 4)
    assert "Stable Diffusion 1.5" in old["unusable"]
    assert [lora["name"] for lora in client.get("/sdapi/v1/loras").json()] == ["ink", "old"]


def test_without_a_folder_there_are_none(pool: FakePool) -> None:
    with client_of(OneModel(pool, ARGS, Metrics()), ARGS) as client:
        assert client.get("/loras").json() == []


@pytest.fixture
def embeddings(client: TestClient, tmp_path: Path) -> TestClient:
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, tmp_path / "neg.safetensors")
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "old-neg.safetensors")
    return client


def test_embeddings_are_listed_apart(embeddings: TestClient) -> None:
    neg, old = embeddings.get("/embeddings").json()
    assert (neg["name"], neg["tokens"], neg["unusable"]) == ("neg", 2, None)
    assert "not made for SDXL" in old["unusable"]
    assert [lora["name"] for lora in embeddings.get("/loras").json()] == ["ink", "old"]
    cards = embeddings.get("/sdapi/v1/embeddings").json()
    assert (list(cards["loaded"]), list(cards["skipped"])) == (["neg"], ["old-neg"])
    assert cards["loaded"]["neg"]["vectors"] == 2


@pytest.mark.parametrize(
    ("path", "negative"),
    [
        ("/generate", "ugly, embedding:neg"),
        ("/v1/images/generations", "ugly, embedding:neg"),
        ("/fal-ai/fast-sdxl", "ugly, embedding:neg"),
        ("/sdapi/v1/txt2img", "ugly, Neg"),
        ("/sdapi/v1/txt2img", "ugly, [dull:Neg:0]"),
    ],
)
def test_prompts_name_embeddings(embeddings: TestClient, pool: FakePool, path: str, negative: str) -> None:
    response = embeddings.post(path, json={"prompt": "a cat", "negative_prompt": negative})
    assert response.status_code == 200, response.text
    recipe = pool.slots[0].recipe
    assert recipe.negative_prompt == "ugly, embedding:neg"
    assert "plain words" not in response.text, "it is read"
    assert [one.model_dump() for one in recipe.embeddings] == [
        {"name": "neg", "hash": embeddings.get("/embeddings").json()[0]["hash"]}
    ]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"prompt": "embedding:nag"}, 'the embedding "nag" is not in adapters.path; similar names: neg'),
        ({"prompt": "embedding:zzz"}, 'the embedding "zzz" is not in adapters.path; see GET /embeddings'),
        ({"prompt": "a", "negative_prompt_2": "embedding:nag", "guidance_scale": 5}, 'the embedding "nag" is not in'),
        ({"prompt": "a", "before": [{"until_step": 2, "prompt": "embedding:nag"}]}, 'the embedding "nag" is not in'),
        ({"prompt": "embedding:old-neg"}, "was not made for SDXL"),
        ({"prompt": "embedding:ink"}, "is a LoRA, not an embedding"),
        ({"prompt": "a", "loras": [{"name": "neg"}]}, "is a textual inversion embedding, not a LoRA"),
        ({"prompt": "a", "embeddings": [{"name": "neg"}]}, 'no prompt names "neg"'),
        ({"prompt": "embedding:neg", "embeddings": [{"name": "neg", "hash": "sha256:0"}]}, "another file by now"),
    ],
)
def test_embeddings_that_cannot_be_used_are_refused(embeddings: TestClient, body: dict[str, Any], why: str) -> None:
    refused = embeddings.post("/generate", json=body)
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert why in error["message"]
    assert error["param"].partition(".")[0] == [*body][-1 if "guidance_scale" not in body else -2], (
        "the field that names it"
    )


def test_a_prompt_cannot_name_an_embedding_without_a_folder(pool: FakePool) -> None:
    with client_of(OneModel(pool, ARGS, Metrics()), ARGS) as client:
        refused = client.post("/generate", json={"prompt": "embedding:neg"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "prompt")
    assert "adapters.path is not set" in refused.json()["error"]["message"]


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
    ("prompt", "named"),
    [
        ("<lora:My lora.v1.5:0.5>", [("Styles/My lora.v1.5", 0.5)]),
        ("<lora:Styles/My lora.v1.5:0.5> <lora:My lora.v1.5:0.25>", [("Styles/My lora.v1.5", 0.75)]),
        ("<lyco:ink:0.5>", [("ink", 0.5)]),
        ("<lora:ink:te=0.5:unet=0.5>", [("ink", 0.5)]),
        ("<lora:ink:te=0.5>", [("ink", 0.5)]),
        ("<lora:ink:unet=1>", [("ink", 1.0)]),
    ],
)
def test_a1111s_prompts_name_them_as_that_program_reads_them(
    client: TestClient, pool: FakePool, tmp_path: Path, prompt: str, named: list[tuple[str, float]]
) -> None:
    (tmp_path / "Styles").mkdir()
    shutil.copy(tmp_path / "ink.safetensors", tmp_path / "Styles" / "My lora.v1.5.safetensors")
    response = client.post("/sdapi/v1/txt2img", json={"prompt": f"a cat {prompt}"})
    assert response.status_code == 200, response.text
    assert [(lora.name, lora.scale) for lora in pool.slots[0].recipe.loras] == named


def test_a1111s_prompts_do_not_choose_between_files_of_one_name(client: TestClient, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "ink.safetensors", tmp_path / folder / "wash.safetensors")
    refused = client.post("/sdapi/v1/txt2img", json={"prompt": "a <lora:wash:1>"})
    assert refused.status_code == 422
    assert "similar names: " in refused.text


def test_a1111s_clients_can_turn_them_off(client: TestClient, pool: FakePool) -> None:
    body = {"prompt": "a cat<lora:ink:0.5>", "disable_extra_networks": True}
    assert client.post("/sdapi/v1/txt2img", json=body).status_code == 200
    assert (pool.slots[0].recipe.loras, pool.slots[0].recipe.prompt) == ((), "a cat")


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/generate", {"loras": [{"name": "inc"}]}, "similar names: ink"),
        ("/generate", {"loras": [{"name": "old"}]}, "made for Stable Diffusion 1.5"),
        ("/generate", {"loras": [{"name": "ink"}, {"name": "ink"}]}, "once"),
        ("/generate", {"loras": "ink"}, "must be a list of objects"),
        ("/generate", {"loras": ["ink"]}, "must be a list of objects"),
        ("/generate", {"loras": [{"name": "ink", "hash": "sha256:0"}]}, "another file"),
        ("/fal-ai/fast-sdxl", {"loras": [{"path": "https://example.com/ink.safetensors"}]}, "is not in adapters.path"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:inc>"}, "similar names: ink"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:much>"}, "no number"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:1e9>"}, "prompt: <lora:ink:1e+09> has a scale that is not from"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:nan>"}, "prompt: <lora:ink:nan> has a scale that is not from"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:3><lora:ink:3>"}, "prompt: <lora:ink:6> has a scale"),
        ("/sdapi/v1/txt2img", {"prompt": "a" + "".join(f"<lora:{n}>" for n in range(5))}, "prompt: at most 4 LoRAs"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:1:0.5>"}, "two scales"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:unet=0.5>"}, "two scales"),
        ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:1:dyn=4>"}, "no number"),
    ],
)
def test_what_cannot_be_used_is_refused(client: TestClient, path: str, body: dict[str, Any], why: str) -> None:
    response = client.post(path, json={"prompt": "a cat", **body})
    assert response.status_code == 422
    assert why in response.text
    if path.startswith("/sdapi/"):
        assert response.json()["param"] == "prompt", "A1111 has no other field for them"


async def test_a_disk_that_hangs_costs_what_needs_it_its_deadline_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = threading.Event()
    monkeypatch.setattr("serve_app.adapters.folder.os.path.realpath", lambda *_, **__: woken.wait(60))
    check = AdapterCheck(AdaptersConfig(path=str(tmp_path)), FakePool().check_adapters)
    asked = GenerateRequest(prompt="a cat", loras=(Lora(name="ink"),))
    try:
        async with asyncio.timeout(10):
            many = [check.named(asked, "model", within_s=0.1) for _ in range(40)]
            ends = await asyncio.gather(*many, return_exceptions=True)
            assert {type(end) for end in ends} == {DeadlineExceeded}
            assert await asyncio.to_thread(lambda: "free") == "free"
    finally:
        woken.set()


async def test_what_no_replica_has_looked_at_is_asked_again(client: TestClient, tmp_path: Path) -> None:
    answers: Iterator[dict[Version, str] | None] = iter([None, {}])
    asked: list[Sequence[Lora]] = []

    async def ask(loras: Sequence[Lora], _: Sequence[Embedding]) -> dict[Version, str] | None:
        asked.append(loras)
        return next(answers)

    check = AdapterCheck(AdaptersConfig(path=str(tmp_path)), ask)
    for _ in range(3):
        await check.named(GenerateRequest(prompt="a cat", loras=(Lora(name="ink"),)), "model")
    assert [[lora.name for lora in loras] for loras in asked] == [["ink"], ["ink"]]


@pytest.mark.usefixtures("client")
async def test_a_file_that_a_replica_has_read_is_not_read_again_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ink = AdapterFolder(tmp_path).find("ink").version
    asked: list[Lora] = []

    async def ask(loras: Sequence[Lora], _: Sequence[Embedding]) -> dict[Version, str]:
        asked.extend(loras)
        return {ink: "sha256:0"}

    monkeypatch.setattr("serve_app.adapters.folder.hashlib.file_digest", Mock(side_effect=AssertionError))
    check = AdapterCheck(AdaptersConfig(path=str(tmp_path)), ask)
    request = GenerateRequest(prompt="a cat", loras=(Lora(name="ink", scale=0.5),))
    both = [await check.named(request, "model") for _ in range(2)]
    assert {named.loras for named in both} == {(Lora(name="ink", scale=0.5, hash="sha256:0"),)}
    assert asked == [Lora(name="ink")]


TWO = [{"name": "ink", "scale": 0.5}, {"name": "wash", "scale": -1}]
ANY_FILE = {"init_image": ("photo.png", PHOTO, "image/png")}


def add_wash(folder: Path) -> None:
    (folder / "wash.safetensors").write_bytes((folder / "ink.safetensors").read_bytes())


@pytest.mark.parametrize("api", ["generate", "edit"])
def test_a_form_names_them_in_json_as_curl_sends_it(
    client: TestClient, pool: FakePool, tmp_path: Path, api: str
) -> None:
    add_wash(tmp_path)
    path, picture = {"generate": ("/generate", "init_image"), "edit": ("/v1/images/edits", "image")}[api]
    data = {"prompt": "a cat", "loras": json.dumps(TWO)}
    response = client.post(path, data=data, files={picture: ANY_FILE["init_image"]})
    assert response.status_code == 200, response.text
    assert [(lora.name, lora.scale) for lora in pool.slots[0].recipe.loras] == [("ink", 0.5), ("wash", -1)]


def test_openais_sdk_names_them_in_an_edit(client: TestClient, pool: FakePool, tmp_path: Path) -> None:
    add_wash(tmp_path)
    sdk = OpenAI(api_key="none", base_url="http://testserver/v1", http_client=client, max_retries=0)
    sdk.images.edit(image=PHOTO, prompt="a cat", extra_body={"loras": TWO})
    assert [(lora.name, lora.scale) for lora in pool.slots[0].recipe.loras] == [("ink", 0.5), ("wash", -1)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({"loras": "ink"}, "loras: must be JSON in a form"),
        ({"loras": "[" * 100_000}, "loras: must be JSON in a form"),
        ({"loras": "3"}, "loras"),
        ({"loras[][name]": ["ink", "wash"], "loras[][scale]": "1"}, "loras: name and scale must be sent once for each"),
        ({"loras[][nom]": "ink"}, "loras.0.name"),
    ],
)
def test_a_form_that_names_none_is_refused(client: TestClient, data: dict[str, Any], why: str) -> None:
    response = client.post("/generate", data={"prompt": "a cat", **data}, files=ANY_FILE)
    assert response.status_code == 422
    assert why in response.json()["error"]["message"]


HOSTILE: list[tuple[dict[str, Any], str]] = [
    *(({"name": name}, "loras.0.name") for name in ("", "a" * 10_000)),
    *(({"name": name}, "the LoRA") for name in ("../ink", "/ink", "ink/../ink", "..", "\u58a8", "ink\0", "i\nk")),
    *(({"name": "ink", "scale": scale}, "loras.0.scale") for scale in (1e9, float("nan"), float("inf"), -4.1, "much")),
]


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_hostile_names_and_scales_are_refused_in_a_short_sentence(client: TestClient, path: str) -> None:
    for lora, named in HOSTILE:
        content = json.dumps({"prompt": "a cat", "loras": [lora]})
        response = client.post(path, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422), response.text
        error = response.json()["error"]
        assert error["message"].startswith(named)
        assert error["param"] == (named if named.startswith("loras") else "loras")
        assert len(error["message"]) < 200
