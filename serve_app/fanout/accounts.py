"""What is counted and logged of the requests of an ingress replica."""

from collections import Counter
from typing import Any

from serve_app import metrics
from serve_app.client import short
from serve_app.errors import ServiceError
from serve_app.fanout.events import EXPIRED, PASSED_OVER
from serve_app.fanout.generation import Generation
from serve_app.fanout.plan import Plan
from serve_app.fanout.states import SlotState
from serve_app.fanout.tries import Again
from serve_app.metrics import Metrics
from serve_app.schemas import NoPicture


class Accounts:
    """Keeps the metrics of one model; nothing here raises."""

    def __init__(self, counted: Metrics) -> None:
        self._counted = counted

    def refused(self, error: ServiceError) -> None:
        """A request is refused before any work."""
        if (error.type,) in metrics.REFUSALS.starts:
            self._counted.add(metrics.REFUSALS, reason=error.type)

    def again(self, reason: Again, steps_saved: int) -> None:
        """An image is generated again, but for so many steps of its last try."""
        self._counted.add(metrics.GENERATED_AGAIN, reason=reason)
        self._counted.add(metrics.STEPS_SAVED, steps_saved)

    def first_preview(self, seconds: float) -> None:
        """A stream has had its first preview, so long after the request."""
        self._counted.observe(metrics.FIRST_PREVIEW_SECONDS, seconds)

    def look(self, queued: int, ready: int, target: int) -> None:
        """Set the gauges: images that wait, replicas that there are and that there should be."""
        self._counted.set(metrics.QUEUED, queued)
        self._counted.set(metrics.READY, ready)
        self._counted.set(metrics.TARGET, target)

    def ended(self, generation: Generation, client: str | None) -> None:
        """A generation has ended, for a client by its name."""
        states = Counter(generation.slot_states)
        failed = [failure.error.type for failure in generation.failures if failure.status == "failed"]
        left = len(generation.failures) - len(failed)  # cancelled, but nobody asked for that
        ends = Counter(image.error for image in generation.images.values() if isinstance(image, NoPicture))
        expired, passed_over = ends[EXPIRED], ends[PASSED_OVER]
        self._counted.add(metrics.IMAGES, states[SlotState.SUCCEEDED], outcome="succeeded", reason="")
        self._counted.add(
            metrics.IMAGES,
            states[SlotState.CANCELLED] - left - expired - passed_over,
            outcome="cancelled",
            reason="client",
        )
        self._counted.add(metrics.IMAGES, left, outcome="cancelled", reason="left")
        self._counted.add(metrics.IMAGES, expired, outcome="cancelled", reason="expired")
        self._counted.add(metrics.IMAGES, passed_over, outcome="cancelled", reason=PASSED_OVER.type)
        for reason in failed:
            self._counted.add(metrics.IMAGES, outcome="failed", reason=reason)
        finished = list(generation.finished.values())
        for timings in finished:
            self._counted.observe(metrics.IMAGE_SECONDS, timings.total)
            self._counted.observe(metrics.QUEUE_SECONDS, timings.queue)
        if len(finished) > 1:
            self._counted.observe(metrics.SKEW_SECONDS, finished[-1].total - finished[0].total)
        name = short(client) or "none"
        self._counted.add(metrics.CLIENT_IMAGES, len(finished), client=name)
        self._counted.add(metrics.CLIENT_GPU_SECONDS, generation.timings.gpu, client=name)


def facts_of_plan(plan: Plan) -> dict[str, Any]:
    """Return what the log says of a request at its beginning; never its prompts."""
    recipe = plan.slots[0].recipe
    return {
        "generation": plan.id,
        "model": plan.parameters.model.name,
        "images": len(plan.slots),
        "seeds": [slot.seed for slot in plan.slots],
        "size": f"{recipe.width}x{recipe.height}",
        "steps": recipe.num_inference_steps,
    }


def facts_of_end(generation: Generation) -> dict[str, Any]:
    """Return what the log says of a generation at its end: images by outcome, sketches, replicas, and seconds."""
    states = Counter(state.value for state in generation.slot_states)
    timings = generation.timings
    failures = sorted({failure.error.type for failure in generation.failures if failure.status == "failed"})
    return {
        **states,
        **({"paused": generation.were_paused} if generation.were_paused else {}),
        **({"failures": failures} if failures else {}),
        "replicas": list(generation.replicas),
        "queue_seconds": round(timings.queue, 3),
        "denoise_seconds": round(timings.denoise, 3),
        "gpu_seconds": round(timings.gpu, 3),
    }
