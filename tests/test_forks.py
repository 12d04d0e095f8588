"""Workers are forks of a process that has imported what they need, and start by themselves where they cannot be."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.forks import server, worker
from serve_app.forks.server import fork_server, forked_workers
from tests.integration.conftest import eventually

WORKER = """
import json, os, sys
here = {"arguments": sys.argv, "environment": dict(os.environ), "folder": os.getcwd(), "pid": os.getpid(),
        "parent": os.getppid(), "group": os.getpgid(0), "input": sys.stdin.read(), "niceness": os.nice(0),
        "first_to_go": open("/proc/self/oom_score_adj").read(), "torch": "torch" in sys.modules,
        "open": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]}
print(json.dumps(here), flush=True)
"""
OWN = "print('started by itself')"
WITHOUT_IMPORTS = "from serve_app.forks import server; server._MODULES = (); "
THREAD = "import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start(); "


def _as_ray_does() -> None:
    os.nice(15)
    Path(worker.FIRST_TO_GO).write_text("900")


@dataclass(frozen=True)
class Rays:
    """A folder with what Ray has in its own: a worker, and what starts one."""

    folder: Path

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a worker as Ray does."""
        command = [sys.executable, worker.__file__, str(self.folder / "default_worker.py"), *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            preexec_fn=_as_ray_does,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd(), **environment},
        )

    def started(self, *arguments: str, **environment: str) -> str:
        output, _ = self.start("--language=PYTHON", *arguments, **environment).communicate(timeout=60)
        return output.strip()


@pytest.fixture
def rays(tmp_path: Path) -> Rays:
    (tmp_path / "default_worker.py").write_text(WORKER)
    (tmp_path / "setup_worker.py").write_text(OWN)
    return Rays(tmp_path)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with fork_server(tmp_path_factory.mktemp("forks"), os.environ) as environment:
        yield environment


def test_a_worker_is_a_fork_with_what_ray_gave_it(forks: dict[str, str], rays: Rays) -> None:
    found: dict[str, Any] = json.loads(rays.started("--of", "its own", **forks, MARK="yes"))
    assert found["torch"], "it has been imported before"
    assert found["arguments"] == [str(rays.folder / "default_worker.py"), "--of", "its own"]
    assert found["environment"].items() >= {"MARK": "yes", **forks}.items()
    assert not found["environment"].keys() & {"HOME", *server._ONE_THREAD}, "those are of the process that forks"
    assert found["folder"] == str(rays.folder)
    assert found["group"] == found["pid"], "Ray ends workers by their groups"
    assert found["input"] == ""
    assert (found["niceness"], found["first_to_go"]) == (15, "900\n")
    assert not [name for name in found["open"] if name.startswith("socket:")], "none of what forks are asked for by"
    assert psutil.Process(found["parent"]).ppid() == os.getpid()


def test_each_worker_is_another_fork(forks: dict[str, str], rays: Rays) -> None:
    processes = [rays.start("--language=PYTHON", **forks) for _ in range(5)]
    found = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert len({one["pid"] for one in found}) == 5
    assert len({one["parent"] for one in found}) == 1


def test_a_worker_with_an_environment_of_its_own_starts_by_itself(forks: dict[str, str], rays: Rays) -> None:
    """Libraries may read the environment when they are imported."""
    assert rays.started('--serialized-runtime-env-context={"env_vars": {"HF_HOME": "/"}}', **forks) == (
        "started by itself"
    )


def test_a_worker_that_nobody_forks_starts_by_itself(rays: Rays) -> None:
    assert rays.started(**{worker.SOCKET: str(rays.folder / "nobody")}) == "started by itself"
    assert rays.started() == "started by itself"


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"{}"])
def test_who_asks_for_nonsense_harms_no_others(sent: bytes, forks: dict[str, str], rays: Rays) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(forks[worker.SOCKET])
        if sent:
            socket.send_fds(connection, [b" "], worker.OUTPUT)
            connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert json.loads(rays.started(**forks))["torch"]


def _serving(listener: socket.socket, code: str) -> "subprocess.Popen[str]":
    """Start a process that forks, after this code."""
    code += f"import socket; server.main(socket.socket(fileno={listener.fileno()}), [])"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[listener.fileno()],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("code", "why"), [(THREAD, "2 threads"), ("import sys; sys.modules['ray'] = sys; ", "Ray")])
def test_nothing_is_forked_where_forks_would_not_work(code: str, why: str, rays: Rays) -> None:
    path = str(rays.folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        waiting = rays.start("--language=PYTHON", **{worker.SOCKET: path})
        process = _serving(listener, WITHOUT_IMPORTS + code)
    assert why in process.communicate(timeout=60)[1]
    assert waiting.communicate(timeout=60)[0].strip() == "started by itself"
    assert rays.started(**{worker.SOCKET: path}) == "started by itself"


def test_forks_go_on_when_who_has_started_them_ends(rays: Rays) -> None:
    (rays.folder / "default_worker.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    path = str(rays.folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = _serving(listener, WITHOUT_IMPORTS)
    with rays.start("--language=PYTHON", **{worker.SOCKET: path}) as asking, process:
        assert asking.stdout
        fork = psutil.Process(int(asking.stdout.readline()))
        assert asking.wait(60) == 0
        assert fork.is_running()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert fork.is_running()
    os.killpg(fork.pid, signal.SIGKILL)
    eventually(lambda: not fork.is_running() or fork.status() == psutil.STATUS_ZOMBIE)


def test_a_start_goes_on_where_no_workers_can_be_forked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import ray_constants

    monkeypatch.setattr("tempfile.tempdir", str(_too_long(tmp_path)))
    monkeypatch.delenv(worker.SOCKET, raising=False)
    before = ray_constants.SETUP_WORKER_FILENAME
    with forked_workers():
        assert before == ray_constants.SETUP_WORKER_FILENAME
        assert worker.SOCKET not in os.environ
    assert "AF_UNIX path too long" in caplog.text


def _too_long(folder: Path) -> Path:
    """Return a folder in which no socket can be."""
    deep = folder / ("a" * 100)
    deep.mkdir()
    return deep
