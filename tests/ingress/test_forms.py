"""Requests of our own API as forms: the fields of JSON, and pictures as files."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.fakes import FakePool
from tests.ingress.conftest import events_of
from tests.ingress.test_pictures import BODY, HASH, MASK, PHOTO

FILES = {"init_image": ("photo.png", PHOTO, "image/png")}


def refusal(client: TestClient, data: dict[str, Any], files: Any = FILES) -> tuple[str | None, str]:
    response = client.post("/generate", data=data, files=files)
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


def test_a_form_is_generated_as_the_same_json_is(client: TestClient, pool: FakePool) -> None:
    data = {"prompt": "a cat", "num_images": "2", "seed": "7", "grid": "false", "negative_prompt": ""}
    sent = client.post("/generate", data=data, files=FILES)
    told, as_json = (response.json() for response in (sent, client.post("/generate", json=BODY)))
    assert told["parameters"] == as_json["parameters"]
    assert told["images"] == as_json["images"]
    assert told["parameters"]["init_image"] == HASH


def test_a_form_without_files_is_one_too(client: TestClient) -> None:
    body = '--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n--x--\r\n'
    kind = {"Content-Type": "Multipart/Form-Data; boundary=x"}
    told = client.post("/generate", content=body, headers=kind).json()
    assert (told["parameters"]["prompt"], len(told["images"])) == ("a cat", 4)


def test_a_page_in_which_no_file_was_chosen_sends_an_empty_one_without_a_name(client: TestClient) -> None:
    part = "--x\r\nContent-Disposition: form-data; name="
    body = f'{part}"prompt"\r\n\r\na cat\r\n{part}"init_image"; filename=""\r\n\r\n\r\n--x--\r\n'
    told = client.post("/generate", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}).json()
    assert told["parameters"]["init_image"] is None


def test_a_form_may_be_streamed(client: TestClient, pool: FakePool) -> None:
    data = {"prompt": "a cat", "num_images": 1, "preview_every": 0}
    files: Any = {**FILES, "mask_image": MASK}
    start, *_, completed = events_of(client.post("/stream", data=data, files=files))
    assert (start["parameters"]["init_image"], completed["type"]) == (HASH, "completed")
    assert (pool.slots[0].canvas.mask.values == 255).all()


@pytest.mark.parametrize("name", ["seeds", "seeds[]"])
def test_a_list_is_a_field_that_is_sent_more_than_once(client: TestClient, name: str) -> None:
    told = client.post("/generate", data={"prompt": "a", name: ["5", "9", ""]}, files=FILES).json()
    assert [image["seed"] for image in told["images"]] == [5, 9]


def test_a_size_is_such_a_list(client: TestClient) -> None:
    told = client.post("/generate", data={"prompt": "a", "original_size": ["512", "768"]}, files=FILES).json()
    assert told["parameters"]["original_size"] == [512, 768]


@pytest.mark.parametrize(
    ("data", "files", "param", "words"),
    [
        ({}, FILES, "prompt", "prompt: Field required"),
        ({"prompt": "a", "num_images": "ten"}, FILES, "num_images", "num_images: Input should be a valid integer"),
        ({"prompt": "a", "seeds": ["1", "x"]}, FILES, "seeds.1", "seeds.1: Input should be a valid integer"),
        ({"prompt": ["a", "b"]}, FILES, "prompt", "prompt: is sent more than once"),
        ({"prompt": "a", "strength": "2"}, FILES, "strength", "strength: Input should be less than or equal to 1"),
        ({"prompt": "a"}, [*FILES.items(), *FILES.items()], "init_image", "init_image: is sent more than once"),
        ({"prompt": "a"}, {"init_image": ("a.png", b"")}, "init_image", "init_image: the file is empty"),
        ({"prompt": "a", "init_image": "x"}, FILES, "init_image", "init_image: is sent more than once"),
        ({"prompt": "a"}, {"init_image": b"no picture"}, "init_image", "init_image: is no picture that can be read"),
        ({"prompt": "a"}, {"mask_image": MASK}, "mask_image", "mask_image: needs an init_image"),
        (
            {},
            {"prompt": b"a"},
            "prompt",
            "prompt: is sent as a file; only init_image and mask_image may be",
        ),
        ({"prompt": "a", "": "x"}, FILES, None, "'': no such field"),
        ({"prompt": "a", "init_images[]": "x"}, FILES, "init_images", "init_images: no such field"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(
    client: TestClient, data: dict[str, Any], files: Any, param: str | None, words: str
) -> None:
    found, message = refusal(client, data, files)
    assert (found, message[: len(words)]) == (param, words)


PART = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat\r\n'
CUT = b'--x\r\nContent-Disposition: form-data; name="init_image"; filename="a"\r\n\r\n' + PHOTO[:100]


@pytest.mark.parametrize(
    ("body", "charset", "words"),
    [
        (PART + CUT, "", "it is cut off, the last boundary is missing"),
        (PART, "", "it is cut off, the last boundary is missing"),
        (PART + b"--x--", "; charset=undefined", "its texts are not in its charset"),
        (b"x", "", "Invalid multipart data."),
    ],
)
def test_what_is_no_form_is_refused(client: TestClient, body: bytes, charset: str, words: str) -> None:
    """What is cut off would otherwise be generated without its picture."""
    kind = {"Content-Type": f"multipart/form-data; boundary=x{charset}"}
    response = client.post("/generate", content=body, headers=kind)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["message"] == f"the body cannot be read as multipart/form-data: {words}"


def test_what_is_neither_is_refused_as_no_json(client: TestClient) -> None:
    response = client.post("/generate", data={"prompt": "a"})
    assert (response.status_code, response.json()["error"]["message"]) == (
        422,
        "the body must be a JSON object, sent with Content-Type: application/json, not as "
        "application/x-www-form-urlencoded",
    )
    assert client.get("/generate").headers["Allow"] == "POST"
