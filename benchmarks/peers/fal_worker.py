"""The worker of the peer `fal.distributed`: diffusers' pipeline on every GPU, images gathered on the first.

It follows the description of fal's parallel-SDXL demo: the preview and its frequency, the grid, the normalisation, the
collectives and emptying the cache.
"""

from math import floor, sqrt
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import AutoencoderTiny
from fal.distributed import DistributedRunner, DistributedWorker
from PIL import Image, ImageFilter

from benchmarks.peers.pipeline import load_pipeline
from serve_app.models import PREVIEW_FOLDER


class Runner(DistributedRunner):
    """Omits its lock when it is pickled for the workers, since Python 3.12 cannot pickle locks."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}


class ParallelWorker(DistributedWorker):
    def setup(self, checkpoint: str, preview_every: int, guidance: float, **_: Any) -> None:
        self._pipe = load_pipeline(Path(checkpoint), str(self.device), torch.float16)
        self._preview_vae = AutoencoderTiny.from_pretrained(Path(checkpoint, PREVIEW_FOLDER)).to(
            self.device, self._pipe.unet.dtype
        )
        self._preview_every = preview_every
        self._guidance = guidance

    def __call__(self, streaming: bool = False, **request: Any) -> dict[str, Any]:
        picture = self._pipe(
            **request,
            guidance_scale=self._guidance,
            output_type="pt",
            callback_on_step_end=self._preview if streaming else None,
        ).images[0]
        pictures = self._gather(picture)
        torch.cuda.empty_cache()
        return {"image": _grid(pictures)} if pictures else {}

    def _preview(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        if step % self._preview_every:
            return tensors
        latents = tensors["latents"] / self._preview_vae.config.scaling_factor
        picture = pipe.image_processor.postprocess(
            self._preview_vae.decode(latents, return_dict=False)[0], output_type="pt"
        )[0]
        if pictures := self._gather(picture):
            sheet = _grid(pictures).filter(ImageFilter.GaussianBlur(int(timestep / 1000 * 10)))
            self.add_streaming_result({"image": sheet}, as_text_event=True)
        dist.barrier()
        return tensors

    def _gather(self, picture: torch.Tensor) -> list[torch.Tensor] | None:
        """Return the pictures of all ranks on the first rank, None on the others."""
        pictures = [torch.zeros_like(picture) for _ in range(self.world_size)] if self.rank == 0 else None
        dist.gather(picture, pictures, dst=0)
        return pictures


def _grid(pictures: list[torch.Tensor]) -> Image.Image:
    """Return one sheet of (3, h, w) pictures, each stretched to its full contrast."""
    columns = floor(sqrt(len(pictures)))
    stretched = [(p - p.min()) / (p.max() - p.min()).clamp(min=1e-5) for p in pictures]
    stretched += [torch.zeros_like(pictures[0])] * (-len(pictures) % columns)
    rows = [torch.cat(stretched[i : i + columns], dim=2) for i in range(0, len(stretched), columns)]
    pixels = torch.cat(rows, dim=1).permute(1, 2, 0).float().mul(255).byte().cpu()
    return Image.fromarray(pixels.numpy())
