"""What a client is told of a slot, from what a replica says of it."""

import time
from collections.abc import Iterable
from typing import Any, Literal

from serve_app.messages import Generated, Paused, Preview, Progress, Slot
from serve_app.schemas import (
    NOT_KEPT,
    CancelledEvent,
    ErrorDetail,
    FailedEvent,
    Image,
    ImageEvent,
    ModelInfo,
    NoPicture,
    Parameters,
    PausedEvent,
    Picture,
    PreviewEvent,
    ProgressEvent,
    ResumedEvent,
    model_warning,
)

DEADLINE_EXCEEDED = ErrorDetail(
    type="deadline_exceeded", message="the request's deadline passed before this image was finished"
)
SHUTTING_DOWN = ErrorDetail(
    type="shutting_down",
    message="the service, or the part of it that held this image, was replaced or shut down before it was finished; "
    "asked for again, its seed gives the same picture",
)
CANCELLED = ErrorDetail(type="cancelled", message="the image was cancelled")
EXPIRED = ErrorDetail(
    type="expired", message="the image was paused for as long as trajectories.ttl_s allows, and nobody let it go on"
)
PASSED_OVER = ErrorDetail(type=NOT_KEPT, message="the sketches of other images were better, by the request's `keep`")
NO_FAILURES = (EXPIRED, PASSED_OVER)
"""How sketches end that nobody wants."""
REPLICA_LOST = ErrorDetail(
    type="replica_lost", message="the replica was lost while generating this image, and so was the one that tried again"
)
NOWHERE = ErrorDetail(type="replica_lost", message="no replica generated this image: all gave it back, again and again")
BREAKS_REPLICAS = ErrorDetail(
    type="breaks_replicas",
    message="several replicas broke down while generating this image; its settings may be the cause",
)
INTERNAL = ErrorDetail(type="internal", message="the image could not be generated; the service's log says why")


def failed(slot: Slot, error: ErrorDetail) -> NoPicture:
    return _without_picture(slot, "failed", error)


def cancelled(slot: Slot) -> NoPicture:
    return _without_picture(slot, "cancelled", CANCELLED)


def expired(slot: Slot) -> NoPicture:
    return _without_picture(slot, "cancelled", EXPIRED)


def passed_over(slot: Slot) -> NoPicture:
    return _without_picture(slot, "cancelled", PASSED_OVER)


def picture(slot: Slot, generated: Generated, asked: ModelInfo) -> Picture:
    """Tell of a finished image, and of its model if it is not the one that was asked for."""
    return Picture(
        index=slot.index,
        seed=slot.seed,
        width=generated.width,
        height=generated.height,
        media_type=generated.media_type,
        b64_json=generated.b64_json,
        gpu_seconds=generated.work.gpu,
        variations=slot.variations,
        model=None if generated.model.hash == asked.hash else generated.model,
    )


def model_warnings(images: Iterable[Image]) -> list[str]:
    """Return a sentence for each image that another model generated than the one its request began with."""
    return [model_warning(image.index, image.model) for image in images if isinstance(image, Picture) and image.model]


def step_event(slot: Slot, event: Progress | Preview) -> ProgressEvent | PreviewEvent:
    """Tell of a step that is done, and of its preview where there is one."""
    return ProgressEvent(**_at(slot, event.step)) if isinstance(event, Progress) else _shown(slot, event)


def paused_event(slot: Slot, sketch: Paused, ttl_s: float | None) -> PausedEvent:
    """Tell of a sketch that waits for so many seconds from now, None: for the other sketches."""
    shown = dict(_shown(slot, sketch.preview)) | {"type": "paused"}
    expires_at = None if ttl_s is None else time.time() + ttl_s
    return PausedEvent(**shown, expires_at=expires_at, gpu_seconds=sketch.work.gpu, score=sketch.score)


def resumed_event(slot: Slot, own: Parameters | None) -> ResumedEvent:
    """Tell that a paused image goes on from the step that was kept, maybe with settings of its own."""
    assert slot.kept is not None
    return ResumedEvent(**_at(slot, slot.kept.step), parameters=own)


def end_event(image: Image) -> ImageEvent | FailedEvent | CancelledEvent:
    """Tell how a slot has ended."""
    if isinstance(image, Picture):
        return ImageEvent(**dict(image))
    kind = FailedEvent if image.status == "failed" else CancelledEvent
    return kind(index=image.index, seed=image.seed, error=image.error)


def _at(slot: Slot, step: int) -> dict[str, Any]:
    steps = slot.recipe.num_inference_steps
    return {"index": slot.index, "seed": slot.seed, "step": step, "num_inference_steps": steps}


def _shown(slot: Slot, preview: Preview) -> PreviewEvent:
    size = {"width": preview.width, "height": preview.height}
    return PreviewEvent(**_at(slot, preview.step), **size, media_type="image/jpeg", b64_json=preview.b64_json)


def _without_picture(slot: Slot, status: Literal["failed", "cancelled"], error: ErrorDetail) -> NoPicture:
    return NoPicture(index=slot.index, seed=slot.seed, status=status, error=error)
