"""Embeddings (textual inversion) in prompts: `embedding:name`, as ComfyUI writes them."""

import re
from collections.abc import Collection, Iterator, Sequence

_NAMED = re.compile(r"\bembedding:([\w./+-]*\w)(?:\.safetensors\b)?", re.IGNORECASE)


def names_in(texts: Sequence[str | None]) -> list[str]:
    """Return the names of the embeddings in some texts, each once."""
    return list(dict.fromkeys(name for text in texts if text for name, words in split(text) if name))


def split(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield the parts of a text: the name of an embedding, if it is one, and how it is written."""
    end = 0
    for found in _NAMED.finditer(text):
        yield None, text[end : found.start()]
        yield found[1].removesuffix(".safetensors"), found[0]
        end = found.end()
    yield None, text[end:]


def spelled_out(prompt: str, names: Collection[str]) -> str:
    """Return a prompt whose bare names of embeddings, as A1111 has them, are written as `embedding:name`."""
    by_lower = {name.lower(): name for name in names}
    if not by_lower:
        return prompt
    choices = "|".join(re.escape(name) for name in sorted(by_lower, key=len, reverse=True))
    bare = re.compile(rf"(?<![\w./+:-])({choices})(?![\w/+-]|\.\w)", re.IGNORECASE)
    return bare.sub(lambda found: f"embedding:{by_lower[found[1].lower()]}", prompt)
