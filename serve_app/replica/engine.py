"""The engine of a replica: carries out what the batcher decides.

Its loop runs on its own thread, and only that thread runs the models. Slots join and leave between two steps. A slot
that fails or is cancelled does not affect other slots. An engine that can generate nothing any more has a fault: it
returns all its slots, and takes no others.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

import torch

from serve_app.config import EngineConfig, PreviewConfig
from serve_app.errors import SlotFailed, SlotReturned
from serve_app.messages import Generated, Kept, Paused, Preview, Slot
from serve_app.replica.batching import Batcher, JobState, Load
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import PendingPixels
from serve_app.replica.embeddings import Embeddings
from serve_app.replica.failures import Failure, failure_of, slot_failure
from serve_app.replica.guarded import GuardedObserver, guarded
from serve_app.replica.lora.sets import NO_ADAPTERS, Adapters
from serve_app.replica.meter import Meter
from serve_app.replica.model_runner import ModelRunner, Running, Tell, nobody
from serve_app.replica.observer import Observer
from serve_app.replica.output_processor import OutputProcessor
from serve_app.replica.previews import PreviewPace
from serve_app.replica.scorers import OWN, Scorer
from serve_app.replica.submission import Post, SlotJob, Submission
from serve_app.replica.watchdog import Watchdog
from serve_app.threads import take_short_turns

logger = logging.getLogger("ray.serve")

_STOP_S = 10.0
"""How long to wait for the last step at the end. One that has stalled never ends."""


class Engine:
    """Generates slots. `submit`, `cancel` and `load` may be called from any thread."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        preview: PreviewConfig,
        observer: Observer,
        weight_sets: int = 0,
        scorers: Mapping[str, Scorer] = OWN,
    ) -> None:
        """Take a loaded model, for how many combinations of adapters to keep weights ready, and scorers of sketches."""
        self._config = config
        self._observer = GuardedObserver(observer)
        self._watchdog = Watchdog(config.stall_timeout_s)
        lanes = config.lanes(on_gpu=checkpoint.device.type == "cuda")
        self._models = ModelRunner(checkpoint, config, preview, weight_sets, lanes)
        self._meter = Meter(checkpoint.device, self._observer)
        self._outputs = OutputProcessor(
            checkpoint, config.file_threads, preview.jpeg_quality, self._meter, self._watchdog, scorers
        )
        self._torch_threads = torch.get_num_threads()
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()  # guards the next three
        self._batcher = Batcher[Submission](config.max_batch_size, config.images_per_call, weight_sets, lanes)
        self._stopping = False
        self._fault: str | None = None
        self._running: dict[SlotJob, Running] = {}

    def start(self, warm_up: Sequence[Slot] = (), tell: Tell = nobody) -> Future[None]:
        """Start the loop. When the future is done, it has warmed up for UNet calls of 1 to `images_per_call` slots.

        It warms up for slots like each of `warm_up`, and tells how far it is.
        """
        take_short_turns()  # files are written beside the loop
        ready: Future[None] = Future()
        prepare = partial(self._warm_up, warm_up, tell)
        self._thread = threading.Thread(target=self._run, args=(prepare, ready), name="engine", daemon=True)
        self._thread.start()
        return ready

    def stop(self) -> None:
        """Stop after the current step, and return the unfinished slots."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread and self._fault is None:  # otherwise it may never end
            self._thread.join(_STOP_S)
        self._break_down("it has been stopped")
        self._outputs.stop()

    @property
    def fault(self) -> str | None:
        """Why nothing can be generated any more: the loop has ended or stalled, the device has failed, or `stop`."""
        return self._fault

    def check(self) -> None:
        """Raise RuntimeError if the engine has a fault."""
        if self._fault is not None:
            raise RuntimeError(self._fault)

    def look_for_stalls(self) -> None:
        """Find out whether work has stalled. To be called about every half second."""
        if stalled := self._watchdog.stalled():
            self._break_down(stalled)

    def submit(
        self, slot: Slot, post: Post, adapters: Adapters = NO_ADAPTERS, *, embeddings: Embeddings | None = None
    ) -> SlotJob:
        """Queue a slot; its events go to `post`. Raises SlotReturned if the engine has a fault."""
        prompts, weights = self._models.read(slot, embeddings), adapters.key or None
        with self._changed:
            if self._fault is not None:
                raise SlotReturned(self._fault)
            submission = Submission(slot, prompts, guarded(post), adapters)
            job = self._batcher.submit(
                submission, submission.group(slot.first_step), weights, sketch=slot.pause_after is not None
            )
            self._changed.notify()
        return job

    def cancel(self, job: SlotJob) -> None:
        """Cancel a job: before the next step if it is active, otherwise at once."""
        with self._changed:
            ended = self._batcher.cancel(job)
            self._changed.notify()
        if ended:
            self._meter.ended(job.payload.bill, "cancelled")

    @property
    def adapters(self) -> frozenset[Hashable]:
        """The adapters whose weights are ready, by the keys of `Adapters`."""
        return self._models.adapters

    def load(self) -> Load:
        with self._changed:
            return self._batcher.load

    @torch.inference_mode()
    def _run(self, warm_up: Callable[[], None], ready: Future[None]) -> None:
        # OpenMP has a thread count per calling thread, and a new thread starts with all cores.
        torch.set_num_threads(self._torch_threads)
        try:
            if self._warmed_up(warm_up, ready):
                self._loop()
        except Exception:
            logger.exception("the engine's loop failed")
        finally:
            if not self._stopping:
                self._break_down("the engine's thread has ended")

    def _warm_up(self, slots: Sequence[Slot], tell: Tell) -> None:
        self._models.warm_up(slots, min(self._config.images_per_call, self._config.max_batch_size), tell)

    def _warmed_up(self, warm_up: Callable[[], None], ready: Future[None]) -> bool:
        """Warm up, tell the future how that ended, and return whether it went well."""
        try:
            # On this thread: compiled models depend on the thread's settings and would be compiled again for others.
            warm_up()
        except Exception as error:
            ready.set_exception(error)
            return False
        ready.set_result(None)
        return True

    def _loop(self) -> None:
        while self._wait_for_work():
            self._drop_cancelled()
            self._admit()
            self._step()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._fault or not self._batcher.idle)
            return not (self._stopping or self._fault)

    def _drop_cancelled(self) -> None:
        with self._changed:
            dropped = self._batcher.drop_cancelled()
        for job in dropped:
            self._leave(job)
            self._meter.ended(job.payload.bill, "cancelled")

    def _admit(self) -> None:
        while job := self._next_admitted():
            slot, bill = job.payload.slot, job.payload.bill
            work = ("preparing a picture", *job.payload.size) if self._models.encodes(slot) else ("preparing a slot",)
            self._observer.begun(job.payload.size, job.payload.prompts.chunks)
            with self._failing([job]), self._watchdog.watching(*work), self._meter.charging("prompt", [bill]):
                in_use = {running.weights for running in self._running.values()}
                self._running[job] = self._models.begin(
                    slot, job.payload.prompts, job.payload.adapters, in_use, job.lane
                )

    def _next_admitted(self) -> SlotJob | None:
        with self._changed:
            return self._batcher.admit()

    def _step(self) -> None:
        with self._changed:
            calls = self._batcher.next_calls()
        at_once = len({jobs[0].lane for jobs in calls})
        for jobs in calls:
            rows = sum(self._running[job].trajectory.rows for job in jobs)
            with self._failing(jobs), self._watchdog.watching("a step", rows, *jobs[0].payload.size):
                self._advance(jobs, at_once)
            for job in jobs:
                if job.state is JobState.ACTIVE:
                    with self._failing([job]):
                        self._after_step(job)

    def _advance(self, jobs: Sequence[SlotJob], at_once: int) -> None:
        """Advance jobs of one group by one UNet call. `at_once` lanes are at work."""
        running = [self._running[job] for job in jobs]
        lane, bills = running[0].lane, [job.payload.bill for job in jobs]
        with lane.open(), self._meter.charging("unet", bills, jobs[0].payload.size, at_once):
            predictions = self._models.predict(running)
            for job, own, prediction in zip(jobs, running, predictions, strict=True):
                with self._failing([job]):
                    own.trajectory.advance(prediction)
        lane.step_launched()  # device errors are raised here
        self._meter.settle()

    def _after_step(self, job: SlotJob) -> None:
        running = self._running[job]
        trajectory = running.trajectory
        if trajectory.done or running.is_sketch:
            if not job.cancel_requested:
                (self._decode if trajectory.done else self._pause)(job, running)
            return
        now, step = time.perf_counter(), trajectory.step
        if job.payload.prompts.before:
            with self._changed:
                self._batcher.regroup(job, job.payload.group(step))
        if progress := running.take_progress(now):
            job.payload.post(progress)
        if running.take_due_to_keep(self._config.keep_every):
            self._outputs.kept(step, running.keep(), partial(self._deliver_beside, job))
        running.pace.step_done(step, trajectory.clean)
        if wanted := running.pace.take(now):
            step, clean = wanted
            deliver = partial(self._deliver_preview, job, running.pace)
            try:
                pending = self._preview(job, running, clean)
            except Exception as error:
                deliver(error)  # a preview never costs its picture
            else:
                self._outputs.preview(step, pending, deliver)

    def _preview(self, job: SlotJob, running: Running, clean: torch.Tensor) -> PendingPixels:
        assert self._models.previews is not None, "without them none is wanted"
        with self._watchdog.watching("a preview", *job.payload.size), running.lane.open():
            return self._models.previews.decode(clean, self._meter.charging("preview", [job.payload.bill]))

    def _pause(self, job: SlotJob, running: Running) -> None:
        """End a job with what it shows so far and its state, from which another goes on."""
        work, trajectory, done = running.work(time.perf_counter()), running.trajectory, partial(self._deliver, job)
        pending, state = self._preview(job, running, trajectory.clean), running.keep()
        with self._changed:
            self._batcher.mark_denoised(job)
        self._leave(job)
        self._outputs.sketch(job.payload.slot, trajectory.step, pending, state, work, job.payload.bill, done)

    def _decode(self, job: SlotJob, running: Running) -> None:
        denoised, latents = time.perf_counter(), running.trajectory.latents
        running.lane.give(latents)
        charging = self._meter.charging("vae", [job.payload.bill])
        with self._watchdog.watching("the decoder", *job.payload.size), charging:
            pending = self._models.decoder.decode(latents)
        with self._changed:
            self._batcher.mark_denoised(job)
        del self._running[job]
        done = partial(self._deliver, job)
        self._outputs.image(job.payload.slot, pending, denoised, running.work(denoised), job.payload.bill, done)

    def _deliver(self, job: SlotJob, outcome: Generated | Paused | Exception) -> None:
        if isinstance(outcome, Exception):
            self._fail(job, outcome)
            return
        paused = isinstance(outcome, Paused)
        with self._changed:
            if job.state.ended:  # cancelled or returned while its file was encoded
                return
            (self._batcher.mark_paused if paused else self._batcher.mark_finished)(job)
        self._meter.ended(job.payload.bill, "paused" if paused else "succeeded")
        job.payload.post(job.payload.told(outcome))  # last, so that the counts include it once a client has the picture

    def _deliver_preview(self, job: SlotJob, pace: PreviewPace, outcome: Preview | Exception) -> None:
        self._deliver_beside(job, outcome)
        pace.busy = False

    def _deliver_beside(self, job: SlotJob, outcome: Preview | Kept | Exception) -> None:
        """Post what is made beside a picture, and never costs it."""
        match outcome:
            case Preview() | Kept():
                job.payload.post(outcome)
            case SlotFailed():
                pass  # not finite: the picture will fail with the same error
            case _:
                self._break_down_if_device_failed(outcome)
                logger.error("a preview or kept step of %s failed", job.payload.slot.name, exc_info=outcome)

    @contextmanager
    def _failing(self, jobs: Sequence[SlotJob]) -> Iterator[None]:
        """On an error, fail those of `jobs` that have not ended, and no other jobs unless the device has failed."""
        try:
            yield
        except Exception as error:
            for job in jobs:
                self._fail(job, error)

    def _fail(self, job: SlotJob, error: Exception) -> None:
        self._break_down_if_device_failed(error)
        with self._changed:
            if job.state.ended:
                return
            self._batcher.mark_failed(job)
        self._leave(job)
        self._meter.ended(job.payload.bill, "failed")
        job.payload.post(slot_failure(error, job.payload.slot))

    def _leave(self, job: SlotJob) -> None:
        """Forget a job's running state, if there is one: it is absent before a job begins and after its last step."""
        if running := self._running.get(job):
            running.lane.give()  # only now may its memory serve others
            del self._running[job]

    def _break_down_if_device_failed(self, error: Exception) -> None:
        if failure_of(error) is Failure.DEVICE:
            logger.error("the device has failed", exc_info=error)
            self._break_down("the device has failed")

    def _break_down(self, fault: str) -> None:
        """Return all slots that have not ended, and take no others. None of them is why the engine was stopped."""
        with self._changed:
            if self._fault is not None:
                return
            self._fault = fault
            returned = self._batcher.return_all()
            self._changed.notify()
        if returned or not self._stopping:
            logger.error("nothing can be generated any more: %s; %d slots are returned", fault, len(returned))
        for job in returned:
            self._meter.ended(job.payload.bill, "returned")
            job.payload.post(SlotReturned(fault, begun=job.begun and not self._stopping))
