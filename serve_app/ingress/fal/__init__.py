"""fal's fast-sdxl: its input and output, over the same service, so that `run` and `stream` of its clients move over by host alone."""

from serve_app.ingress.fal.errors import DIALECT
from serve_app.ingress.fal.routes import router

__all__ = ["DIALECT", "router"]
