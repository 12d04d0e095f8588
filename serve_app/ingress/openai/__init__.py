"""The OpenAI Images API, for OpenAI's SDKs."""

from serve_app.ingress.openai.errors import DIALECT
from serve_app.ingress.openai.routes import router

__all__ = ["DIALECT", "router"]
