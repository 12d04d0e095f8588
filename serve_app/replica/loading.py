"""What a replica paints with, as its arguments ask for it."""

from serve_app.config import AppArgs
from serve_app.replica.checkpoint import Checkpoint, load_checkpoint, quiet_progress_bars
from serve_app.replica.device import prepare_device
from serve_app.replica.programs import use_compile_cache
from serve_app.replica.quantize import to_fp8
from serve_app.replica.sampling import check_steps


def load(args: AppArgs) -> Checkpoint:
    """Prepare this process and return its loaded checkpoint. Raises CheckpointError, DeviceError and diffusers' own errors."""
    quiet_progress_bars()
    if args.engine.compile_cache:
        use_compile_cache(args.engine.compile_cache)
    checkpoint = load_checkpoint(args.model, prepare_device(args.num_gpus, args.num_cpus))
    check_steps(checkpoint.scheduler_config, args.limits.max_steps)
    if args.engine.quantization == "fp8":
        to_fp8(checkpoint, args.model)
    return checkpoint
