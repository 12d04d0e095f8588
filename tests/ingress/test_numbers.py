"""Numbers in a body: how integers may be written, and what a seed of -1 is."""

import pytest
from starlette.testclient import TestClient

from tests.fakes import FakePool
from tests.ingress.test_problems import ROUTES, refusal

INTEGERS = [
    *(
        (route, path)
        for route in ("/generate", "/stream")
        for path in ("seed", "seeds.0", "num_images", "width", "preview_every", "preview_steps.0")
    ),
    *(
        ("/v1/images/generations", path)
        for path in ("seed", "seeds.0", "n", "num_inference_steps", "output_compression", "partial_images")
    ),
    *(
        ("/fal-ai/fast-sdxl", path)
        for path in ("seed", "num_images", "num_inference_steps", "image_size.width", "image_size.height")
    ),
]


def body_with(path: str, number: str) -> bytes:
    """Return a body that is right but for one number, written as given."""
    field, _, inner = path.partition(".")
    value = {"": "%s", "0": "[%s]", "width": '{"width": %s, "height": 64}', "height": '{"width": 64, "height": %s}'}[
        inner
    ] % number
    rest = ', "stream": true' if field == "partial_images" else ""
    return f'{{"prompt": "a", "{field}": {value}{rest}}}'.encode()


@pytest.mark.parametrize(("route", "path"), INTEGERS)
def test_an_integer_may_be_written_with_a_point(client: TestClient, route: str, path: str) -> None:
    number = {"width": "64.0", "height": "6.4e1", "seed": "7.0"}.get(path.rpartition(".")[2], "1.0")
    response = client.post(route, content=body_with(path, number), headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text


NO_INTEGERS = {
    "7.5": "valid integer",
    '"7"': "valid integer",
    "true": "valid integer",
    "1e20": "",  # too large for the field, in the words of the field
    "1" + "0" * 400: "",
    "1e400": "must be a finite number",
    "-Infinity": "must be a finite number",
    "NaN": "must be a finite number",
}


@pytest.mark.parametrize(("route", "path"), INTEGERS)
def test_what_is_no_integer_is_told_so(client: TestClient, pool: FakePool, route: str, path: str) -> None:
    for number, says in NO_INTEGERS.items():
        response = client.post(route, content=body_with(path, number), headers={"content-type": "application/json"})
        message, param = refusal(response)
        assert (response.status_code, param and param.split(".")[0]) == (ROUTES[route], path.split(".")[0]), number
        assert says in message
        assert says or "integer" not in message, "by JSON Schema it is one"
    assert not pool.slots


@pytest.mark.parametrize(
    ("route", "count"),
    [("/generate", "num_images"), ("/v1/images/generations", "n"), ("/fal-ai/fast-sdxl", "num_images")],
)
def test_a_seed_of_minus_one_is_a_random_one_which_is_told(
    client: TestClient, pool: FakePool, route: str, count: str
) -> None:
    told: list[int] = []
    for seed in ("-1", "-1.0"):
        body = f'{{"prompt": "a", "seed": {seed}, "{count}": 2}}'
        answer = client.post(route, content=body, headers={"content-type": "application/json"}).json()
        told += answer.get("seeds") or [image["seed"] for image in answer.get("images") or answer["data"]]
    assert told == [slot.seed for slot in pool.slots]
    assert len(set(told)) == 4
    assert all(0 <= seed < 2**32 for seed in told)


@pytest.mark.parametrize("route", ["/generate", "/v1/images/generations"])
def test_in_a_list_of_seeds_it_is_refused_with_a_reason(client: TestClient, route: str) -> None:
    response = client.post(route, json={"prompt": "a", "seeds": [1, -1]})
    assert refusal(response) == ("seeds.1: -1 (random) is only allowed for `seed`; list every seed here", "seeds.1")
