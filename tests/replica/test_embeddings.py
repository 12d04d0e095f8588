"""Embeddings (textual inversion) in prompts."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from serve_app.adapters import AdapterFolder
from serve_app.config import AdaptersConfig
from serve_app.errors import AdapterError
from serve_app.recipe import Embedding, Recipe
from serve_app.replica.attention import prompt_context
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.embeddings import EmbeddingStore, make_embedding_store
from serve_app.replica.prompt_reader import PromptReader, ReadPrompts
from serve_app.replica.prompts import PromptEncoder

CPU = torch.device("cpu")
TOKENS = 3


def tensors(pipe: StableDiffusionXLPipeline, tokens: int = TOKENS, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"clip_l": pipe.text_encoder.config.hidden_size, "clip_g": pipe.text_encoder_2.config.hidden_size}
    return {key: torch.randn(tokens, width, generator=generator) for key, width in widths.items()}


def store(pipe: StableDiffusionXLPipeline, folder: Path) -> EmbeddingStore:
    widths = [encoder.config.hidden_size for encoder in (pipe.text_encoder, pipe.text_encoder_2)]
    return EmbeddingStore(AdapterFolder(folder), widths, 75)


@pytest.fixture
def known(checkpoint: Checkpoint, tmp_path: Path) -> EmbeddingStore:
    save_file(tensors(checkpoint.pipe), tmp_path / "neg.safetensors")
    return store(checkpoint.pipe, tmp_path)


def read(checkpoint: Checkpoint, known: EmbeddingStore, prompt: str, **more: object) -> ReadPrompts:
    embeddings = known.read([Embedding(name="neg")])
    recipe = Recipe.model_validate({"prompt": prompt, "guidance_scale": 1, **more})
    return PromptReader(checkpoint.pipe).read(recipe, embeddings=embeddings)


@pytest.fixture
def theirs(checkpoint: Checkpoint) -> StableDiffusionXLPipeline:
    """A pipeline that has the embedding under the token `neg`, as diffusers loads it."""
    pipe = checkpoint.pipe
    parts = {
        name: copy.deepcopy(getattr(pipe, name))
        for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    }
    other = StableDiffusionXLPipeline(unet=pipe.unet, vae=pipe.vae, scheduler=pipe.scheduler, **parts)
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(other, f"text_encoder{suffix}"), getattr(other, f"tokenizer{suffix}")
        other.load_textual_inversion(tensors(pipe)[key], "<neg>", text_encoder=encoder, tokenizer=tokenizer)
    return other


@torch.inference_mode()
@pytest.mark.parametrize("prompt", ["a cat {} dog", "{}", "{}, {} end"])
def test_it_equals_diffusers(
    checkpoint: Checkpoint, known: EmbeddingStore, theirs: StableDiffusionXLPipeline, prompt: str
) -> None:
    prompts = read(checkpoint, known, prompt.format(*["embedding:neg"] * 2))
    encoder = PromptEncoder(checkpoint.pipe, CPU, 8)
    expected, _, pooled, _ = theirs.encode_prompt(prompt.format(*["<neg>"] * 2), do_classifier_free_guidance=False)
    ours = encoder.encode(prompts.rows[0], vectors=prompts.vectors)
    assert ours.context is not None
    context = prompt_context(checkpoint.unet, expected.to(ours.context.dtype))
    torch.testing.assert_close(ours.context, context, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_prompt_without_keeps_its_bits_before_and_after(checkpoint: Checkpoint, known: EmbeddingStore) -> None:
    plain, with_it = (read(checkpoint, known, prompt) for prompt in ("a cat", "a cat embedding:neg"))
    before = PromptEncoder(checkpoint.pipe, CPU, 8).encode(plain.rows[0])
    encoder = PromptEncoder(checkpoint.pipe, CPU, 8)
    inserted = encoder.encode(with_it.rows[0], vectors=with_it.vectors)
    after = encoder.encode(plain.rows[0])
    assert before.context is not None
    assert after.context is not None
    assert torch.equal(before.context, after.context)
    assert torch.equal(before.pooled, after.pooled)
    assert not torch.equal(inserted.pooled, after.pooled)
    assert not checkpoint.pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_weights_count_for_all_its_tokens_and_it_is_not_torn_in_two(
    checkpoint: Checkpoint, known: EmbeddingStore
) -> None:
    ((chunk, _),) = read(checkpoint, known, "(embedding:neg:1.5) a", prompt_syntax="weighted").rows[0].chunks
    assert chunk.weights is not None
    assert chunk.weights[: TOKENS + 2] == (1.0, 1.5, 1.5, 1.5, 1.0)
    assert [each.place for each in chunk.insertions] == [1, 2, 3]
    first, second = read(checkpoint, known, "a" * 73 + " embedding:neg").rows[0].chunks
    assert not first[0].insertions
    assert [each.place for each in second[0].insertions] == [1, 2, 3]
    assert read(checkpoint, known, "a" * 225 + " embedding:neg").warnings == (
        "prompt is longer than the model can read; it does not see: embedding:neg",
    )


def test_in_the_second_prompt_only_the_second_encoder_reads_it(checkpoint: Checkpoint, known: EmbeddingStore) -> None:
    ((first, second),) = read(checkpoint, known, "a", prompt_2="embedding:neg").rows[0].chunks
    assert not first.insertions
    assert len(second.insertions) == TOKENS


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda all: {"clip_l": all["clip_l"]}, "not made for SDXL"),
        (lambda all: {"emb_params": all["clip_l"]}, "not made for SDXL"),
        (lambda all: {**all, "clip_g": all["clip_g"][:, :-1].contiguous()}, "made for another model"),
        (lambda all: {**all, "clip_g": all["clip_g"][:1].contiguous()}, "takes 3 and 1 tokens"),
        (lambda all: {**all, "clip_l": all["clip_l"] * torch.inf}, "no finite numbers"),
        (lambda all: {**all, "clip_l": all["clip_l"].to(torch.int8)}, "holds clip_l as int8"),
        (lambda all: {key: tensor.repeat(30, 1) for key, tensor in all.items()}, "takes 90 and 90 tokens"),
        (lambda _: {"x.lora_A.weight": torch.ones(1, 1)}, "is a LoRA, not an embedding"),
    ],
)
def test_what_cannot_be_used_says_why(
    checkpoint: Checkpoint,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]],
    why: str,
) -> None:
    save_file(dict(change(tensors(checkpoint.pipe))), tmp_path / "bad.safetensors")
    with pytest.raises(AdapterError, match=why) as raised:
        store(checkpoint.pipe, tmp_path).read([Embedding(name="bad")])
    assert (raised.value.param, '"bad"' in raised.value.message) == ("embeddings", True)


def test_a_file_that_was_written_anew_is_another(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file, ours = tmp_path / "neg.safetensors", store(checkpoint.pipe, tmp_path)
    save_file(tensors(checkpoint.pipe), file)
    first = ours.read([Embedding(name="neg")])["neg"]
    save_file(tensors(checkpoint.pipe, tokens=2, seed=1), file)
    assert ours.read([Embedding(name="neg")])["neg"].hash != first.hash
    assert len(ours.read([Embedding(name="neg", hash=first.hash)])["neg"]) == TOKENS, "it is kept by its hash"
    file.unlink()
    assert ours.at_hand([Embedding(name="neg", hash=first.hash)]) is not None
    assert ours.at_hand([Embedding(name="neg")]) is None
    assert ours.at_hand([Embedding(name="neg", hash=first.hash), Embedding(name="x", hash="sha256:0")]) is None
    assert len(ours.read([Embedding(name="neg", hash=first.hash)])["neg"]) == TOKENS
    save_file(tensors(checkpoint.pipe, tokens=2, seed=1), file)
    with pytest.raises(AdapterError, match="another file by now"):
        store(checkpoint.pipe, tmp_path).read([Embedding(name="neg", hash=first.hash)])


def test_those_beside_the_embedded_loras_are_found(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(tensors(checkpoint.pipe), tmp_path / "neg.safetensors")
    monkeypatch.setattr("serve_app.config.adapters.embedded_adapters_path", lambda: tmp_path)
    known = make_embedding_store(AdaptersConfig(path="embedded"), checkpoint)
    assert known is not None
    assert len(known.read([Embedding(name="neg")])["neg"]) == TOKENS
