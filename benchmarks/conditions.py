"""The conditions of a benchmark: the workload, the checkpoint, the devices, and the service's settings."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from serve_app.config import AppArgs
from serve_app.messages import Slot

SDXL_CONFIG = Path(__file__).parent.parent / "configs" / "sdxl.yaml"


class Frozen(BaseModel):
    """Data that is passed to the process of a subject as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Workload(Frozen):
    """The images to generate. Sizes are in pixels; `batches` are numbers of images in one UNet call."""

    prompt: str = "a lighthouse on a cliff at dusk, oil on canvas"
    size: int = 1024
    small_size: int = 512
    steps: int = 20
    few_steps: int = 4
    guidance: float = 5.0
    batches: tuple[int, ...] = (1, 2, 4, 8)
    preview_every: int = 5
    clients_per_device: int = 4
    images_per_client: int = 4
    seconds: float = 12.0
    """How long one series of samples may take after warm-up."""


class Conditions(Frozen):
    """One run. `devices` are the indices of GPUs; with `cpu`, only their number counts, as the number of replicas."""

    checkpoint: Path
    devices: tuple[int, ...]
    cpu: bool = False
    config: Path = SDXL_CONFIG
    overrides: tuple[str, ...] = ()
    workload: Workload = Workload()

    def with_overrides(self, *overrides: str) -> "Conditions":
        return self.model_copy(update={"overrides": (*self.overrides, *overrides)})

    @property
    def device(self) -> str:
        """The torch device of a subject that uses one device."""
        return "cpu" if self.cpu else "cuda"

    def document(self) -> dict[str, Any]:
        """Return the Serve config, adapted to the machine and changed by `overrides` (`a.b=value`, values in YAML)."""
        document: dict[str, Any] = yaml.safe_load(self.config.read_text())
        args = document["applications"][0]["args"]
        machine = {"num_replicas": len(self.devices), "model.path": str(self.checkpoint), "model.preview_path": None}
        given = dict(override.split("=", 1) for override in self.overrides)
        for key, value in [*machine.items(), *((key, yaml.safe_load(value)) for key, value in given.items())]:
            _set(args, key, value)
        return document

    def args(self) -> AppArgs:
        """Return the arguments of the application in `document`."""
        return AppArgs.model_validate(self.document()["applications"][0]["args"])

    def slot(self, **changes: object) -> Slot:
        """Return a slot of the workload for an engine."""
        fields = {
            "index": 0,
            "seed": 0,
            "prompt": self.workload.prompt,
            "width": self.workload.size,
            "height": self.workload.size,
            "num_inference_steps": self.workload.steps,
            "guidance_scale": self.workload.guidance,
            "scheduler": "euler",
            "output_format": "jpeg",
        }
        return Slot.of({**fields, **changes})


TINY = Workload(
    prompt="a red apple",
    size=64,
    small_size=64,
    steps=3,
    few_steps=2,
    batches=(1, 2),
    preview_every=1,
    clients_per_device=2,
    images_per_client=2,
    seconds=0.0,
)
"""For tests: everything as rarely as can be, with the tiny model on the CPU."""

TINY_OVERRIDES = (
    "num_gpus=0",
    "num_cpus=1",
    "model.variant=null",
    "model.dtype=float32",
    "model.width=64",
    "model.height=64",
    "model.min_size=64",
    "model.max_size=128",
    "engine.compile=none",
    "engine.compile_cache=null",
    "preview.min_interval_s=0",
)


def _set(args: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        args = args.setdefault(parent, {})
    args[last] = value
