"""What single files do not hold ships with the package: SDXL's configs and CLIP's tokenizers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from serve_app.config import ModelConfig
from serve_app.models import sdxl_path
from serve_app.models.clip import clip_tokenizer
from serve_app.replica.checkpoint import find_supported
from serve_app.replica.sources import TOKENIZERS
from serve_app.replica.supported import check_tokenizer
from serve_app.replica.weights import load_scheduler, load_tokenizer

PROMPTS = (
    "a photo of a cat",
    "Hello World!  don't; it's 2024 (masterpiece:1.2), best-quality!!",
    "été à Zürich, 日本の城, Москва 🚀\n\ttabs\u00a0and spaces",
    "<|startoftext|> in the middle <|endoftext|>, supercalifragilisticexpialidocious",
    "",
)


def test_prompts_become_the_tokens_that_clip_was_trained_on() -> None:
    first, second = (clip_tokenizer(name) for name in TOKENIZERS)
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    ends = [each("a", padding="max_length").input_ids[-1] for each in (first, second)]
    assert ends == [49407, 0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_they_are_the_tokenizers_of_files_as_the_hub_has_them(name: str, tmp_path: Path) -> None:
    ours = clip_tokenizer(name)
    (tmp_path / "vocab.json").write_text(json.dumps(ours.get_vocab()))
    (tmp_path / "merges.txt").write_bytes((sdxl_path() / "merges.txt").read_bytes())
    marker = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({**marker, "content": f"<|{which}oftext|>"} for which in ("start", "end"))
    config = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": ours.pad_token}
    other = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **other, "tokenizer_class": "CLIPTokenizer"}))
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in PROMPTS:
        as_read = [
            each(prompt, padding="max_length", max_length=77, truncation=True).input_ids for each in (ours, theirs)
        ]
        assert as_read[0] == as_read[1], prompt


def test_a_file_of_sdxls_shape_needs_no_network(tmp_path: Path, lookups: list[object]) -> None:
    file = tmp_path / "fine-tune.safetensors"
    keys = ("conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x", "first_stage_model.x")
    save_file({key: torch.zeros(0) for key in (*keys, "model.diffusion_model.x")}, file)
    sources = find_supported(ModelConfig(path=str(file)))
    for name in TOKENIZERS:
        check_tokenizer(sources, name, load_tokenizer(sources, name))
    assert load_scheduler(sources).config.timestep_spacing == "leading"
    assert lookups == []


def test_the_index_is_what_diffusers_writes(folder: Path) -> None:
    ours, theirs = (json.loads((each / "model_index.json").read_text()) for each in (sdxl_path(), folder))
    notes = ("_diffusers_version", "_name_or_path")
    assert ours == {key: value for key, value in theirs.items() if key not in notes}
