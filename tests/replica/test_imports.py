"""What replicas need is imported for good, and nothing that they do not need."""

import gc
import importlib.metadata
import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import Mock

import pytest
import torch

from serve_app.replica import imports
from serve_app.replica.imports import importing, told_of_gpus


def test_what_a_start_imports_is_never_looked_through_for_garbage() -> None:
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        imported: list[list[object]] = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(imported)


def test_a_start_does_not_find_peft_and_what_is_imported_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with importing():
        assert find_spec("peft") is None
    assert find_spec("peft") is not None
    there = ModuleType("peft")
    monkeypatch.setitem(sys.modules, "peft", there)
    with importing():
        assert sys.modules["peft"] is there
    assert sys.modules["peft"] is there


def test_installed_packages_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers and transformers both ask which there are, and it takes longest where many are installed."""
    looked: list[int] = []
    monkeypatch.setattr(imports, "_packages", cache(lambda: looked.append(1)))
    before = importlib.metadata.packages_distributions
    for _ in range(2):
        with importing():
            importlib.metadata.packages_distributions()
    assert looked == [1]
    assert importlib.metadata.packages_distributions is before


def test_garbage_is_collected_after_an_import_that_has_failed() -> None:
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("there_are", [True, False])
def test_who_asks_for_gpus_before_a_fork_is_told_and_nobody_else_is_asked(
    there_are: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", asked := Mock())
    with told_of_gpus(there_are):
        assert torch.cuda.is_available() is there_are
    asked.assert_not_called()
    assert torch.cuda.is_available is asked
