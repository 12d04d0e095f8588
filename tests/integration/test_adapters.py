"""Requests with LoRAs, over HTTP."""

from base64 import b64decode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.integration.conftest import SMALL, Running
from tests.random_lora import save_lora

MIXES: Sequence[dict[str, float]] = ({}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5}, {"a": 1.0, "b": 1.0})


def named(mix: dict[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "scale": scale} for name, scale in mix.items()]


def pictures(answer: dict[str, Any]) -> list[str]:
    return [image["b64_json"] for image in answer["images"]]


def pixels(picture: str) -> bytes:
    return Pillow.open(BytesIO(b64decode(picture))).tobytes()


def test_a_crowd_with_and_without_loras_generates_what_each_does_alone(app: Running) -> None:
    alone = [pictures(app.generate(seeds=[1, 2], loras=named(mix))) for mix in MIXES]
    assert len({picture for both in alone for picture in both}) == 2 * len(MIXES)
    with ThreadPoolExecutor(len(MIXES)) as pool:
        crowd = list(pool.map(lambda mix: pictures(app.generate(seeds=[1, 2], loras=named(mix))), MIXES))
    assert crowd == alone
    assert pictures(app.generate(seeds=[1, 2])) == alone[0], "a picture without is the same before and after"
    of_none = pictures(app.generate(seeds=[1, 2], loras=named({"b": 0.0})))
    assert list(map(pixels, of_none)) == list(map(pixels, alone[0])), "a scale of 0 is none"


def test_the_order_of_loras_does_not_count_and_the_answer_says_which_files_they_were(app: Running) -> None:
    forward = app.generate(seeds=[1], loras=named({"a": 1.0, "b": 1.0}))
    backward = app.generate(seeds=[1], loras=named({"b": 1.0, "a": 1.0}))
    assert pictures(forward) == pictures(backward)
    assert forward["parameters"]["loras"] == backward["parameters"]["loras"]
    assert [lora["name"] for lora in forward["parameters"]["loras"]] == ["a", "b"]
    assert all(lora["hash"].startswith("sha256:") for lora in forward["parameters"]["loras"])
    again = app.generate(seeds=[1], loras=forward["parameters"]["loras"])
    assert pictures(again) == pictures(forward)


def test_a_new_file_is_found_at_once_and_one_that_is_written_anew_is_another(
    app: Running, tiny_path: Path, adapters_path: Path
) -> None:
    file = save_lora(tiny_path, adapters_path / "new.safetensors", seed=3)
    first = app.generate(seeds=[1], loras=named({"new": 1.0}))
    save_lora(tiny_path, file, seed=4)
    second = app.generate(seeds=[1], loras=named({"new": 1.0}))
    assert pictures(first) != pictures(second)
    refused = app.http.post("/generate", json={"prompt": "a", **SMALL, "loras": first["parameters"]["loras"]})
    assert refused.status_code == 422
    assert "another file by now" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("nothing", None, "similar names"),
        ("broken", b"\0" * 100, "damaged"),
        ("other-model", "resnets.0.conv_shortcut", "layers that the served model does not have"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    app: Running, tiny_path: Path, adapters_path: Path, name: str, content: bytes | str | None, why: str
) -> None:
    file = adapters_path / f"{name}.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        save_lora(tiny_path, file, seed=5)
        foreign(file, content)
    asked = "aa" if content is None else name
    refused = app.http.post("/generate", json={"prompt": "a", **SMALL, "loras": named({asked: 1.0})})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "loras")
    assert asked in error["message"]
    assert why in error["message"]


def test_a_prompt_with_an_embedding_and_a_lora(app: Running, tiny_path: Path, adapters_path: Path) -> None:
    """Both change the picture, and a picture without is the same before and after."""
    save_embedding(tiny_path, adapters_path / "neg.safetensors")
    before = pictures(app.generate(seeds=[1]))
    asked: dict[str, Any] = {"seeds": [1], "negative_prompt": "embedding:neg"}
    first, again = app.generate(**asked), app.generate(**asked)
    both = app.generate(**asked, loras=named({"a": 1.0}))
    assert pictures(first) == pictures(again)
    assert (
        len({*before, *pictures(first), *pictures(both), *pictures(app.generate(seeds=[1], negative_prompt="x"))}) == 4
    )
    (told,) = first["parameters"]["embeddings"]
    assert (told["name"], told["hash"][:7]) == ("neg", "sha256:")
    assert pictures(app.generate(**asked, embeddings=[told])) == pictures(first)
    info = Pillow.open(BytesIO(b64decode(pictures(first)[0]))).info["parameters"]
    assert f'TI hashes: "neg: {told["hash"][7:17]}"' in info
    assert pictures(app.generate(seeds=[1])) == before


def save_embedding(model: Path, file: Path) -> None:
    """Write an embedding of two tokens for a model."""
    from json import loads

    import torch
    from safetensors.torch import save_file

    folders = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
    widths = {key: loads((model / name / "config.json").read_text())["hidden_size"] for key, name in folders.items()}
    save_file({key: torch.linspace(-1, 1, 2 * width).view(2, width) for key, width in widths.items()}, file)


def foreign(file: Path, layer: str) -> None:
    """Rename a layer of a LoRA to one that the model has not."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    first = next(iter(tensors)).partition(".lora")[0]
    save_file({key.replace(first, f"unet.down_blocks.7.{layer}"): tensor for key, tensor in tensors.items()}, file)


def test_too_many_are_refused(app: Running) -> None:
    many = [{"name": f"l{number}"} for number in range(5)]
    refused = app.http.post("/generate", json={"prompt": "a", **SMALL, "loras": many})
    assert refused.status_code == 422
    assert "at most 4" in refused.json()["error"]["message"]
