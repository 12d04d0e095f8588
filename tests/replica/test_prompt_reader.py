"""What is read of a prompt. The tiny vocabulary has a token for each letter."""

import sys
import threading

import pytest
import torch

from serve_app.config import AppArgs, ModelConfig
from serve_app.recipe import CHUNK_TOKENS, MOST_PROMPT_CHUNKS, Recipe
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.deployment import _warm_up_slots
from serve_app.replica.prompt_reader import PromptReader
from serve_app.replica.prompts import PromptEncoder


@pytest.fixture(scope="module")
def reader(checkpoint: Checkpoint) -> PromptReader:
    return PromptReader(checkpoint.pipe)


@pytest.mark.parametrize(
    ("prompt", "unread"),
    [
        ("a" * 75, ""),
        ("a" * 76, "a"),
        ("word " * 18 + "end", ""),
        ("Word " * 18 + "ends Word 苹果", "s Word 苹果"),
    ],
)
def test_the_end_that_is_not_read_is_named(reader: PromptReader, prompt: str, unread: str) -> None:
    said = f"prompt is longer than the model can read; it does not see: {unread}"
    assert reader.read(Recipe(prompt=prompt), CHUNK_TOKENS).warnings == ((said,) if unread else ())


def test_each_text_that_is_not_read_to_its_end_is_a_warning(reader: PromptReader) -> None:
    recipe = Recipe(prompt="a" * 75 + " cat", negative_prompt="b" * 75 + " dog")
    assert reader.read(recipe, CHUNK_TOKENS).warnings == (
        "prompt is longer than the model can read; it does not see: cat",
        "negative_prompt is longer than the model can read; it does not see: dog",
    )
    assert reader.read(recipe, 2 * CHUNK_TOKENS).warnings == ()
    assert reader.read(Recipe(prompt="a cat", negative_prompt="b" * 76, guidance_scale=1)).warnings == ()


def test_each_encoder_reads_its_own_text(reader: PromptReader) -> None:
    recipe = Recipe(prompt="a", prompt_2="b" * 80, negative_prompt="c", negative_prompt_2="d" * 160)
    negative, prompt = reader.read(recipe, 150).rows
    alone = [reader.read(Recipe(prompt=text, negative_prompt="d" * 80)).rows[1] for text in ("a", "b" * 80)]
    assert prompt.chunks == tuple(
        zip(*([row[place] for row in each.chunks] for place, each in enumerate(alone)), strict=True)
    )
    assert len(negative.chunks) == 2
    assert reader.read(recipe, 75).warnings == (
        f"prompt_2 is longer than the model can read; it does not see: {'b' * 5}",
        f"negative_prompt_2 is longer than the model can read; it does not see: {'d' * 85}",
    )


@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "chunks"),
    [("a" * 75, "", 1), ("a" * 76, "", 2), ("a", "b" * 151, 3), ("a" * 400, "", 3)],
    ids=["one", "two", "three", "cut"],
)
def test_both_prompts_have_as_many_chunks_as_the_longer_needs(
    reader: PromptReader, prompt: str, negative_prompt: str, chunks: int
) -> None:
    prompts = reader.read(Recipe(prompt=prompt, negative_prompt=negative_prompt), 225)
    assert [len(row.chunks) for row in prompts.rows] == [chunks, chunks]
    assert prompts.chunks == chunks


def test_a_replica_warms_up_for_each_length_of_a_prompt_with_a_negative_one_and_without(
    checkpoint: Checkpoint, reader: PromptReader
) -> None:
    args = AppArgs.model_validate({"engine": {"warm_up_prompt_chunks": MOST_PROMPT_CHUNKS, "warm_up_sizes": ["64x64"]}})
    slots = _warm_up_slots(args, checkpoint)
    read = [(slot.recipe.width, reader.read(slot.recipe, slot.max_prompt_tokens)) for slot in slots]
    lengths = range(1, MOST_PROMPT_CHUNKS + 1)
    assert [(width, prompts.chunks, prompts.half) for width, prompts in read] == [
        (width, chunks, half) for width in (256, 64) for chunks in lengths for half in (True, False)
    ]


def test_a_replica_warms_up_for_no_negative_prompt_that_nothing_depends_on(checkpoint: Checkpoint) -> None:
    assert len(_warm_up_slots(AppArgs(model=ModelConfig(guidance_scale=0)), checkpoint)) == 1
    checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=False)
    try:
        assert len(_warm_up_slots(AppArgs(), checkpoint)) == 1
    finally:
        checkpoint.pipe.register_to_config(force_zeros_for_empty_prompt=True)


def test_reading_does_not_disturb_encoding_on_another_thread(checkpoint: Checkpoint, reader: PromptReader) -> None:
    """A tokenizer shared by two threads fails within a few hundred of these calls."""
    stop, faults = threading.Event(), []
    prompt = "x" * 80

    def read() -> None:
        while not stop.is_set():
            try:
                if reader._cut_anew(0, prompt, "plain", 1).unread != "x" * 5:
                    faults.append("reader: another end")
            except Exception as error:
                faults.append(f"reader: {error}")

    threads = [threading.Thread(target=read) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    for thread in threads:
        thread.start()
    try:
        for _ in range(1000):
            tokens = checkpoint.pipe.tokenizer_2(prompt, padding="max_length", max_length=77, truncation=True).input_ids
            if len(tokens) != 77:
                faults.append(f"encoder: {len(tokens)} tokens")
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for thread in threads:
            thread.join()
    assert faults == []


def test_a_model_that_reads_fewer_tokens_at_once_gets_shorter_chunks() -> None:
    """The embedded one reads 30."""
    torch.set_num_threads(1)
    embedded = load_checkpoint(ModelConfig(), torch.device("cpu"))
    prompts = PromptReader(embedded.pipe).read(Recipe(prompt="apple " * 40, negative_prompt="dull"))
    assert prompts.chunks == 2
    assert {len(chunk.ids) for row in prompts.rows for encoders in row.chunks for chunk in encoders} == {32}
    with torch.inference_mode():
        conditions = PromptEncoder(embedded.pipe, embedded.device, 8).conditions(prompts)
    assert [e.context is not None and e.context.shape[1] for e in conditions] == [64, 64]
