"""Encodes decoded pixels as files and previews on separate threads, so that denoising does not wait for encoders."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from serve_app.imaging import Pixels, encode_bare, encode_picture, encode_preview
from serve_app.messages import Generated, Kept, Paused, Preview, Slot, Work
from serve_app.replica.checkpoint import Checkpoint
from serve_app.replica.decode import PendingPixels
from serve_app.replica.kept_steps import PendingStep
from serve_app.replica.meter import Bill, Meter
from serve_app.replica.scorers import Scorer, score_of
from serve_app.replica.watchdog import Watchdog
from serve_app.side_work import side_work

Made = TypeVar("Made", Generated, Kept, Paused, Preview)


class OutputProcessor:
    """Encodes files, previews, kept steps and sketches. Calls `done` with the result or error, on its threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        file_threads: int,
        jpeg_quality: int,
        meter: Meter,
        watchdog: Watchdog,
        scorers: Mapping[str, Scorer],
    ) -> None:
        self._scorers = scorers
        self._checkpoint = checkpoint
        self._jpeg_quality = jpeg_quality
        self._meter = meter
        self._watchdog = watchdog
        self._files = ThreadPoolExecutor(file_threads, thread_name_prefix="files")
        self._previews = ThreadPoolExecutor(1, thread_name_prefix="previews")  # must not wait for files

    def stop(self) -> None:
        """Drop the queued tasks; do not wait for the running ones, which may never end."""
        for threads in (self._files, self._previews):
            threads.shutdown(wait=False, cancel_futures=True)

    def image(
        self,
        slot: Slot,
        pending: PendingPixels,
        denoised: float,
        work: Work,
        bill: Bill,
        done: Callable[[Generated | Exception], None],
    ) -> None:
        """Encode a slot's file. Decoding began at `denoised`; `work` holds the times of the earlier stages."""
        self._files.submit(_report, done, lambda: self._image(slot, pending, denoised, work, bill))

    def preview(self, step: int, pending: PendingPixels, done: Callable[[Preview | Exception], None]) -> None:
        """Encode a preview of the picture after `step` steps."""
        self._previews.submit(_report, done, lambda: self._preview(step, pending))

    def kept(self, step: int, pending: PendingStep, done: Callable[[Kept | Exception], None]) -> None:
        """Write down the state after `step` steps."""
        self._previews.submit(_report, done, lambda: self._kept(step, pending))

    def sketch(
        self,
        slot: Slot,
        step: int,
        pending: PendingPixels,
        state: PendingStep,
        work: Work,
        bill: Bill,
        done: Callable[[Paused | Exception], None],
    ) -> None:
        """Write down what a slot shows after its last step for now, and its state; after its earlier previews.

        If its sketch is to be compared with others, it is scored.
        """
        self._previews.submit(_report, done, lambda: self._sketch(slot, step, pending, state, work, bill))

    def _sketch(
        self, slot: Slot, step: int, pending: PendingPixels, state: PendingStep, work: Work, bill: Bill
    ) -> Paused:
        preview, kept = self._preview(step, pending), self._kept(step, state)
        score = None
        if scorer := self._scorers.get(slot.score_by or ""):
            with self._watchdog.watching("scoring a sketch"):
                score = score_of(scorer, pending.wait(), slot.recipe.prompt)
        self._meter.settle()
        return Paused(preview, kept, replace(work, gpu=bill.seconds), score)

    def _kept(self, step: int, pending: PendingStep) -> Kept:
        with self._watchdog.watching("keeping a step"):
            return Kept(step, self._checkpoint.info.hash, pending.wait())

    def _image(self, slot: Slot, pending: PendingPixels, denoised: float, work: Work, bill: Bill) -> Generated:
        with self._watchdog.watching("decoding", slot.recipe.height, slot.recipe.width):
            pixels = pending.wait()
        self._meter.settle()
        if slot.canvas is not None:
            pixels = slot.canvas.finished(pixels)
        height, width, _ = pixels.shape
        decoded = time.perf_counter()
        with self._watchdog.watching(f"encoding a {slot.output.output_format} file", height, width):
            b64, warnings = self._file(pixels, slot)
        encode_s = time.perf_counter() - decoded
        self._meter.filed(encode_s)
        return Generated(
            width,
            height,
            f"image/{slot.output.output_format}",
            b64,
            replace(work, decode=decoded - denoised, encode=encode_s, gpu=bill.seconds),
            self._checkpoint.info,
            pixels if slot.keep_pixels else None,
            tuple(warnings),
        )

    def _file(self, pixels: Pixels, slot: Slot) -> tuple[str, list[str]]:
        """Return a picture's file and what a person should know of it."""
        warnings: list[str] = []
        with side_work(f"the file of image {slot.index} does not say how it was generated", warnings):
            return encode_picture(pixels, slot, self._checkpoint.info), warnings
        output, composite = slot.output, slot.recipe.init_image is not None
        return encode_bare(pixels, output.output_format, output.output_compression, composite=composite), warnings

    def _preview(self, step: int, pending: PendingPixels) -> Preview:
        with self._watchdog.watching("encoding a preview"):
            pixels = pending.wait()
            height, width, _ = pixels.shape
            return Preview(step, width, height, encode_preview(pixels, self._jpeg_quality))


def _report(done: Callable[[Made | Exception], None], make: Callable[[], Made]) -> None:
    try:
        made = make()
    except Exception as error:
        done(error)
    else:
        done(made)
