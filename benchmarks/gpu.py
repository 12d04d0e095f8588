"""`python -m benchmarks.gpu CHECKPOINT`: compare the service with its peers, as a table and as JSON.

All are measured in one run on the same machine with the same weights. The checkpoint is a diffusers folder, such as
`python -m benchmarks.make_checkpoint` writes. The service uses `configs/sdxl.yaml`; `key=value` changes its arguments.
With `--tiny` everything runs on the CPU with a tiny model, to test the plan itself.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.conditions import SDXL_CONFIG, TINY, TINY_OVERRIDES, Conditions, Workload
from benchmarks.plan import DERIVED, PHASES
from benchmarks.report import rows, table, write
from benchmarks.schedule import run_phases
from serve_app.models import tiny

_TINY_DEVICES = 2


def main(arguments: list[str] | None = None) -> None:
    options = _parse(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        conditions = _conditions(options, Path(folder))
        results = run_phases(PHASES, conditions, tuple(options.only or ()), time.time() + options.seconds, out)
        finished = rows(PHASES, DERIVED, results)
        write(out / "results.json", finished, results, conditions)
    print(table(finished))


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure our service and its peers.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a diffusers folder; not needed with --tiny")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="arguments of the service, such as engine.compile=full"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="only measures whose name matches, such as 'engine.*'; may be repeated",
    )
    parser.add_argument("--gpus", type=int, help="how many GPUs to use; all by default")
    parser.add_argument("--seconds", type=float, default=540, help="stop after this time, even if measures are missing")
    parser.add_argument("--each", type=float, help="seconds per series of samples")
    parser.add_argument("--config", type=Path, default=SDXL_CONFIG, help="the Serve config of the service")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder for results.json and the logs")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with a tiny model")
    return parser.parse_args(arguments)


def _conditions(options: argparse.Namespace, folder: Path) -> Conditions:
    given: list[str] = [*([str(options.checkpoint)] if options.tiny and options.checkpoint else []), *options.overrides]
    if options.tiny:
        return Conditions(
            checkpoint=tiny.build(folder),
            devices=tuple(range(options.gpus or _TINY_DEVICES)),
            cpu=True,
            config=options.config,
            overrides=(*TINY_OVERRIDES, *given),
            workload=TINY,
        )
    gpus = torch.cuda.device_count()
    if not gpus or options.checkpoint is None:
        sys.exit("needs a checkpoint and a GPU; --tiny needs neither")
    work = Workload()
    return Conditions(
        checkpoint=options.checkpoint.resolve(),
        devices=tuple(range(min(options.gpus or gpus, gpus))),
        config=options.config,
        overrides=tuple(given),
        workload=work.model_copy(update={"seconds": options.each}) if options.each else work,
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that child processes are stopped too
    main()
