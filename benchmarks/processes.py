"""CPU time used by the parts of a running service."""

import re
import time
from dataclasses import dataclass

import psutil

_PARTS = {
    "ingress": r"^ray::ServeReplica:.*:Ingress",
    "replicas": r"^ray::ServeReplica:.*:Replica",
    "proxy": r"^ray::ProxyActor|haproxy",
    "raylet": r"/raylet/raylet ",
}
"""Patterns for process titles. The object store is part of the raylet."""

PARTS = (*_PARTS, "rest")


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of CPU time by part, at a moment in seconds."""

    moment: float
    seconds: dict[str, float]

    def cores_since(self, before: "CpuTimes") -> dict[str, float]:
        """Return how many cores each part has used since `before`, on average."""
        passed = self.moment - before.moment
        return {part: (self.seconds[part] - before.seconds[part]) / passed for part in PARTS}


def cpu_times(root: int) -> CpuTimes:
    """Return the CPU time of a process and its running descendants."""
    seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    parent = psutil.Process(root)
    for process in [parent, *parent.children(recursive=True)]:
        try:
            times, title = process.cpu_times(), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        seconds[_part(title)] += times.user + times.system
    return CpuTimes(time.perf_counter(), seconds)


def replica_pids(root: int) -> list[int]:
    """Return the ids of the replicas' processes among the descendants of a process."""
    return [
        process.pid for process in psutil.Process(root).children(recursive=True) if _part(_title(process)) == "replicas"
    ]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _part(title: str) -> str:
    return next((part for part, pattern in _PARTS.items() if re.search(pattern, title)), "rest")
