"""Several processes with a GPU: they compile the same, and forks see the GPU that is theirs.

Collected only if there is a GPU: `pytest tests/gpu`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serve_app.forks import worker
from serve_app.forks.server import MODULES, fork_server
from serve_app.replica.imports import COMPILER

pytestmark = pytest.mark.timeout(600)


def _started(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-m", "tests.gpu.sums", str(folder)], stdout=subprocess.PIPE, text=True)


def _answers(processes: Sequence["subprocess.Popen[str]"]) -> list[dict[str, Any]]:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_processes_add_in_the_same_order_and_do_not_time_a_loaded_model_again(tmp_path: Path) -> None:
    """Block sizes decide the order of a sum: chosen by timing, they would differ between processes."""
    shared, other = tmp_path / "shared", tmp_path / "other"
    first, alone = _answers([_started(shared), _started(other)])
    kernels = set(shared.rglob("*.cubin"))
    later = _answers([_started(shared) for _ in range(3)])
    assert {answer["digest"] for answer in (first, alone, *later)} == {first["digest"]}
    assert not any("_red_" in name or "_per_" in name for name in first["timed"]), (
        "the order of a sum must not depend on timing"
    )
    assert [answer["timed"] for answer in later] == [[]] * 3
    assert set(shared.rglob("*.cubin")) == kernels, "those that read compiled models compile no kernel of ours again"


def test_a_fork_sees_the_gpu_that_it_is_given(tmp_path: Path) -> None:
    """Ray says which one is a replica's after the imports. One that asks for GPUs would leave a thread, or see all."""
    (tmp_path / "setup_worker.py").write_text("print('not forked')")
    script = tmp_path / "default_worker.py"
    script.write_text(
        "import sys; found = 'serve_app.replica.engine' in sys.modules; import torch; "
        "print(found, torch.cuda.is_available(), torch._C._cuda_getDeviceCount())"
    )
    with fork_server(tmp_path, os.environ, (*MODULES, *COMPILER), gpus=True) as environment:
        command = [sys.executable, worker.__file__, str(script), "--language=PYTHON"]
        environment = {**os.environ, **environment, "CUDA_VISIBLE_DEVICES": "0"}
        told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert told.stdout.split() == ["True", "True", "1"]
