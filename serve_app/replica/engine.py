"""Step-level continuous batching: one loop over denoising steps, shared by all slots of a replica.

The loop has a thread of its own and is alone in touching the model. Slots join and leave between two steps; a slot
that fails or is cancelled takes no other with it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from serve_app.config import EngineConfig, PreviewConfig
from serve_app.errors import SlotFailed
from serve_app.imaging import encode_picture, encode_preview
from serve_app.messages import Painted, Preview, Progress, Slot, SlotEvent, Work
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import Decoder, PendingPixels
from serve_app.replica.denoise import Denoiser
from serve_app.replica.device import RunAhead
from serve_app.replica.previews import PreviewDecoder, PreviewPace
from serve_app.replica.prompts import PromptEncoder
from serve_app.replica.trajectory import Trajectory
from serve_app.replica.unet import make_program

logger = logging.getLogger("ray.serve")

PROGRESS_INTERVAL_S = 0.25
"""Least time between two progress events of one slot."""

Post = Callable[[SlotEvent | SlotFailed], None]
"""Takes a slot's events, from any thread; Painted or SlotFailed is the last. A cancelled slot just goes quiet."""


class Observer(Protocol):
    """Is told what the engine does; called on the engine's threads."""

    def step(self, seconds: float, images: int) -> None: ...
    def preview(self, seconds: float) -> None: ...
    def encoded(self, seconds: float) -> None: ...
    def ended(self, outcome: str) -> None: ...
    def load(self, active: int, waiting: int) -> None: ...


class Silent:
    """An observer that does not listen, for engines outside the service."""

    def step(self, seconds: float, images: int) -> None: ...
    def preview(self, seconds: float) -> None: ...
    def encoded(self, seconds: float) -> None: ...
    def ended(self, outcome: str) -> None: ...
    def load(self, active: int, waiting: int) -> None: ...


@dataclass(eq=False)
class Job:
    """A slot on this replica, from submission to its last event."""

    slot: Slot
    post: Post
    cancelled: bool = False


@dataclass(eq=False)
class Active:
    """A job that has been admitted to the batch."""

    job: Job
    trajectory: Trajectory
    pace: PreviewPace
    encode_prompt_s: float
    admitted: float
    last_progress: float = float("-inf")

    @property
    def shape(self) -> tuple[int, int]:
        return self.job.slot.recipe.height, self.job.slot.recipe.width


@dataclass(frozen=True)
class Load:
    """How busy the engine is, in images; `finished` counts since the start."""

    active: int
    waiting: int
    finished: int


