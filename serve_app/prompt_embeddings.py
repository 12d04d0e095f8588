"""Embeddings (textual inversion) in prompts: `embedding:name`, as ComfyUI writes them."""

import re
from collections.abc import Collection, Iterator, Sequence

_NAMED = re.compile(r"\bembedding:([\w./+-]*\w)(?:\.safetensors\b)?", re.IGNORECASE)

_BARE = re.compile(r"(?<![\w./+:-])[\w./+-]*\w(?![\w/+-]|\.\w)")
"""What may be a name without `embedding:` before it."""

_SUFFIX = re.compile(r"\.safetensors$", re.IGNORECASE)


def names_in(texts: Sequence[str | None]) -> list[str]:
    """Return the names of the embeddings in some texts, each once."""
    return list(dict.fromkeys(name for text in texts if text for name, words in split(text) if name))


def split(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield the parts of a text: the name of an embedding, if it is one, and how it is written."""
    end = 0
    for found in _NAMED.finditer(text):
        yield None, text[end : found.start()]
        yield _SUFFIX.sub("", found[1]), found[0]
        end = found.end()
    yield None, text[end:]


def can_be_named(name: str) -> bool:
    """Return whether a prompt can name an embedding. `bad(1)` would be read as the name of another, `bad`."""
    return names_in([f"embedding:{name}"]) == [name]


def words_in(*texts: str) -> set[str]:
    """Return what may be bare names of embeddings in some texts, in lower case."""
    return {word.lower() for text in texts for word in _BARE.findall(text)}


def spelled_out(prompt: str, names: Collection[str]) -> str:
    """Return a prompt whose bare names of embeddings, as A1111 has them, are written as `embedding:name`.

    `names` are names that prompts can write; in another case than the prompt's they count too.
    """
    by_lower = {name.lower(): name for name in sorted(names)}

    def spelled(found: re.Match[str]) -> str:
        word = found[0]
        name = word if word in names else by_lower.get(word.lower())
        return word if name is None else f"embedding:{name}"

    return _BARE.sub(spelled, prompt)
