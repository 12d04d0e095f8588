"""Who sends the request being served: what fairness between clients goes by."""

from contextvars import ContextVar

_SHORT = 8

client: ContextVar[str | None] = ContextVar("client", default=None)
"""A name for the API key of the request being served, never the key itself; None where no key is needed."""


def short(name: str | None) -> str:
    """Return the part of a client's name that logs and metrics show; empty where no key is needed."""
    return name[:_SHORT] if name else ""
