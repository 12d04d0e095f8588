"""CLIP's tokenizers, as SDXL uses them, made from the merges of its vocabulary."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from serve_app.models import sdxl_path

_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_TOKENS = 77
_PADDING = {"tokenizer": _END, "tokenizer_2": "!"}


def clip_tokenizer(name: str) -> CLIPTokenizer:
    """Return SDXL's `tokenizer` or `tokenizer_2`, which differ in what fills up a prompt."""
    merges = [
        tuple(line.split(" ")) for line in (sdxl_path() / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *map("".join, merges), _START, _END]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        pad_token=_PADDING[name],
        model_max_length=_TOKENS,
    )
