"""`python -m benchmarks.soak`: let clients leave and parts of the service die, and count what was lost.

The service runs on several raylets of this machine, with two replicas of a tiny model and two ingress replicas. Each
phase prints what was sent and what became of it. The run fails where anything accepted was lost, delivered twice or
another picture, where something is left over or has grown, or where a fault did not happen.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.soak.checks import table
from benchmarks.soak.cluster import Part, open_service
from benchmarks.soak.phases import Size, Soak
from serve_app.config import AdmissionConfig, AppArgs, EngineConfig, LimitsConfig, ModelConfig, StreamsConfig
from serve_app.models import tiny

_KILLS = (Part.REPLICA, Part.INGRESS, Part.PROXY, Part.CONTROLLER, Part.RAYLET)
_FULL = Size(warm_up_s=30, cancels=1000, flood_s=120, fault_s=25, kills=_KILLS, freezes=True, samples=200)
_SHORT = Size(warm_up_s=5, cancels=60, flood_s=5, fault_s=6, kills=_KILLS[:2], freezes=False, samples=50, judged=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Look for what is lost when clients leave and parts die.")
    parser.add_argument("--short", action="store_true", help="a minute of it, without judging times and memory")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' chances")
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder, open_service(_args(tiny.build(Path(folder)))) as service:
        soak = Soak(service, _SHORT if options.short else _FULL)
        try:
            asyncio.run(soak.run())
        finally:
            print(f"\n{table(soak.rows)}\n")
    if soak.broken:
        sys.exit("\n".join(["broken:", *soak.broken]))
    print("nothing was lost, nothing is left")


def _args(checkpoint: Path) -> AppArgs:
    return AppArgs(
        num_replicas=2,
        num_cpus=1,
        ingress_replicas=2,
        model=ModelConfig(path=str(checkpoint), name="tiny", width=64, height=64, max_size=128),
        engine=EngineConfig(max_batch_size=4),
        limits=LimitsConfig(max_images=16, max_steps=998),
        admission=AdmissionConfig(max_waiting_images=16),
        streams=StreamsConfig(keep_s=1),
    )


if __name__ == "__main__":
    main()
