"""The models of a checkpoint, ready to run: text encoders, UNet, VAE and preview VAE."""

import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from serve_app.config import EngineConfig, PreviewConfig
from serve_app.messages import Progress, Slot, Work
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.cuda_graphs import all_with_cuda_graphs
from serve_app.replica.decode import Decoder
from serve_app.replica.denoise import Denoiser
from serve_app.replica.embeddings import Embeddings
from serve_app.replica.encode import Encoder
from serve_app.replica.kept_steps import KeptStep, PendingStep
from serve_app.replica.lanes import Lane
from serve_app.replica.lora.sets import NO_ADAPTERS, Adapters, WeightSet, WeightSets
from serve_app.replica.previews import PreviewDecoder, PreviewPace
from serve_app.replica.prompt_reader import PromptReader, ReadPrompts
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.start import is_inpainting
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import make_forwards

Tell = Callable[[int, int], None]
"""Hears which part of so many begins."""

PROGRESS_INTERVAL_S = 0.25
"""Least time between two progress events of one slot."""


def nobody(number: int, of: int) -> None:
    """Nobody is told."""


@dataclass(eq=False, slots=True)
class Running:
    """The state of an active slot between steps. `began` is when it was ready for its first step, in seconds."""

    trajectory: Trajectory
    lane: Lane
    weights: WeightSet
    pace: PreviewPace
    encode_prompt_s: float
    began: float
    pause_after: int | None = None
    """The step after which it ends for now."""
    _last_told: float = float("-inf")
    _last_kept: int = 0

    @property
    def is_sketch(self) -> bool:
        """Whether it ends here for now."""
        return self.pause_after is not None and self.trajectory.step >= self.pause_after

    def take_progress(self, now: float) -> Progress | None:
        """Return its step if that is to be told now, once."""
        if not self.trajectory.step or now - self._last_told < PROGRESS_INTERVAL_S:
            return None
        self._last_told = now
        return Progress(self.trajectory.step)

    def take_due_to_keep(self, every: int) -> bool:
        """Whether its state is to be kept now, as every so many steps it is, once."""
        step = self.trajectory.step
        if not every or step % every or step <= self._last_kept:
            return False
        self._last_kept = step
        return True

    def keep(self) -> PendingStep:
        """Return its state, without waiting for the device."""
        with self.lane.open():
            return self.trajectory.keep()

    def work(self, now: float) -> Work:
        """Return the seconds spent on it, the denoising up to now."""
        return Work(self.encode_prompt_s, now - self.began, decode=0, encode=0)


class ModelRunner:
    """Runs a checkpoint's models, on one thread except for `read`. `previews` is None where there is no preview VAE."""

    def __init__(
        self, checkpoint: Checkpoint, config: EngineConfig, preview: PreviewConfig, weight_sets: int = 0, lanes: int = 1
    ) -> None:
        self._checkpoint = checkpoint
        self._min_interval_s = preview.min_interval_s
        self._reader = PromptReader(checkpoint.pipe)
        self.prompts = PromptEncoder(checkpoint.pipe, checkpoint.device, config.prompt_cache_size)
        self._sets = WeightSets(checkpoint.unet, weight_sets)
        forwards = make_forwards([one.unet for one in self._sets.all], config.compile, checkpoint.kept_models)
        self._lanes = [Lane(checkpoint.device) for _ in range(lanes)]
        self._denoisers = {
            (lane, one): Denoiser(checkpoint, forward)
            for lane in self._lanes
            for one, forward in zip(self._sets.all, all_with_cuda_graphs(forwards, checkpoint.device), strict=True)
        }
        self.encoder = Encoder(checkpoint, config.compile)
        self.decoder = Decoder(checkpoint, config.compile)
        tiny = checkpoint.preview_vae
        self.previews = PreviewDecoder(checkpoint, tiny, preview.max_size, config.compile) if tiny else None

    def warm_up(self, slots: Sequence[Slot], most_images: int, tell: Tell = nobody) -> None:
        """Prepare for slots like these, in UNet calls of 1 to `most_images` images, and tell before each part of it."""
        parts = [part for slot in slots for part in self._warm_ups(slot, most_images)]
        for number, part in enumerate(parts, 1):
            tell(number, len(parts))
            part()

    def _warm_ups(self, slot: Slot, most_images: int) -> Iterator[Callable[[], None]]:
        """Yield what prepares for slots like this one, part by part."""
        trajectories: list[Trajectory] = []

        def begin() -> None:
            prompts = self.read(slot)
            self.prompts.warm_up(prompts, [one.unet for one in self._sets.all])
            trajectories.extend(self.begin(slot, prompts, NO_ADAPTERS, ()).trajectory for _ in range(most_images))

        def denoise(lane: Lane, denoiser: Denoiser) -> None:
            lane.take()
            with lane.open():
                for images in range(1, most_images + 1):
                    denoiser.warm_up(trajectories[:images])
            lane.give()

        yield begin
        for (lane, _), denoiser in self._denoisers.items():
            yield partial(denoise, lane, denoiser)
        yield lambda: self.encoder.warm_up(slot.recipe.height, slot.recipe.width)
        yield lambda: self.decoder.warm_up(trajectories[0].latents)
        if (previews := self.previews) is not None:
            yield lambda: previews.warm_up(trajectories[0].clean)

    @property
    def adapters(self) -> frozenset[Hashable]:
        """The adapters that weight sets hold, by their keys."""
        return frozenset(one.adapters.key for one in self._sets.all if one.adapters.key)

    def encodes(self, slot: Slot) -> bool:
        """Return whether the VAE's encoder may have to run before a slot can begin."""
        return slot.canvas is not None or is_inpainting(self._checkpoint)

    def read(self, slot: Slot, embeddings: Embeddings | None = None) -> ReadPrompts:
        """Return a slot's prompts as the text encoders read them. Any thread may call this."""
        return self._reader.read(slot.recipe, slot.max_prompt_tokens, embeddings)

    def begin(
        self, slot: Slot, prompts: ReadPrompts, adapters: Adapters, in_use: Collection[WeightSet], lane: int = 0
    ) -> Running:
        """Merge a slot's adapters unless a weight set has them, encode its prompts and pictures, and draw its noise.

        `in_use` are the sets that must keep theirs; `lane` is where its steps are to run.
        """
        started = time.perf_counter()
        weights = self._sets.of(adapters, in_use)
        *before, embeddings = (self.prompts.conditions(phase, weights) for phase in prompts.phases)
        encoded = time.perf_counter()
        trajectory = Trajectory.of(
            slot.recipe, slot.seed, self._checkpoint, embeddings, self.encoder, slot.canvas, slot.variations, before
        )
        passing = [trajectory.latents] if slot.kept is None else trajectory.go_on(KeptStep.read(slot.kept.state))
        pace = PreviewPace(slot.preview_steps if self.previews else frozenset(), self._min_interval_s)
        self._lanes[lane].take(*passing)
        return Running(
            trajectory,
            self._lanes[lane],
            weights,
            pace,
            encode_prompt_s=encoded - started,
            began=encoded,
            pause_after=slot.pause_after if self.previews else None,  # else there would be nothing to see
        )

    def predict(self, slots: Sequence[Running]) -> Sequence[torch.Tensor]:
        """Return the UNet's predictions for slots of one `CallGroup` and lane; see `Denoiser.predict`."""
        denoiser = self._denoisers[slots[0].lane, slots[0].weights]
        return denoiser.predict([slot.trajectory for slot in slots])
