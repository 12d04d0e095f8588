"""The real fal client against the running service, behind TLS, which it insists on."""

import asyncio
import base64
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.certificates import certificate
from tests.integration.conftest import Running, eventually

ARGUMENTS = {
    "prompt": "a red apple",
    "image_size": {"width": 64, "height": 64},
    "num_inference_steps": 4,
    "num_images": 2,
    "seed": 7,
    "format": "png",
}


async def relay(
    context: ssl.SSLContext, backend: tuple[str, int], ready: "Queue[tuple[int, Callable[[], object]]]"
) -> None:
    """Take TLS and pass it on in plain; put its port and what stops it into `ready`."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()  # who hangs up on one side, hangs up on the other

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(*backend)
        await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))

    async with await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context) as server:
        ready.put((server.sockets[0].getsockname()[1], lambda: loop.call_soon_threadsafe(stopped.set)))
        await stopped.wait()


@dataclass(frozen=True)
class Tls:
    """Something that speaks TLS in front of the service."""

    host: str
    certificate: Path

    def fal(self, script: str) -> subprocess.Popen[str]:
        """Run a script of one who uses the client; it reads its host when it is imported."""
        env = {
            **os.environ,
            "FAL_RUN_HOST": self.host,
            "FAL_KEY": "none",
            "SSL_CERT_FILE": str(self.certificate),
            "ARGUMENTS": json.dumps(ARGUMENTS),
        }
        head = "import fal_client, json, os, sys\narguments = json.loads(os.environ['ARGUMENTS'])\n"
        return subprocess.Popen([sys.executable, "-c", head + script], env=env, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def tls(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    path = certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    where, ready = urlsplit(service.url), Queue[tuple[int, Callable[[], object]]]()
    thread = threading.Thread(
        target=lambda: asyncio.run(relay(context, (str(where.hostname), int(where.port or 0)), ready))
    )
    thread.start()
    port, stop = ready.get(timeout=10)
    yield Tls(f"127.0.0.1:{port}", path)
    stop()
    thread.join(timeout=10)


def answer(process: subprocess.Popen[str]) -> Any:
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(printed)


def test_run_generates_the_pictures_of_generate(app: Running, tls: Tls) -> None:
    output = answer(tls.fal("print(json.dumps(fal_client.run('fal-ai/fast-sdxl', arguments)))"))
    own = app.generate(num_images=2, seed=7)["images"]
    assert (output["seed"], output["seeds"], output["prompt"]) == (7, [7, 8], "a red apple")
    for image, picture in zip(output["images"], own, strict=True):
        file = base64.b64decode(picture["b64_json"])
        assert (image["width"], image["height"], image["content_type"], image["file_size"]) == (
            64,
            64,
            "image/png",
            len(file),
        )
        assert httpx2.get(f"{app.url}/files/{image['file_name']}").content == file


def test_stream_shows_how_they_form(tls: Tls, app: Running) -> None:
    script = (
        "arguments |= {'sync_mode': True, 'num_inference_steps': 40}\n"
        "print(json.dumps(list(fal_client.stream('fal-ai/fast-sdxl', arguments))))"
    )
    *previews, last = answer(tls.fal(script))
    own = app.generate(num_images=2, seed=7, num_inference_steps=40)["images"]
    assert {preview["image_index"] for preview in previews} == {0, 1}
    assert all(preview["images"][0]["url"].startswith("data:image/jpeg;base64,") for preview in previews)
    assert [image["url"] for image in last["images"]] == [
        f"data:image/png;base64,{picture['b64_json']}" for picture in own
    ]


def test_a_refusal_reaches_its_user(tls: Tls) -> None:
    script = """
try:
    fal_client.run('fal-ai/fast-sdxl', arguments | {'loras': [{'path': 'x'}]})
except fal_client.FalClientHTTPError as error:
    print(json.dumps([error.status_code, error.message]))
"""
    status, (fault,) = answer(tls.fal(script))
    assert (status, fault["loc"]) == (422, ["body", "loras"])


def test_closing_a_stream_early_frees_the_replicas(app: Running, tls: Tls) -> None:
    process = tls.fal(
        "next(fal_client.stream('fal-ai/fast-sdxl', arguments | {'num_inference_steps': 998}))\n"
        "print('seen', flush=True)\nsys.stdin.read()"
    )
    assert process.stdout
    assert process.stdout.readline() == "seen\n"
    process.kill()
    process.communicate()
    eventually(app.idle, seconds=5)
