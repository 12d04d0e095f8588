"""`make clients`: the real clients, unmodified, against a running service; prints a table of how each call went.

With a URL: against that service. Without: starts the embedded model's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from serve_app.cli.options import URL
from serve_app.demo import service

HERE, OUT = Path(__file__).parent, Path("out", "clients")
OWN, NODE = Path(".clients", "bin", "python"), "node"
_SIDE = 256


@dataclass(frozen=True)
class Program:
    """A program that uses one client and reports its calls."""

    client: str
    interpreter: str
    file: str


PROGRAMS = [
    Program("OpenAI's SDK for JavaScript", NODE, "openai_js.mjs"),
    Program("LiteLLM", str(OWN), "litellm_py.py"),
    Program("fal's client for JavaScript", NODE, "fal_js.mjs"),
    Program("webuiapi", str(OWN), "webuiapi_py.py"),
    Program("chat programs' requests", sys.executable, "chat_programs.py"),
]


def main(url: str | None) -> int:
    """Run all programs and return 1 if a call went wrong."""
    _draw()
    print("| client | call | result |\n| --- | --- | --- |")
    with service() if url is None else nullcontext():
        failed = [row for program in PROGRAMS for row in _rows(program, url or URL) if not row]
    return 1 if failed else 0


def _rows(program: Program, url: str) -> Iterator[bool]:
    """Print a row of the table for each call; yield whether it went well."""
    # Whatever the environment says of proxies and of places to ask.
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"PYTHONPATH": os.getcwd(), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [program.interpreter, str(HERE / program.file), url]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"call"'):  # clients print words of their own too
                yield _row(program, **json.loads(line))
    if process.returncode:
        yield _row(program, program.file, ok=False, result=f"ended with {process.returncode}")


def _row(program: Program, call: str, ok: bool, result: str) -> bool:
    print(f"| {program.client} | {call} | {'' if ok else '**failed**: '}{result} |", flush=True)
    return ok


def _draw() -> None:
    """Write the pictures that clients send: an apple of two strokes, and its right half as masks."""
    OUT.mkdir(parents=True, exist_ok=True)
    photo, mask = Image.new("RGB", (_SIDE, _SIDE), "white"), Image.new("L", (_SIDE, _SIDE), 0)
    ImageDraw.Draw(photo).ellipse((48, 64, 208, 224), fill=(200, 30, 40))
    ImageDraw.Draw(photo).line((128, 70, 140, 30), fill=(90, 60, 20), width=10)
    mask.paste(255, (_SIDE // 2, 0, _SIDE, _SIDE))
    cut = photo.convert("RGBA")
    cut.putalpha(mask.point(lambda value: 255 - value))
    for name, picture in (("photo", photo), ("mask", mask), ("cut", cut)):
        picture.save(OUT / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
