"""Who sends the request being served: what fairness between clients goes by."""

from contextvars import ContextVar

client: ContextVar[str | None] = ContextVar("client", default=None)
"""A name for the API key of the request being served, never the key itself; None where no key is needed."""
