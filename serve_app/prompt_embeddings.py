"""Embeddings (textual inversion) in prompts: `embedding:name`, as ComfyUI writes them."""

import re
from collections.abc import Collection, Iterator, Sequence

_NAMED = re.compile(r"\bembedding:([\w./+-]*\w)(?:\.safetensors\b)?", re.IGNORECASE)

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


def spelled_out(prompt: str, names: Collection[str]) -> str:
    """Return a prompt whose bare names of embeddings, as A1111 has them, are written as `embedding:name`."""
    # Other names, such as `bad(1)`, would be read as the name of another file.
    known = {name for name in names if names_in([f"embedding:{name}"]) == [name]}
    if not known:
        return prompt
    by_lower = {name.lower(): name for name in sorted(known)}
    choices = "|".join(re.escape(name) for name in sorted(by_lower, key=len, reverse=True))
    bare = re.compile(rf"(?<![\w./+:-])({choices})(?![\w/+-]|\.\w)", re.IGNORECASE)

    def spelled(found: re.Match[str]) -> str:
        return f"embedding:{found[1] if found[1] in known else by_lower[found[1].lower()]}"

    return bare.sub(spelled, prompt)
