"""What the metadata in a LoRA's file says of it: the words that trigger it, and its rank."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from serve_app.adapters.header import Header

_MOST_WORDS = 5
_LONGEST_WORD = 100


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """Return the trigger words that a file names, else the most frequent tags of the pictures it was trained on."""
    if said := metadata.get("modelspec.trigger_phrase", "").strip():
        return [_told(word) for part in said.split(",") if (word := part.strip())][:_MOST_WORDS]
    counts = _tag_counts(metadata.get("ss_tag_frequency", ""))
    most = max(counts.values(), default=0)
    # What belongs to the subject is on most of its pictures.
    return [_told(tag) for tag, count in counts.most_common(_MOST_WORDS) if 2 * count >= most]


def _told(word: str) -> str:
    """Return a word as an answer can tell it: trainers cut tags off, also in the middle of a character."""
    return word[:_LONGEST_WORD].encode(errors="replace").decode()


def rank_of(header: Header) -> int | None:
    """Return the largest rank of a LoRA's layers; None for kinds that have none."""
    ranks = (
        shape[0]
        for key, shape in header.shapes.items()
        if shape and key.endswith(("lora_down.weight", "lora_A.weight", "lora.down.weight", "_lora.down.weight"))
    )
    return max(ranks, default=None)


def _tag_counts(frequencies: str) -> Counter[str]:
    """Return how often each tag was used in all folders of a trainer's pictures."""
    try:
        folders: Any = json.loads(frequencies or "{}")
        counts: Counter[str] = Counter()
        for tags in folders.values():
            for tag, count in tags.items():
                if name := tag.strip():
                    counts[name] += int(count)
    except (ValueError, ArithmeticError, AttributeError, TypeError, RecursionError):
        return Counter()
    return counts
