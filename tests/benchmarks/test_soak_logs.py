"""What the soak reads in the logs: tracebacks, whole, and nothing else."""

from pathlib import Path

import pytest

from benchmarks.soak.logs import Logs, last_line, tracebacks

ACCESS = "INFO 2026-11-27 01:54:06,569 soak_Ingress hbk457yi 00dd -- POST /generate 429 13.6ms\n"
PLAIN = """\
Traceback (most recent call last):
  File "a.py", line 1, in f
    raise ValueError("no")
ValueError: no
"""
GROUP = """\
Task exception was never retrieved
  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 1, in f
  |     async with create_task_group() as group:
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "b.py", line 2, in g
    | anyio.BrokenResourceError
    +------------------------------------
"""
CHAINED = f"{PLAIN}\nDuring handling of the above exception, another exception occurred:\n\n{PLAIN}"
OF_ACTOR = """\
ERROR 2026-11-27 02:02:36,700 controller 1 -- Unexpected error invoking health check
Traceback (most recent call last):
  File "proxy_state.py", line 265, in is_healthy
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tactor_id: b762
"""


@pytest.mark.parametrize(("log", "ends"), [
    (ACCESS * 2, []),
    (ACCESS + PLAIN + ACCESS, ["ValueError: no"]),
    (CHAINED, ["ValueError: no", "ValueError: no"]),
    (GROUP + ACCESS, [
        "ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)", "anyio.BrokenResourceError",
    ]),
    (OF_ACTOR, ["ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task."]),
    ("\n".join(PLAIN.splitlines()[:2]) + "\n" + ACCESS, ["a traceback without an end"]),
])  # fmt: skip
def test_a_traceback_is_told_by_the_line_that_names_the_exception(log: str, ends: list[str]) -> None:
    assert [last_line(traceback) for traceback in tracebacks(log)] == ends


@pytest.mark.parametrize(("actor", "killed", "found"), [
    ("ServeController", {"b762"}, False),
    ("ServeController", {"a001"}, True),
    ("ServeController", set(), True),
    ("SERVE_REPLICA::soak", {"b762"}, True),
])  # fmt: skip
def test_only_the_controller_may_complain_of_an_actor_and_only_of_one_that_was_killed(
    tmp_path: Path, actor: str, killed: set[str], found: bool
) -> None:
    log = tmp_path / "worker-1.err"
    log.write_text(f":job_id:01\n:actor_name:{actor}\n{PLAIN}")
    logs = Logs(tmp_path)
    assert not logs.tracebacks(), "what was there before does not count"
    with log.open("a") as more:
        more.write(OF_ACTOR)
    assert bool(logs.tracebacks(killed)) is found
