"""Files that expire, in a folder shared by several processes."""

import asyncio
import base64
import gc
import os
import threading
import time
from collections.abc import Callable
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from serve_app.config import AppArgs, FilesConfig
from serve_app.errors import NotFound
from serve_app.ingress.api import create_api
from serve_app.ingress.file_urls import urls_of
from serve_app.ingress.files import Files
from serve_app.schemas import Picture
from tests.fakes import FakePool, Metrics, OneModel

REQUEST = Request(
    {
        "type": "http",
        "scheme": "http",
        "server": ("host", 80),
        "path": "/v1/images/generations",
        "root_path": "",
        "headers": [],
    }
)
MEGABYTE = 2**20


def picture(content: bytes = b"picture", media_type: str = "image/png") -> Picture:
    return Picture(
        index=0, seed=0, width=8, height=8, media_type=media_type, b64_json=base64.b64encode(content).decode()
    )


def age(folder: Path, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / name, (then, then))


async def saved(files: Files, content: bytes = b"picture") -> str:
    """Return the name of a new file."""
    return await files.keep(picture(content))


async def test_what_is_saved_is_found_under_an_unguessable_name(tmp_path: Path) -> None:
    files, elsewhere = (Files(tmp_path / "new" / "folder", FilesConfig()) for _ in range(2))
    names = [await saved(files, b"%d" % i) for i in range(20)]
    assert len(set(names)) == 20
    assert all(len(name) == 36 for name in names)
    assert [await elsewhere.read(name) for name in names] == [b"%d" % i for i in range(20)], (
        "whichever process is asked"
    )
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(names), "no unfinished file is left"


async def test_a_picture_is_stored_once_however_often_it_is_told_and_by_whom(tmp_path: Path) -> None:
    here, elsewhere = (Files(tmp_path, FilesConfig(ttl_s=100)) for _ in range(2))
    names = set(await asyncio.gather(*[saved(files) for files in (here, elsewhere) * 20]))
    (name,) = names
    assert os.listdir(tmp_path) == [name]
    age(tmp_path, name, 99)
    written = (tmp_path / name).stat().st_ino
    assert await saved(here) == name
    assert (tmp_path / name).stat().st_ino == written
    assert (tmp_path / name).stat().st_mtime > time.time() - 10, "its time begins anew"


def pictures_in_memory() -> int:
    gc.collect()
    return sum(type(kept) is Picture for kept in gc.get_objects())


