"""Images pause after a sketch and go on, whichever replicas and ingress replicas have the one part and the other."""

import io
from base64 import b64decode

import httpx2
from PIL import Image

from serve_app.metadata import embedded_parameters
from tests.integration.conftest import SMALL, frames, start_of

TRIES = 3
BODY = {"prompt": "a red apple", **SMALL, "num_inference_steps": 20, "scheduler": "dpmpp_2m_sde", "seed": 40}


async def test_those_that_go_on_have_the_pictures_of_what_never_stopped(pair: str) -> None:
    async with httpx2.AsyncClient(base_url=pair, timeout=60) as client:
        whole = [image["b64_json"] for image in (await client.post("/generate", json=BODY)).json()["images"]]
        for _ in range(TRIES):
            async with client.stream("POST", "/stream", json={**BODY, "pause_after": 6}) as response:
                stream = frames(response)
                id_ = await start_of(stream)
                sketches = [await anext(event async for event in stream if event["type"] == "paused") for _ in whole]
                assert {(sketch["step"], sketch["media_type"]) for sketch in sketches} == {(6, "image/jpeg")}
                assert sorted(sketch["index"] for sketch in sketches) == [0, 1, 2, 3]
                unfinished = (await client.get(f"/generations/{id_}")).json()
                assert [image["status"] for image in unfinished["images"]] == ["paused"] * 4
                assert (await client.post(f"/generations/{id_}/images/3/resume")).json()["resumed"] == [3]
                answer = await client.post(f"/generations/{id_}/resume", json={"images": [1, 3]})
                assert answer.json() == {"id": id_, "resumed": [1]}
                refused = await client.post(f"/generations/{id_}/images/1/resume")
                assert (refused.status_code, refused.json()["error"]["type"]) == (409, "not_paused")
                for index in (0, 2):
                    answer = await client.delete(f"/generations/{id_}/images/{index}")
                    assert index in answer.json()["cancelled"]
                rest = [event async for event in stream]
            finished = {event["index"]: event["b64_json"] for event in rest if event["type"] == "image"}
            assert finished == {1: whole[1], 3: whole[3]}
            assert sorted(event["index"] for event in rest if event["type"] == "cancelled") == [0, 2]
            assert rest[-1]["type"] == "completed"
        assert (await client.post("/generations/unknown/resume", json={})).status_code == 404


async def test_one_that_goes_on_as_something_else_is_the_branch_made_from_nothing(pair: str) -> None:
    other = {"prompt": "a green frog", "negative_prompt": "dull", "guidance_scale": 3.0}
    async with httpx2.AsyncClient(base_url=pair, timeout=60) as client:
        async with client.stream("POST", "/stream", json={**BODY, "num_images": 2, "pause_after": 6}) as response:
            stream = frames(response)
            id_ = await start_of(stream)
            for _ in range(2):
                await anext(event async for event in stream if event["type"] == "paused")
            refused = await client.post(f"/generations/{id_}/images/1/resume", json={"prompt": ""})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "prompt")
            refused = await client.post(f"/generations/{id_}/resume", json={"prompt": "embedding:missing"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "prompt")
            answer = await client.post(f"/generations/{id_}/images/1/resume", json=other)
            assert answer.json()["resumed"] == [1]
            await client.delete(f"/generations/{id_}/images/0")
            image = await anext(event async for event in stream if event["type"] == "image")
        file = b64decode(image["b64_json"])
        embedded = embedded_parameters(Image.open(io.BytesIO(file)))
        assert embedded
        again = embedded.request.model_dump(mode="json", exclude_unset=True)
        kept = {name: BODY.get(name, usual) for name, usual in (("prompt", ""), ("guidance_scale", 5.0))}
        asked = {
            **BODY,
            "seed": 41,
            "num_images": 1,
            **other,
            "before": [{"until_step": 6, "negative_prompt": "", **kept}],
        }
        for body in (again, asked):
            made = (await client.post("/generate", json=body)).json()
            assert b64decode(made["images"][0]["b64_json"]) == file, "bytes of the file, parameters and all"
        assert made["parameters"] == image["parameters"]


async def test_the_best_sketches_become_the_pictures_that_they_would_have_become(pair: str) -> None:
    async with httpx2.AsyncClient(base_url=pair, timeout=60) as client:
        whole = (await client.post("/generate", json=BODY)).json()["images"]
        keep = {"at_step": 6, "best": 2, "by": "colourfulness"}
        async with client.stream("POST", "/stream", json={**BODY, "keep": keep}) as response:
            events = [event async for event in frames(response)]
        scores = {event["index"]: event["score"] for event in events if event["type"] == "paused"}
        best = sorted(sorted(scores, key=scores.__getitem__)[2:])
        kept = {event["index"]: event["b64_json"] for event in events if event["type"] == "image"}
        assert kept == {index: whole[index]["b64_json"] for index in best}
        async with client.stream("POST", "/stream", json={**BODY, "keep": {**keep, "by": "words"}}) as response:
            sketches = [event async for event in frames(response) if event["type"] == "paused"]
        assert [sketch["score"] for sketch in sketches] == [3] * 4, "a scorer of the service's own"
        answer = (await client.post("/generate", json={**BODY, "keep": keep})).json()
        assert [image["index"] for image in answer["images"] if image["status"] == "succeeded"] == best, "again"
