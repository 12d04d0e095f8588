"""Settings that change while the service runs."""

import asyncio
import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from serve_app.config import AppArgs, FilesConfig
from serve_app.ingress.api import create_api
from serve_app.ingress.live import LiveApi
from serve_app.messages import Slot
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS

BODY = {"prompt": "a", "num_images": 3}
ONE_IMAGE = {"limits": {"max_images": 1}}


def changed(client: TestClient, api: LiveApi, args: AppArgs) -> None:
    """Change the settings in the app's own event loop."""
    assert client.portal is not None
    client.portal.call(api.change, args)


def test_new_requests_have_the_new_limits_and_running_ones_keep_theirs() -> None:
    begun, go_on = threading.Event(), threading.Event()

    async def before(slot: Slot) -> None:
        begun.set()
        await asyncio.to_thread(go_on.wait)

    service = OneModel(FakePool(before), ARGS, Metrics())
    api = create_api(service, ARGS)
    with TestClient(api) as client:
        answers = []
        running = threading.Thread(target=lambda: answers.append(client.post("/generate", json=BODY)))
        running.start()
        assert begun.wait(5)
        changed(client, api, ARGS.changed(ONE_IMAGE))
        refused = client.post("/generate", json=BODY)
        limit = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"][
            "num_images"
        ]
        go_on.set()
        running.join()
    assert refused.status_code == 422
    assert "num_images" in refused.text
    assert limit["maximum"] == 1
    assert len(answers[0].json()["images"]) == 3


def test_settings_that_cannot_be_used_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    api = create_api(OneModel(FakePool(), ARGS, Metrics()), ARGS)
    with TestClient(api) as client:
        with pytest.raises(ValueError, match=r"files\.path"):
            changed(client, api, ARGS.changed({"files": {"path": str(tmp_path / "file" / "below")}}))
        assert len(client.post("/generate", json=BODY).json()["images"]) == 3


def test_files_are_tidied_by_the_newest_settings_alone(tmp_path: Path) -> None:
    tidied: list[Path] = []
    folders = [tmp_path / "a", tmp_path / "b"]
    args = ARGS.model_copy(update={"files": FilesConfig(path=str(folders[0]), ttl_s=1)})
    api = create_api(OneModel(FakePool(), ARGS, Metrics()), args)
    with TestClient(api) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve_app.ingress.files.Files._tidy", lambda files: tidied.append(files._folder))
        changed(client, api, args.changed({"files": {"path": str(folders[1])}}))
        tidied.clear()
        while len(tidied) < 2:
            pass
    assert set(tidied) == {folders[1]}


def test_keys_are_asked_for_from_now_on(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right")
    api = create_api(OneModel(FakePool(), ARGS, Metrics()), ARGS)
    with TestClient(api) as client:
        changed(client, api, ARGS.changed({"auth": {"keys_file": str(keys)}}))
        assert client.post("/generate", json=BODY).status_code == 401
        assert client.post("/generate", json=BODY, headers={"Authorization": "Bearer right"}).status_code == 200


def test_the_same_settings_again_are_no_change() -> None:
    api = create_api(OneModel(FakePool(), ARGS, Metrics()), ARGS)
    with TestClient(api) as client:
        before = api.newest
        changed(client, api, ARGS.changed({}))
        assert api.newest is before
        changed(client, api, ARGS.changed(ONE_IMAGE))
        changed(client, api, ARGS)
        assert client.post("/generate", json=BODY).status_code == 200
