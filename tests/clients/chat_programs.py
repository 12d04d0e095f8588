"""What chat programs send, at the size of the served model."""

import sys
from typing import Any

import httpx2

from tests.clients import bodies
from tests.clients.report import PHOTO, expect, report, seen

HTTP = httpx2.Client(base_url=sys.argv[1], timeout=300, trust_env=False)
SMALL = {"width": 256, "height": 256, "steps": 8}


def a1111(body: dict[str, Any]) -> str:
    answer = HTTP.post("/sdapi/v1/txt2img", json={**body, **SMALL})
    expect(answer.status_code == httpx2.codes.OK, answer.text)
    return seen(*answer.json()["images"])


def openai(body: dict[str, Any]) -> str:
    return _pictures(HTTP.post("/v1/images/generations", json={**body, "size": "256x256"}))


def edit(form: dict[str, str], name: str) -> str:
    files = {name: ("photo.png", PHOTO.read_bytes(), "image/png")}
    return _pictures(HTTP.post("/v1/images/edits", data={**form, "size": "256x256"}, files=files))


def _pictures(answer: httpx2.Response) -> str:
    expect(answer.status_code == httpx2.codes.OK, answer.text)
    return seen(*[item["b64_json"] for item in answer.json()["data"]])


if __name__ == "__main__":
    report(
        {
            "Open WebUI, A1111": lambda: a1111(bodies.OPEN_WEBUI),
            "Open WebUI, OpenAI": lambda: openai(bodies.OPEN_WEBUI_OPENAI),
            "Open WebUI, OpenAI, edit": lambda: edit(bodies.OPEN_WEBUI_EDIT, "image"),
            "LibreChat, A1111": lambda: a1111(bodies.LIBRECHAT),
            "LibreChat, OpenAI": lambda: openai(bodies.LIBRECHAT_OPENAI),
            "LibreChat, OpenAI, edit": lambda: edit(bodies.LIBRECHAT_EDIT, "image[]"),
            "SillyTavern, A1111": lambda: a1111(bodies.SILLYTAVERN),
        }
    )
