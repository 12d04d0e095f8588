"""Requests with pictures over a fan-out whose pool is a fake."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from starlette.testclient import TestClient

from serve_app.config import FilesConfig
from serve_app.fanout.sight import PoolStatus
from serve_app.ingress.api import create_api
from serve_app.metrics import REFUSALS
from tests.fakes import REPLICA, FakePool, Metrics, OneModel, tickets
from tests.ingress.conftest import ARGS, events_of
from tests.ingress.hostile import MOST_PIXELS, REFUSED, half, plain, saved


def text_of(content: bytes) -> str:
    return b64encode(content).decode()


PHOTO = saved(half().resize((128, 96), Pillow.Resampling.NEAREST), "PNG")
HASH = f"sha256:{sha256(PHOTO).hexdigest()[:16]}"
MASK = saved(plain("L", 255, (128, 96)), "PNG")
BODY = {"prompt": "a cat", "init_image": text_of(PHOTO), "num_images": 2, "seed": 7}


def answer(client: TestClient, **body: Any) -> Any:
    response = client.post("/generate", json={**BODY, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refusal(client: TestClient, **body: Any) -> tuple[str | None, str]:
    response = client.post("/generate", json={**BODY, **body})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request"
    return error["param"], error["message"]


def test_all_slots_share_one_canvas_and_the_answer_says_the_hash(client: TestClient, pool: FakePool) -> None:
    parameters = answer(client)["parameters"]
    said = {name: parameters[name] for name in ("init_image", "mask_image", "strength", "width", "height")}
    assert said == {"init_image": HASH, "mask_image": None, "strength": 0.6, "width": 128, "height": 96}
    first, second = pool.slots
    assert first.canvas is second.canvas
    assert np.array_equal(first.canvas.image.values, np.asarray(half().resize((128, 96), Pillow.Resampling.NEAREST)))
    assert (first.recipe.init_image, first.recipe.strength, first.recipe.first_step) == (HASH, 0.6, 8)


def test_a_mask_says_its_hash_too_and_its_strength_is_another(client: TestClient, pool: FakePool) -> None:
    parameters = answer(client, mask_image=text_of(MASK))["parameters"]
    assert parameters["mask_image"] == f"sha256:{sha256(MASK).hexdigest()[:16]}"
    assert parameters["strength"] == 1.0
    assert (pool.slots[0].canvas.mask.values == 255).all()


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{text_of(PHOTO)}",
        f"data:;base64,{text_of(PHOTO)}",
        f"DATA:image/jpeg;charset=x;BASE64,{text_of(PHOTO)}",
        text_of(PHOTO).rstrip("="),
        urlsafe_b64encode(PHOTO).decode(),
        "\r\n".join([text_of(PHOTO)[:76], text_of(PHOTO)[76:]]),
    ],
)
def test_ways_to_write_a_picture(client: TestClient, text: str) -> None:
    assert answer(client, init_image=text)["parameters"]["init_image"] == HASH


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HASH, "is the hash of a picture; send the picture itself"),
        ("data:image/png,abc", "is a data URI, but not in base64"),
        ("not base64!", "is neither base64 nor a data URI"),
        ("a", "is neither base64 nor a data URI"),
        ("\u00e4\u00f6", "is neither base64 nor a data URI"),
        ("http://169.254.169.254/latest/meta-data", "nothing is fetched from other places"),
        ("file:///etc/passwd", "nothing is fetched from other places"),
        ("a" * 32 + ".png", "no files are stored here"),
        ("http://other/files/" + "a" * 32 + ".png", "no files are stored here"),
    ],
)
@pytest.mark.parametrize("field", ["init_image", "mask_image"])
def test_what_is_no_picture_is_refused_by_its_field(client: TestClient, field: str, text: str, words: str) -> None:
    param, message = refusal(client, **{field: text})
    assert param == field
    assert message.startswith(f"{field}: {words}")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_files_are_refused_by_their_field(pool: FakePool) -> None:
    limits = ARGS.limits.model_copy(update={"max_body_bytes": 2**20, "max_picture_pixels": MOST_PIXELS})
    args = ARGS.model_copy(update={"limits": limits})
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        for made, words in REFUSED.values():
            content = made()
            param, message = refusal(client, init_image=f"data:image/png;base64,{text_of(content)}")
            assert (param, message.startswith(f"init_image: {words}")) == ("init_image", True), message


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"init_image": None, "mask_image": text_of(MASK)}, "mask_image", "mask_image: needs an init_image"),
        ({"strength": 0}, "strength", "strength: Input should be greater than 0"),
        ({"strength": 0.01}, "strength", "strength: 0.01 of 20 steps is none: give at least 0.05 or more steps"),
        ({"num_inference_steps": 1}, "strength", "strength: 0.6 of 1 steps is none: give at least 1 or more steps"),
        ({"mask_image": text_of(saved(plain("L", 0), "PNG"))}, "mask_image", "mask_image: marks nothing to generate"),
        ({"mask_image": ""}, "mask_image", "mask_image: String should have at least 1 character"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    client: TestClient, body: dict[str, Any], param: str, words: str
) -> None:
    found, message = refusal(client, **body)
    assert found == param
    assert message.startswith(words)


@pytest.mark.parametrize(
    ("given", "said", "size"),
    [
        ((128, 96), {}, (128, 96)),
        ((130, 103), {}, (128, 96)),
        ((512, 64), {}, (512, 64)),
        ((900, 600), {}, (312, 208)),  # too large: the default's number of pixels
        ((30, 20), {}, (312, 208)),
        ((2, 600), {}, (64, 512)),
        ((128, 96), {"width": 64}, (64, 256)),
    ],
)
def test_the_size_is_the_pictures_unless_it_is_said(
    client: TestClient, given: tuple[int, int], said: dict[str, int], size: tuple[int, int]
) -> None:
    parameters = answer(client, init_image=text_of(saved(plain(size=given), "PNG")), **said)["parameters"]
    assert (parameters["width"], parameters["height"]) == size


def test_what_has_no_effect_is_said(client: TestClient) -> None:
    assert answer(client, init_image=None, strength=0.5, mask_blur=3)["warnings"] == [
        "strength has no effect: there is no init_image",
        "mask_blur has no effect: there is no init_image",
    ]
    assert answer(client, keep_outside=False)["warnings"] == ["keep_outside has no effect: there is no mask_image"]
    assert answer(client, width=128, height=256)["warnings"] == [
        "init_image: 128x96 is stretched to 128x256; leave out width and height to keep its shape"
    ]


def test_previews_begin_with_the_first_step_that_is_done(client: TestClient, pool: FakePool) -> None:
    client.post("/stream", json={**BODY, "preview_every": 5})
    assert sorted(pool.slots[0].preview_steps) == [9, 10, 15]


def test_a_model_without_an_encoder_refuses_pictures(client: TestClient, pool: FakePool) -> None:
    pool.status = PoolStatus((replace(REPLICA, takes_pictures=False),))
    param, message = refusal(client)
    assert param == "init_image"
    assert "has no encoder" in message
    assert answer(client, init_image=None)


@pytest.mark.parametrize("path", ["/generate", "/v1/images/edits"])
def test_where_there_is_no_room_pictures_are_not_even_read(path: str, pool: FakePool) -> None:
    """What could not be read is not known then."""
    metrics = Metrics()
    service, picture = OneModel(pool, ARGS, metrics), b"no picture"
    sent: dict[str, Any] = {"json": {**BODY, "init_image": text_of(picture)}}
    if path != "/generate":
        sent = {"data": {"prompt": "a"}, "files": {"image": picture, "mask": picture}}
    with TestClient(create_api(service, ARGS)) as client:
        service._admission.join(tickets(17), lambda: None)
        full = client.post(path, **sent)
        pool.status = PoolStatus()
        starting = client.post(path, **sent)
    assert (full.status_code, "Retry-After" in full.headers, starting.status_code) == (429, True, 503)
    assert metrics.count(REFUSALS) == 2


def test_streams_and_other_apis_take_pictures_in_the_same_way(client: TestClient, pool: FakePool) -> None:
    start, *_ = events_of(client.post("/stream", json=BODY))
    assert start["parameters"]["init_image"] == HASH
    taken = {"prompt": "a", "init_image": BODY["init_image"], "size": "128x96"}
    assert client.post("/v1/images/generations", json=taken).status_code == 200
    assert pool.slots[-1].recipe.init_image == HASH
    refused = client.post("/v1/images/generations", json={**taken, "init_image": "?"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "init_image")


@pytest.fixture
def storing(tmp_path: Path, pool: FakePool) -> Iterator[TestClient]:
    args = ARGS.model_copy(update={"files": FilesConfig(path=str(tmp_path))})
    (tmp_path / f"{'a' * 32}.png").write_bytes(PHOTO)
    with TestClient(create_api(OneModel(pool, args, Metrics()), args)) as client:
        yield client


@pytest.mark.parametrize("place", ["", "http://testserver/files/", "https://images.example.com/a/files/"])
def test_a_stored_file_is_named_by_its_name_or_url(storing: TestClient, place: str) -> None:
    assert answer(storing, init_image=f"{place}{'a' * 32}.png")["parameters"]["init_image"] == HASH


@pytest.mark.parametrize("text", ["b" * 32 + ".png", "http://testserver/files/" + "b" * 32 + ".webp"])
def test_a_file_that_is_not_stored_is_refused(storing: TestClient, text: str) -> None:
    param, message = refusal(storing, init_image=text)
    assert (param, message.split(";")[0]) == ("init_image", "init_image: there is no such file, or it has expired")
