"""What a start has compiled, others read."""

import gc
import json
import logging
import marshal
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from serve_app.replica import compilation, kept_models
from serve_app.replica.kept_models import KeptModels
from tests.replica import layer
from tests.replica.layer import compilations

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from the compiler's own imports
    pytest.mark.timeout(600),
]


def test_starts_share_what_one_has_compiled(compiler: None, kernels: Path) -> None:
    """Two at the same time, as the replicas of a machine, and this one later: one compiles, all generate the same."""
    command = [sys.executable, "-c", "from tests.replica.layer import main; main()", str(kernels)]
    lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300).stdout.splitlines()
    answers = [line.split() for line in lines]
    own, picture = layer.answer()
    assert own == 0
    assert sorted(compiled for compiled, _ in answers) == ["0", "1"]
    assert {picture for _, picture in answers} == {picture}


@torch.inference_mode()
def test_a_kept_model_that_cannot_be_read_is_compiled_again(
    compiler: None, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer.compiled().warm_up(layer.LATENTS)
    (file,) = kept.glob("*.bin")
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    with caplog.at_level(logging.WARNING, "ray.serve"):
        layer.compiled().warm_up(layer.LATENTS)
    assert str(file) in caplog.text
    assert len(file.read_bytes()) > 1000
    assert {each.suffix for each in kept.iterdir()} == {".bin", ".lock"}
    assert compilations() == 2


@torch.inference_mode()
def test_what_a_start_needed_the_next_reads_ahead(compiler: None, kept: Path) -> None:
    noted = kept / "start.json"
    first = KeptModels(lambda: noted)
    layer.compiled(kept=first).warm_up(layer.LATENTS)
    first.note()
    (file,) = kept.glob("*.bin")
    second = KeptModels(lambda: noted)
    for thread in threading.enumerate():
        if thread.name.startswith("compiled models"):
            thread.join()
    file.unlink()  # what was read ahead is not read again
    layer.compiled(kept=second).warm_up(layer.LATENTS)
    assert compilations() == 1
    second.note()
    assert json.loads(noted.read_text()) == [file.name]


def bytecode(kept: Path) -> list[Path]:
    return list(kept.parent.rglob(f"*.{sys.implementation.cache_tag}"))


@torch.inference_mode()
def test_the_text_of_what_is_read_is_compiled_once(compiler: None, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer.compiled().warm_up(layer.LATENTS)
    first = layer.compiled()
    first.warm_up(layer.LATENTS)
    assert bytecode(kept)
    monkeypatch.setattr(kept_models, "compile", None, raising=False)  # hides Python's own
    second = layer.compiled()
    second.warm_up(layer.LATENTS)
    assert compilations() == 1
    assert torch.equal(first(layer.LATENTS), second(layer.LATENTS))


@pytest.mark.parametrize("wrong", [b"", marshal.dumps(None), marshal.dumps(compile("1", "", "exec"))[:-9]])
@torch.inference_mode()
def test_bytecode_that_is_damaged_is_made_again(compiler: None, kept: Path, wrong: bytes) -> None:
    layer.compiled().warm_up(layer.LATENTS)
    layer.compiled().warm_up(layer.LATENTS)
    before = {file: file.read_bytes() for file in bytecode(kept)}
    for file in before:
        file.write_bytes(wrong)
    layer.compiled().warm_up(layer.LATENTS)
    assert compilations() == 1
    assert any(file.read_bytes() == whole for file, whole in before.items())


@torch.inference_mode()
def test_bytecode_that_cannot_be_kept_is_made_each_time(
    compiler: None, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layer.compiled().warm_up(layer.LATENTS)
    layer.compiled().warm_up(layer.LATENTS)
    files = bytecode(kept)
    for file in files:
        file.unlink()
        (file / "in the way").mkdir(parents=True)
    try:
        layer.compiled().warm_up(layer.LATENTS)
    finally:
        for file in files:
            shutil.rmtree(file)
    assert compilations() == 1
    assert "could not be saved" in caplog.text


@torch.inference_mode()
def test_what_is_read_is_never_looked_through_for_garbage(compiler: None, kept: Path) -> None:
    """SDXL's compiled models are some hundred thousand objects: to look through them would hold up every image."""
    layer.compiled().warm_up(layer.LATENTS)
    gc.collect()
    gc.freeze()
    before = gc.get_freeze_count()
    later = layer.compiled()
    later.warm_up(layer.LATENTS)
    assert compilations() == 1
    assert gc.isenabled()
    assert gc.get_freeze_count() > before + 100


@pytest.mark.parametrize("noted", ["", "7", "[7]", "[" * 100_000, '["../../elsewhere.bin"]', '["gone.bin"]'])
def test_a_note_that_is_wrong_costs_only_what_reading_ahead_saves(
    compiler: None, kept: Path, caplog: pytest.LogCaptureFixture, noted: str
) -> None:
    kept.mkdir(parents=True)
    file = kept / "start.json"
    file.write_text(noted)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        assert KeptModels(lambda: file).read(kept / "another.bin") is None
    assert (str(file) in caplog.text) == (not noted.startswith('["'))


@torch.inference_mode()
def test_models_are_saved_to_a_folder_without_locks(
    compiler: None, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(compilation, "FileLock", no_locks)
    with caplog.at_level(logging.WARNING, "ray.serve"):
        layer.compiled().warm_up(layer.LATENTS)
    assert "cannot be locked" in caplog.text
    assert len(list(kept.glob("*.bin"))) == 1