async def test_a_disk_that_hangs_costs_only_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More hang than any pool of threads has, and those that have given up are not kept in memory."""
    files, mends, write = Files(tmp_path, FilesConfig()), threading.Event(), Path.write_bytes
    before = pictures_in_memory()

    def hanging(self: Path, data: bytes) -> int:
        mends.wait(60)
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", hanging)
    try:
        keeping = [asyncio.create_task(saved(files, b"%d" % i)) for i in range(50)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "done") == "done"
        for task in keeping:
            task.cancel()
        await asyncio.wait(keeping)
        del task, keeping
        assert pictures_in_memory() <= before + 4
    finally:
        mends.set()
    async with asyncio.timeout(5):
        last = await saved(files, b"last")
    assert last in os.listdir(tmp_path)
    assert len(os.listdir(tmp_path)) <= 4 + 1


async def test_a_full_disk_keeps_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, write = Files(tmp_path, FilesConfig()), Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        await saved(files)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        (None, "http://host/files/"),
        ("https://images.example.com", "https://images.example.com/files/"),
        ("https://a.b/c/", "https://a.b/c/files/"),
    ],
)
async def test_urls_begin_as_configured(tmp_path: Path, base_url: str | None, expected: str) -> None:
    url = await urls_of(Files(tmp_path, FilesConfig(base_url=base_url)), REQUEST).of(picture())
    assert url is not None
    assert url.startswith(expected)


async def test_a_file_whose_time_has_passed_is_gone_and_then_deleted(tmp_path: Path) -> None:
    files = Files(tmp_path, FilesConfig(ttl_s=100))
    old, young = await saved(files, b"old"), await saved(files, b"young")
    age(tmp_path, old, 101)
    age(tmp_path, young, 99)
    with pytest.raises(NotFound):
        await files.read(old)
    async with files.tidied():
        while (tmp_path / old).exists():
            await files.read(young)
    assert os.listdir(tmp_path) == [young]


async def test_the_oldest_go_first_when_there_are_too_many(tmp_path: Path) -> None:
    files = Files(tmp_path, FilesConfig(max_bytes=2 * MEGABYTE))
    names = []
    for i in range(4):
        names.append(await saved(files, bytes([i]) * (MEGABYTE - 100)))
        age(tmp_path, names[-1], 10 - i)
    last = await saved(files, bytes([9]) * (MEGABYTE - 100))
    assert sorted(os.listdir(tmp_path)) == sorted([names[-1], last])


async def test_what_is_not_ours_is_left_alone_and_what_was_never_finished_is_not(tmp_path: Path) -> None:
    files = Files(tmp_path, FilesConfig(ttl_s=100))
    unfinished = "a" * 32 + ".png.part"
    for name in ("holiday.png", unfinished):
        (tmp_path / name).write_bytes(b"")
        age(tmp_path, name, 1000)
    with pytest.raises(NotFound):
        await files.read(unfinished)
    await saved(files)
    assert (tmp_path / "holiday.png").exists()
    assert not (tmp_path / unfinished).exists()


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., TestClient]:
    def make(**files: Any) -> TestClient:
        args = AppArgs(files=FilesConfig(**files))
        return TestClient(create_api(OneModel(FakePool(), args, Metrics()), args))

    return make


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_file_is_sent_as_what_it_is(serve: Callable[..., TestClient], tmp_path: Path, output_format: str) -> None:
    with serve(path=str(tmp_path / "files")) as client:
        name = f"{'a' * 32}.{output_format}"
        (tmp_path / "files" / name).write_bytes(b"picture")
        response = client.get(f"/files/{name}")
    assert (response.status_code, response.content, response.headers["content-type"]) == (
        200,
        b"picture",
        f"image/{output_format}",
    )
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "name",
    [
        "..%2Fsecret.png",
        "../secret.png",
        "%2e%2e/secret.png",
        "secret.png",
        "a" * 32 + ".png%00",
        "a" * 32,
        "",
        "a" * 32 + ".png",
    ],
)
def test_nothing_else_can_be_fetched(serve: Callable[..., TestClient], tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "secret.png").write_bytes(b"secret")
    with serve(path=str(tmp_path / "files")) as client:
        response = client.get(f"/files/{name}")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")


def test_without_a_folder_there_is_no_such_route(serve: Callable[..., TestClient]) -> None:
    with serve() as client:
        assert "/files/{name}" not in client.get("/openapi.json").json()["paths"]
        assert client.get(f"/files/{'a' * 32}.png").status_code == 404


async def test_what_lies_there_besides_is_neither_handed_out_nor_in_the_way(tmp_path: Path) -> None:
    files = Files(tmp_path, FilesConfig(ttl_s=100))
    (tmp_path.parent / "secret").write_text("secret")
    (tmp_path / ("a" * 32 + ".png")).symlink_to(tmp_path.parent / "secret")
    (tmp_path / ("b" * 32 + ".png")).mkdir()
    age(tmp_path, "b" * 32 + ".png", 101)
    old = await saved(files, b"old")
    age(tmp_path, old, 101)
    young = await saved(files)
    assert not (tmp_path / old).exists(), "a directory of such a name does not stop the tidying"
    assert await files.read(young) == b"picture"
    for letter in "ab":
        with pytest.raises(NotFound):
            await files.read(letter * 32 + ".png")


async def test_a_folder_that_cannot_be_tidied_costs_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError("not yours")

    files = Files(tmp_path, FilesConfig(ttl_s=100))
    old = await saved(files, b"old")
    age(tmp_path, old, 101)
    monkeypatch.setattr(Path, "unlink", broken)
    assert await files.read(await saved(files)) == b"picture"
    assert "cannot delete old images" in caplog.text


@pytest.mark.parametrize("path", ["{file}", "{file}/below", "/proc/no-such-folder", "/proc/self"])
def test_a_folder_that_cannot_be_used_is_refused(serve: Callable[..., TestClient], tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^files\.path: .* cannot be created or written to: "):
        serve(path=path.format(file=tmp_path / "file"))
