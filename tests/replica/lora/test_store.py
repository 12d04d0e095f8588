"""The adapters that a replica has read."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app.config import AdaptersConfig
from serve_app.errors import AdapterError
from serve_app.recipe import Lora
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.lora.store import LoraStore, make_store
from tests.random_lora import save_lora


def store_of(folder: Path, checkpoint: Checkpoint, cache_bytes: int = 2**20) -> LoraStore:
    store = make_store(AdaptersConfig(path=str(folder), cache_bytes=cache_bytes), checkpoint)
    assert store is not None
    return store


@pytest.mark.parametrize(("cache_bytes", "again"), [(2**20, True), (0, False)])
def test_each_is_read_once_as_long_as_there_is_room(
    tiny_path: Path, tmp_path: Path, checkpoint: Checkpoint, cache_bytes: int, again: bool
) -> None:
    for seed, name in enumerate("ab"):
        save_lora(tiny_path, tmp_path / f"{name}.safetensors", seed)
    store = store_of(tmp_path, checkpoint, cache_bytes)
    first = store.read([Lora(name="a"), Lora(name="b", scale=0.5)])
    assert [scale for _, scale in first.key] == [1.0, 0.5]
    assert (store.read([Lora(name="a")]).deltas[0] is first.deltas[0]) == again


def test_one_that_is_there_does_not_wait_for_one_that_is_being_read(
    tiny_path: Path, tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("ab"):
        save_lora(tiny_path, tmp_path / f"{name}.safetensors", seed)
    store, begun, woken = store_of(tmp_path, checkpoint), threading.Event(), threading.Event()
    known = store.read([Lora(name="a")])

    def hang(*_: object) -> None:
        begun.set()
        woken.wait(60)
        raise AdapterError("b", "cannot be read")

    monkeypatch.setattr("serve_app.replica.lora.store.read_lora", hang)
    with ThreadPoolExecutor(2) as threads:
        try:
            slow = threads.submit(store.read, [Lora(name="b")])
            assert begun.wait(60)
            assert threads.submit(store.read, [Lora(name="a")]).result(5) == known
        finally:
            woken.set()
    assert isinstance(slow.exception(), AdapterError)


def test_another_file_of_that_name_is_refused(tiny_path: Path, tmp_path: Path, checkpoint: Checkpoint) -> None:
    file = save_lora(tiny_path, tmp_path / "a.safetensors", 1)
    ((hash_, _),) = store_of(tmp_path, checkpoint).read([Lora(name="a")]).key
    kept = store_of(tmp_path, checkpoint)
    kept.read([Lora(name="a", hash=hash_)])
    save_lora(tiny_path, file, 2)
    assert kept.read([Lora(name="a", hash=hash_)]).key == ((hash_, 1.0),), "what was read is what was asked for"
    with pytest.raises(AdapterError, match="another file by now"):
        store_of(tmp_path, checkpoint).read([Lora(name="a", hash=hash_)])


def test_a_folder_that_is_not_there_is_told_at_the_start(
    tmp_path: Path, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(tmp_path / "later", checkpoint)
    assert "later is not a folder here" in caplog.text
    with pytest.raises(AdapterError, match=r"adapters\.path is not a folder"):
        store.read([Lora(name="a")])


def test_what_is_at_hand_is_what_was_read_and_all_of_it(
    tiny_path: Path, tmp_path: Path, checkpoint: Checkpoint
) -> None:
    for seed, name in enumerate("ab"):
        save_lora(tiny_path, tmp_path / f"{name}.safetensors", seed)
    store = store_of(tmp_path, checkpoint)
    a = store.read([Lora(name="a")])
    ((hash_, _),) = a.key
    known = Lora(name="a", scale=0.5, hash=hash_)
    at_hand = store.at_hand([known])
    assert at_hand is not None
    assert (at_hand.key, at_hand.deltas) == (((hash_, 0.5),), a.deltas)
    assert store.at_hand([Lora(name="a")]) is None, "it may be another file by now"
    assert store.at_hand([known, Lora(name="b", hash="sha256:0")]) is None
