"""fal's fast-sdxl API. Clients that use `run` and `stream` only change the host."""

from serve_app.ingress.fal.errors import DIALECT
from serve_app.ingress.fal.routes import router

__all__ = ["DIALECT", "router"]
