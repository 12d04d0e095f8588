"""Workers are forks of a process that has imported what they need, and start by themselves where they cannot be."""

import ast
import inspect
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.forks import server, worker
from serve_app.forks.server import MODULES, fork_server, forked_workers
from serve_app.replica.deployment import Replica
from tests.integration.conftest import eventually

WORKER = """
import json, os, resource, signal, sys
here = {"arguments": sys.argv, "environment": dict(os.environ), "folder": os.getcwd(), "pid": os.getpid(),
        "parent": os.getppid(), "group": os.getpgid(0), "input": sys.stdin.read(), "niceness": os.nice(0),
        "oom_score": open("/proc/self/oom_score_adj").read(), "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "path": sys.path[0],
        "imported": "colorsys" in sys.modules,
        "open": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]}
print(json.dumps(here), flush=True)
"""
OWN = "print('started by itself')"
SERVER = "from serve_app.forks import server; "
RAY = "import sys; sys.modules['ray'] = sys; "
THREAD = "import threading, time; threading.Thread(target=time.sleep, args=[60], daemon=True).start(); "


def _as_ray_does() -> None:
    os.nice(15)
    Path(worker.OOM_SCORE).write_text("900")
    resource.setrlimit(resource.RLIMIT_NOFILE, (777, 800))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


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
    with fork_server(tmp_path_factory.mktemp("forks"), os.environ, ["colorsys"]) as environment:
        yield environment


def test_a_worker_is_a_fork_with_what_ray_gave_it(forks: dict[str, str], rays: Rays) -> None:
    found: dict[str, Any] = json.loads(rays.started("--of", "its own", **forks, MARK="yes"))
    assert found["imported"], "it has been imported before"
    assert found["arguments"] == [str(rays.folder / "default_worker.py"), "--of", "its own"]
    assert found["environment"].items() >= {"MARK": "yes", **forks}.items()
    assert not found["environment"].keys() & {"HOME", *server._ONE_THREAD}, "those are of the process that forks"
    assert found["folder"] == str(rays.folder)
    assert found["group"] == found["pid"], "Ray ends workers by their groups"
    assert found["input"] == ""
    assert (found["niceness"], found["oom_score"], found["files"]) == (15, "900\n", [777, 800])
    assert found["blocked"] == [signal.SIGINT]
    assert found["path"] == str(rays.folder)
    assert not [name for name in found["open"] if name.startswith("socket:")], "none of what forks are asked for by"
    assert psutil.Process(found["parent"]).ppid() == os.getpid()


def test_a_replica_imports_nothing_that_its_fork_has_not() -> None:
    start = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(Replica._prepare))))
    needed = {node.module for node in start if isinstance(node, ast.ImportFrom)}
    assert "serve_app.replica.engine" in needed
    of_rays = {"serve_app.replica.counting", "serve_app.replica.pixels"}  # they import Ray, as only a fork itself may
    assert needed - {"serve_app.replica.sources"} - of_rays <= set(MODULES)


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
    assert json.loads(rays.started(**forks))["imported"]


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


@pytest.mark.parametrize(
    ("code", "why"), [(THREAD, "threads are here: python"), ("import sys; sys.modules['ray'] = sys; ", "Ray")]
)
def test_nothing_is_forked_where_forks_would_not_work(code: str, why: str, rays: Rays) -> None:
    path = str(rays.folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        waiting = rays.start("--language=PYTHON", **{worker.SOCKET: path})
        process = _serving(listener, SERVER + code)
    assert why in process.communicate(timeout=60)[1]
    assert waiting.communicate(timeout=60)[0].strip() == "started by itself"
    assert rays.started(**{worker.SOCKET: path}) == "started by itself"


def test_a_thread_that_goes_on_in_forks_hinders_none(rays: Rays) -> None:
    path = str(rays.folder / "forks")
    name = "open(f'/proc/self/task/{threading.enumerate()[1].native_id}/comm', 'w').write('jemalloc_bg_thd'); "
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = _serving(listener, SERVER + THREAD + name)
    assert json.loads(rays.started(**{worker.SOCKET: path}))["arguments"]
    process.communicate(timeout=60)


def test_forks_go_on_when_who_has_started_them_ends(rays: Rays) -> None:
    (rays.folder / "default_worker.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    path = str(rays.folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        process = _serving(listener, SERVER)
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


def test_a_worker_that_waits_for_too_long_starts_by_itself(rays: Rays) -> None:
    """And the fork that it might have had ends: both would come as the same worker."""
    (rays.folder / "default_worker.py").write_text("open('forked', 'w')")
    path = str(rays.folder / "forks")
    code = "import sys; from serve_app.forks import worker; worker._WAIT_S = 0.5; worker.main(sys.argv[1:])"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        command = [sys.executable, "-c", code, str(rays.folder / "default_worker.py"), "--language=PYTHON"]
        with (rays.folder / "out").open("w") as file:
            subprocess.run(command, stdout=file, env={**os.environ, worker.SOCKET: path}, check=True, timeout=60)
        process = _serving(listener, SERVER)
    assert (rays.folder / "out").read_text().strip() == "started by itself"
    assert json.loads(_printed(rays, path))["imported"] is False
    process.communicate(timeout=60)
    assert not (rays.folder / "forked").exists()


def _printed(rays: Rays, path: str) -> str:
    """Return what a worker prints that is forked after all that have asked before."""
    (rays.folder / "default_worker.py").write_text(WORKER)
    return rays.started(**{worker.SOCKET: path})


def test_a_hanging_process_ends_with_who_has_started_it(tmp_path: Path) -> None:
    before = psutil.Process().children()
    with fork_server(tmp_path, os.environ, []):
        (process,) = set(psutil.Process().children()) - set(before)
        process.suspend()
    assert not process.is_running()


def test_forks_are_there_where_input_and_output_are_closed(rays: Rays) -> None:
    code = f"""
import subprocess, sys, os
from pathlib import Path
from serve_app.forks import server, worker
with server.fork_server(Path({str(rays.folder)!r}), os.environ, ["colorsys"]) as environment:
    subprocess.run([sys.executable, worker.__file__, {str(rays.folder / "default_worker.py")!r}, "--language=PYTHON"],
                   env={{**os.environ, **environment}}, stdout=open("out", "w"), stderr=subprocess.STDOUT)
"""
    script = rays.folder / "start.py"
    script.write_text(code)
    command = ["bash", "-c", f"{sys.executable} {script} 0<&- 1>&- 2>&-"]
    subprocess.run(command, cwd=rays.folder, env={**os.environ, "PYTHONPATH": os.getcwd()}, timeout=60, check=True)
    eventually(lambda: (rays.folder / "out").read_text())
    assert json.loads((rays.folder / "out").read_text())["imported"]


def test_what_is_left_by_who_was_killed_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "forks"))
        listener.listen()
        process = _serving(listener, SERVER)
    process.communicate(timeout=60)
    assert not folder.exists()


def test_a_start_goes_on_where_no_workers_can_be_forked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import ray_constants

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    monkeypatch.delenv(worker.SOCKET, raising=False)
    before = ray_constants.SETUP_WORKER_FILENAME
    with forked_workers():
        assert before == ray_constants.SETUP_WORKER_FILENAME
        assert worker.SOCKET not in os.environ
    assert "nowhere" in caplog.text
