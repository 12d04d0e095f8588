"""fal's fast-sdxl: its input and output, over the same service.

Clients' `run` and `stream` move over by changing the host alone.
"""

from serve_app.ingress.fal.errors import DIALECT
from serve_app.ingress.fal.routes import router

__all__ = ["DIALECT", "router"]
