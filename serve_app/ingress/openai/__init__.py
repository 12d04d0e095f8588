"""The OpenAI Images API: what its SDKs send and read, over the same service."""

from serve_app.ingress.openai.errors import DIALECT
from serve_app.ingress.openai.routes import router

__all__ = ["DIALECT", "router"]
