"""A small vocabulary in CLIP's format. Every caption word is one token; any other text can be tokenised too."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def byte_letters() -> list[str]:
    """Return the 256 letters that stand for bytes in byte-pair vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return byte-pair merges, most frequent pair first, until every word is a single piece.

    Of equally frequent pairs the alphabetically first one is merged, so the same words give the same vocabulary.
    """
    pieces = [[*word[:-1], word[-1] + _WORD_END] for word in sorted(set(words))]
    counts: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for i, word in enumerate(pieces):
        _count(word, i, counts, where, 1)
    merges = []
    while counts:
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for i in sorted(where.pop(best)):
            _count(pieces[i], i, counts, where, -1)
            pieces[i] = _merge(pieces[i], best)
            _count(pieces[i], i, counts, where, 1)
    return merges


def _count(
    word: Sequence[str], i: int, counts: Counter[tuple[str, str]], where: dict[tuple[str, str], set[int]], sign: int
) -> None:
    for pair in pairwise(word):
        counts[pair] += sign
        if counts[pair] == 0:
            del counts[pair]
        if sign > 0:
            where[pair].add(i)


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def save_vocabulary(words: Iterable[str], folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` of a byte-pair vocabulary for `words` into `folder`."""
    merges = learn_merges(words)
    letters = byte_letters()
    tokens = list(dict.fromkeys([*letters, *(c + _WORD_END for c in letters), *(a + b for a, b in merges), START, END]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")


def load_tokenizer(folder: Path, max_length: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer with the vocabulary in `folder`; it pads and cuts to `max_length` tokens."""
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=END, model_max_length=max_length
    )


class CaptionEncoder:
    """Encodes captions to the same token ids as the tokenizer, but many times faster, by caching the ids of words.

    A caption is lower-case words separated by single spaces; punctuation is a separate word or begins one.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self._tokenizer = tokenizer
        self._start, self._end = tokenizer.convert_tokens_to_ids([START, END])
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return `model_max_length` ids: the start, the words, and the end for padding."""
        length = self._tokenizer.model_max_length
        ids = [self._start]
        for word in text.split():
            found = self._known.get(word)
            if found is None:
                found = self._known[word] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
            ids += found
        return ids[: length - 1] + [self._end] * max(1, length - len(ids))