class Engine:
    """Paints slots. `submit`, `cancel` and `load` may be called from any thread."""

    def __init__(
        self, checkpoint: Checkpoint, config: EngineConfig, preview: PreviewConfig, observer: Observer
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._preview = preview
        self._observer = observer
        self._denoiser = Denoiser(checkpoint, make_program(checkpoint.unet, config.compile))
        self._decoder = Decoder(checkpoint, config.compile)
        tiny = checkpoint.preview_vae
        self._previews = PreviewDecoder(checkpoint, tiny, preview.max_size, config.compile) if tiny else None
        self._run_ahead = RunAhead(checkpoint.device)
        self._prompts = PromptEncoder(checkpoint.pipe, checkpoint.device, config.prompt_cache_size)
        self._files = ThreadPoolExecutor(config.file_threads, thread_name_prefix="files")
        self._preview_files = ThreadPoolExecutor(
            1, thread_name_prefix="previews"
        )  # no preview waits for a picture's file
        self._torch_threads = torch.get_num_threads()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._waiting: deque[Job] = deque()
        self._active: list[Active] = []
        self._turns: deque[tuple[int, int]] = deque()
        self._finished = 0
        self._broken: Exception | None = None

    def start(self, warm_up: Sequence[Slot] = ()) -> Future[None]:
        """Start the loop; the future is done when the engine is ready.

        It is then ready for UNet calls of 1 to `images_per_call` slots like each of `warm_up`.
        """
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(warm_up, ready), name="engine", daemon=True)
        self._thread.start()
        return ready

    def _warm_up(self, slot: Slot) -> None:
        for images in range(1, min(self._config.images_per_call, self._config.max_batch_size) + 1):
            batch = [self._begin(Job(slot, lambda _: None)).trajectory for _ in range(images)]
            self._denoiser.warm_up(batch)
        self._decoder.warm_up(batch[0].latents)
        if self._previews:
            self._previews.warm_up(batch[0].clean)

    def stop(self) -> None:
        """Stop after the current step. Slots that are not finished stay without an answer."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread:
            self._thread.join()
        for files in (self._files, self._preview_files):
            files.shutdown(cancel_futures=True)

    def check(self) -> None:
        """Raise RuntimeError where nothing can be painted: the loop has died, or the device has failed for good."""
        if not (self._thread and self._thread.is_alive()):
            raise RuntimeError("the engine's thread has ended")
        if self._broken is not None:
            raise RuntimeError("the device has failed") from self._broken

    def submit(self, slot: Slot, post: Post) -> Job:
        """Put a slot in line; its events go to `post`."""
        job = Job(slot, post)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Drop a job: at once while it waits, at the next step boundary while it is being painted."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._observer.ended("cancelled")
            self._changed.notify()

    def load(self) -> Load:
        with self._changed:
            return Load(active=len(self._active), waiting=len(self._waiting), finished=self._finished)

    @torch.inference_mode()
    def _run(self, warm_up: Sequence[Slot], ready: Future[None]) -> None:
        # OpenMP keeps the number of threads for each calling thread: a new one starts with all cores.
        torch.set_num_threads(self._torch_threads)
        try:
            # On this thread: what is compiled holds for the thread's settings, and is compiled again under others.
            self._prompts.warm_up()
            for slot in warm_up:
                self._warm_up(slot)
        except Exception as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        while self._wait_for_work():
            self._drop_cancelled()
            self._admit()
            self._step()
            self._observer.load(len(self._active), len(self._waiting))

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._active)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        for active in [a for a in self._active if a.job.cancelled]:
            self._leave(active)
            self._observer.ended("cancelled")

    def _admit(self) -> None:
        while len(self._active) < self._config.max_batch_size:
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            try:
                active = self._begin(job)
            except Exception as error:
                self._fail(job, error)
                continue
            with self._changed:
                self._active.append(active)
            if active.shape not in self._turns:
                self._turns.append(active.shape)

    def _begin(self, job: Job) -> Active:
        slot, started = job.slot, time.perf_counter()
        conditions = self._prompts.conditions(slot.recipe)
        encoded = time.perf_counter()
        trajectory = Trajectory(slot.recipe, slot.seed, self._checkpoint, conditions)
        preview_steps = slot.preview_steps if self._previews else frozenset[int]()
        pace = PreviewPace(preview_steps, self._preview.min_interval_s)
        return Active(job, trajectory, pace, encode_prompt_s=encoded - started, admitted=encoded)

    def _step(self) -> None:
        """Advance all slots of one size by one step; sizes take turns."""
        if not self._turns:
            return
        self._turns.rotate(-1)
        group, most = [a for a in self._active if a.shape == self._turns[-1]], self._config.images_per_call
        for first in range(0, len(group), most):
            self._advance(group[first : first + most])

    def _advance(self, group: Sequence[Active]) -> None:
        """Advance slots of one size by one step, in one UNet call."""
        started = time.perf_counter()
        try:
            predictions = self._denoiser.predict([a.trajectory for a in group])
            ahead = [
                a
                for a, prediction in zip(group, predictions, strict=True)
                if self._guarded(a, partial(a.trajectory.advance, prediction))
            ]
            self._run_ahead.step_launched()  # where the device's errors show
        except Exception as error:
            for active in [a for a in group if a in self._active]:
                self._leave(active)
                self._fail(active.job, error)
            return
        self._observer.step(time.perf_counter() - started, len(group))
        for active in ahead:
            self._guarded(active, partial(self._after_step, active))

    def _guarded(self, active: Active, act: Callable[[], None]) -> bool:
        """Do something with one slot; where that fails, it takes no other slot with it. Return whether it went well."""
        try:
            act()
        except Exception as error:
            self._leave(active)
            self._fail(active.job, error)
            return False
        return True

    def _after_step(self, active: Active) -> None:
        if active.trajectory.done:
            if not active.job.cancelled:
                self._finish(active)
            return
        now, trajectory = time.perf_counter(), active.trajectory
        if now - active.last_progress >= PROGRESS_INTERVAL_S:
            active.last_progress = now
            active.job.post(Progress(trajectory.step))
        active.pace.step_done(trajectory.step, trajectory.clean)
        if self._previews and (wanted := active.pace.take(now)):
            step, clean = wanted
            self._preview_files.submit(self._send_preview, active, step, self._previews.decode(clean), now)

    def _send_preview(self, active: Active, step: int, pending: PendingPixels, started: float) -> None:
        try:
            pixels = pending.wait()
            self._observer.preview(time.perf_counter() - started)
            height, width, _ = pixels.shape
            active.job.post(Preview(step, width, height, encode_preview(pixels, self._preview.jpeg_quality)))
        except SlotFailed:
            pass  # not finite: the picture itself will say so
        except Exception as error:
            self._notice(error)
            logger.exception("a preview of seed %d could not be encoded", active.job.slot.seed)
        active.pace.busy = False

    def _finish(self, active: Active) -> None:
        denoised = time.perf_counter()
        pending = self._decoder.decode(active.trajectory.latents)
        self._leave(active)
        self._files.submit(self._send_painted, active, pending, denoised)

    def _send_painted(self, active: Active, pending: PendingPixels, denoised: float) -> None:
        slot = active.job.slot
        try:
            pixels = pending.wait()
            height, width, _ = pixels.shape
            info = self._checkpoint.info
            decoded = time.perf_counter()
            b64 = encode_picture(pixels, slot, info)
            encode_s = time.perf_counter() - decoded
            work = Work(active.encode_prompt_s, denoised - active.admitted, decoded - denoised, encode_s)
            painted = Painted(
                width, height, f"image/{slot.output.output_format}", b64, work, pixels if slot.keep_pixels else None
            )
            self._observer.encoded(encode_s)
        except Exception as error:
            self._fail(active.job, error)
            return
        self._observer.ended("succeeded")
        with self._changed:
            self._finished += 1
        active.job.post(painted)  # last: whoever has the picture finds it counted

    def _leave(self, active: Active) -> None:
        with self._changed:
            if active in self._active:
                self._active.remove(active)
        if all(a.shape != active.shape for a in self._active) and active.shape in self._turns:
            self._turns.remove(active.shape)

    def _notice(self, error: Exception) -> None:
        if isinstance(error, torch.AcceleratorError):
            self._broken = error  # after such an error every later call on the device fails too

    def _fail(self, job: Job, error: Exception) -> None:
        self._notice(error)
        match error:
            case SlotFailed():
                failure = error
            case torch.OutOfMemoryError():
                failure = SlotFailed(
                    "out_of_memory", "the replica ran out of memory; ask for a smaller size or fewer images at once"
                )
            case _:
                logger.error("slot with seed %d failed", job.slot.seed, exc_info=error)
                failure = SlotFailed("internal", "the image could not be painted; the service's log says why")
        self._observer.ended("failed")
        job.post(failure)
