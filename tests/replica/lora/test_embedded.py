"""The LoRAs that ship with the embedded model."""

import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.adapters import AdapterFolder
from serve_app.config import AdaptersConfig, ModelConfig
from serve_app.messages import Slot
from serve_app.models import EMBEDDED, embedded_adapters_path
from serve_app.recipe import Lora
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint
from serve_app.replica.lora.sets import Adapters
from serve_app.replica.lora.store import make_store
from tests.conftest import MakeEngine, make_slot
from tests.replica.lora.crowds import require_a_crowd_is_as_alone

PAPER, VIOLET = (24, 66, 150), (124, 77, 219)

Read = Callable[..., Adapters]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return load_checkpoint(ModelConfig(path=EMBEDDED), torch.device("cpu"))


@pytest.fixture(scope="module")
def read(checkpoint: Checkpoint) -> Read:
    """Read adapters such as read(zibo=1.0)."""
    store = make_store(AdaptersConfig(path=EMBEDDED), checkpoint)
    assert store is not None
    return lambda **scales: store.read([Lora(name=name, scale=scale) for name, scale in scales.items()])


def test_their_files_say_what_they_are() -> None:
    found = AdapterFolder(embedded_adapters_path()).loras()
    said = {one.name: (one.trigger_words, one.base_model, one.rank, one.unusable) for one in found}
    assert said == {name: ((name,), "SDXL", 4, None) for name in ("blueprint", "zibo")}


def test_a_crowd_of_them_generates_what_each_does_alone(make_engine: MakeEngine, read: Read) -> None:
    both = read(blueprint=1.0, zibo=1.0)
    mixes = [Adapters(), read(blueprint=1.0), read(zibo=1.0), read(blueprint=0.5), both]
    require_a_crowd_is_as_alone(make_engine, mixes, num_inference_steps=2)


def test_they_show_what_they_say_and_a_subject_only_where_it_is_named(make_engine: MakeEngine, read: Read) -> None:
    style, subject = read(blueprint=1.0), read(zibo=1.0)
    asked = [("zibo", Adapters()), ("a red apple", style), ("zibo", subject), ("a red apple", subject)]
    engine = make_engine(max_batch_size=len(asked), weight_sets=2)
    collectors = [engine.submit(a_slot(prompt), mix) for prompt, mix in asked]
    unknown, drawn, zibo, apple = (pixels(collector.result().b64_json) for collector in collectors)
    assert share(drawn, PAPER) > 0.5 > 0.01 > share(unknown, PAPER)
    assert share(zibo, VIOLET) > 0.05 > 0.01 > share(apple, VIOLET)
    assert share(unknown, VIOLET) < 0.01


def a_slot(prompt: str) -> Slot:
    small = {"width": 128, "height": 128, "num_inference_steps": 4, "guidance_scale": 3.0, "keep_pixels": True}
    return make_slot(prompt=f"{prompt} on a white background", **small)


def pixels(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")).astype(int)


def share(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Return the share of a picture that has about this colour."""
    return float((np.abs(picture - colour).max(axis=2) < 45).mean())
