"""The models of a checkpoint, ready to run: text encoders, UNet, VAE and preview VAE."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.config import EngineConfig, PreviewConfig
from serve_app.messages import Slot
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.encode import Encoder
from serve_app.replica.previews import PreviewDecoder, PreviewPace
from serve_app.replica.prompt_reader import PromptReader, ReadPrompts
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.start import is_inpainting
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import make_forward


@dataclass(eq=False, slots=True)
class Running:
    """The state of an active slot between steps. `began` is when it was ready for its first step, in seconds."""

    trajectory: Trajectory
    pace: PreviewPace
    encode_prompt_s: float
    began: float
    last_progress: float = float("-inf")


class ModelRunner:
    """Runs a checkpoint's models, on one thread except for `read`. `previews` is None where there is no preview VAE."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, preview: PreviewConfig) -> None:
        self._checkpoint = checkpoint
        self._min_interval_s = preview.min_interval_s
        self._reader = PromptReader(checkpoint.pipe)
        self.prompts = PromptEncoder(checkpoint.pipe, checkpoint.device, config.prompt_cache_size)
        self.denoiser = Denoiser(checkpoint, make_forward(checkpoint.unet, config.compile))
        self.encoder = Encoder(checkpoint, config.compile)
        self.decoder = Decoder(checkpoint, config.compile)
        tiny = checkpoint.preview_vae
        self.previews = PreviewDecoder(checkpoint, tiny, preview.max_size, config.compile) if tiny else None

    def warm_up(self, slots: Sequence[Slot], most_images: int) -> None:
        """Prepare for slots like these, in UNet calls of 1 to `most_images` images."""
        for slot in slots:
            prompts = self.read(slot)
            self.prompts.warm_up(prompts)
            trajectories = [self.begin(slot, prompts).trajectory for _ in range(most_images)]
            for images in range(1, most_images + 1):
                self.denoiser.warm_up(trajectories[:images])
            self.encoder.warm_up(slot.recipe.height, slot.recipe.width)
            self.decoder.warm_up(trajectories[0].latents)
            if self.previews:
                self.previews.warm_up(trajectories[0].clean)

    def encodes(self, slot: Slot) -> bool:
        """Return whether the VAE's encoder may have to run before a slot can begin."""
        return slot.canvas is not None or is_inpainting(self._checkpoint)

    def read(self, slot: Slot) -> ReadPrompts:
        """Return a slot's prompts as the text encoders read them. Any thread may call this."""
        return self._reader.read(slot.recipe, slot.max_prompt_tokens)

    def begin(self, slot: Slot, prompts: ReadPrompts) -> Running:
        """Encode a slot's prompts and pictures, and draw its noise."""
        started = time.perf_counter()
        embeddings = self.prompts.conditions(prompts)
        encoded = time.perf_counter()
        trajectory = Trajectory.of(slot.recipe, slot.seed, self._checkpoint, embeddings, self.encoder, slot.canvas)
        pace = PreviewPace(slot.preview_steps if self.previews else frozenset(), self._min_interval_s)
        return Running(trajectory, pace, encode_prompt_s=encoded - started, began=encoded)
