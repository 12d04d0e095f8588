"""The OpenAPI document, with FastAPI's wrong assumptions corrected."""

from typing import Any

from fastapi import FastAPI

_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")


class DescribedApi(FastAPI):
    """An app whose routes describe all their errors, which are JSON whatever the answer is."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for operations in document["paths"].values():
                for operation in operations.values():
                    _correct(operation["responses"])
            for name in _FASTAPIS_OWN:
                document["components"]["schemas"].pop(name, None)
        return super().openapi()


def _correct(responses: dict[str, Any]) -> None:
    for status, answer in list(responses.items()):
        content = answer.get("content", {})
        if any(str(kind.get("schema", {}).get("$ref")).endswith(f"/{_FASTAPIS_OWN[0]}") for kind in content.values()):
            del responses[status]
        elif status == "200":
            for kind in content.values():
                kind.pop("itemSchema", None)  # a word of OpenAPI 3.2 in a 3.1 document; see `sse.described`
        elif content:  # FastAPI gives errors the media type of the answer
            answer["content"] = {"application/json": next(iter(content.values()))}
