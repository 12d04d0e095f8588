"""What replicas import is imported by idle processes, before one of them is a replica."""

import ast
import gc
import importlib
import importlib.metadata
import inspect
import sys
import textwrap
import threading
from functools import cache
from importlib.util import find_spec
from itertools import chain, repeat
from types import ModuleType
from unittest.mock import Mock

import pytest

from serve_app.replica import imports
from serve_app.replica.deployment import Replica
from serve_app.replica.imports import MODULES, import_all, importing


def test_a_start_imports_nothing_that_an_idle_process_would_not() -> None:
    start = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(Replica._prepare))))
    needed = {node.module for node in start if isinstance(node, ast.ImportFrom)}
    assert "serve_app.replica.engine" in needed
    assert needed - {"serve_app.replica.sources"} <= set(MODULES)


def test_an_idle_process_imports_what_replicas_need_until_it_is_something(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    actor_ids = chain([None, None], repeat("an ingress"))
    monkeypatch.setattr(imports, "import_module", imported.append)
    monkeypatch.setattr("ray.get_runtime_context", lambda: Mock(get_actor_id=lambda: next(actor_ids)))
    sys.modules.pop("serve_app.preload", None)
    importlib.import_module("serve_app.preload")
    for thread in threading.enumerate():
        if thread.name == "imports":
            thread.join()
    assert tuple(imported) == MODULES[:2]


def test_no_two_threads_import_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []
    monkeypatch.setattr(imports, "import_module", lambda _: held.append(imports._one_at_a_time.locked()))
    import_all()
    assert held == [True] * len(MODULES)


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
