"""The API of AUTOMATIC1111's web UI, which many chat programs and scripts speak."""

from serve_app.ingress.a1111.errors import DIALECT
from serve_app.ingress.a1111.routes import router

__all__ = ["DIALECT", "router"]
