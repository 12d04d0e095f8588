"""The OpenAPI document, put right where FastAPI assumes what is not so here."""

from typing import Any

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse

_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


class DescribedApi(FastAPI):
    """An app whose errors are all described by its routes, and come as JSON from those that stream as well."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    _put_right(operation["responses"])
            for name in _FASTAPIS_OWN:
                document["components"]["schemas"].pop(name, None)
        return super().openapi()


def _put_right(responses: dict[str, Any]) -> None:
    for status, answer in list(responses.items()):
        content = answer.get("content", {})
        if any(str(kind.get("schema", {}).get("$ref")).endswith(f"/{_FASTAPIS_OWN[0]}") for kind in content.values()):
            del responses[status]
        elif status == "200":
            for kind in content.values():
                kind.pop("itemSchema", None)  # OpenAPI 3.2's, where FastAPI's document is of 3.1; see `sse.described`
        elif stream := content.pop(EventSourceResponse.media_type, None):
            content["application/json"] = stream
