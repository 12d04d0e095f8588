"""New weights are rolled out while clients ask for pictures."""

import shutil
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file

from serve_app.config import AppArgs
from serve_app.metadata import embedded_parameters
from tests.integration.conftest import REPLICAS, SMALL, deploy_pair, events_of, eventually

CLIENTS = 2
IMAGES = 4


@pytest.fixture(scope="module")
def new_weights(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp("new") / "model"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, file)
    return folder


@contextmanager
def clients(url: str, answers: list[dict[str, Any]]) -> Iterator[None]:
    """Ask for images all the time while the context is open: half of the clients by /generate, half by /stream."""
    stop = threading.Event()
    body = {"prompt": "a", **SMALL, "num_inference_steps": 60, "num_images": IMAGES}

    def ask(number: int) -> None:
        with httpx2.Client(base_url=url, timeout=60) as http:
            while not stop.is_set():
                answers.append(_streamed(http, body) if number % 2 else http.post("/generate", json=body).json())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _streamed(http: httpx2.Client, body: dict[str, Any]) -> dict[str, Any]:
    """Return a stream's events in the form of an answer."""
    with http.stream("POST", "/stream", json=body) as response:
        events = list(events_of(response.iter_lines()))
    start, end = events[0], events[-1]
    images = [event for event in events if event["type"] in ("image", "failed", "cancelled")]
    return {
        "parameters": start["parameters"],
        "images": images,
        "warnings": start["warnings"] + end.get("warnings", []),
    }


def made_by(image: dict[str, Any]) -> str:
    """Return the hash of the weights that made a picture, as its file says."""
    embedded = embedded_parameters(Pillow.open(BytesIO(b64decode(image["b64_json"]))))
    assert embedded is not None
    return embedded.model.hash


def test_an_answer_names_the_model_of_each_of_its_pictures(pair: str, pair_args: AppArgs, new_weights: Path) -> None:
    """The last test of the pair, whose weights change."""
    answers = list[dict[str, Any]]()
    with httpx2.Client(base_url=pair, timeout=60) as http:
        eventually(lambda: http.get("/health").json()["replicas"]["ready"] == REPLICAS)
        old = http.post("/generate", json={"prompt": "a", **SMALL}).json()["parameters"]["model"]["hash"]
    model = pair_args.model.model_copy(update={"path": str(new_weights)})
    with clients(pair, answers):
        deploy_pair(pair_args.model_copy(update={"model": model}))
    images = [image for answer in answers for image in answer["images"]]
    assert Counter(image["status"] if "status" in image else image["type"] for image in images) == {
        "succeeded": IMAGES * len(answers)
    }, "nothing is lost"
    assert len({made_by(image) for image in images}) == 2, "both versions have generated"
    mixed = 0
    for answer in answers:
        named = answer["parameters"]["model"]["hash"]
        others = {image["index"]: made_by(image) for image in answer["images"] if made_by(image) != named}
        told = {image["index"]: image["model"]["hash"] for image in answer["images"] if image.get("model")}
        assert told == others
        assert bool(others) == any("other weights" in warning for warning in answer["warnings"])
        mixed += bool(others)
    print(f"{len(answers)} answers, {mixed} with pictures of another model than their parameters name; first was {old}")
