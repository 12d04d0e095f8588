"""The service's metrics, on Ray's metrics endpoint as `ray_psdxl_*`; the tables below list them all.

Serve adds the labels deployment, replica and application. Ray adds up a histogram's `_sum` from the middles of its
buckets, so averages are coarse: where a sum matters, there is a counter of seconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from enum import Enum
from itertools import product
from typing import Self, get_args

from ray.serve import metrics

from serve_app.line import OTHER, ROUTES, Outcome
from serve_app.messages import Loss, Stage
from serve_app.side_work import side_work

_MODEL = "model"

_counted = side_work("a metric could not be counted")

_REQUEST_SECONDS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 90, 120)
_STEP_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2)
_PREVIEW_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 3, 5, 10, 30, 60)


class Kind(Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A row of the tables. `starts` are the label values that are known beforehand; their counters start at 0.

    `by_model`: there is one more label, `model`, empty where the service has only one.
    """

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()
    starts: tuple[tuple[str, ...], ...] = ()
    buckets: tuple[float, ...] = ()
    by_model: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """All labels."""
        return (*self.labels, _MODEL) if self.by_model else self.labels

    @property
    def exported(self) -> tuple[str, ...]:
        """The names on the metrics page."""
        suffixes = {Kind.COUNTER: ("_total",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_count", "_sum")}
        return tuple(f"ray_psdxl_{self.name}{suffix}" for suffix in suffixes[self.kind])


def _counter(
    name: str,
    help: str,
    labels: tuple[str, ...] = (),
    starts: Iterable[tuple[str, ...]] = (),
    *,
    by_model: bool = False,
) -> Metric:
    return Metric(Kind.COUNTER, name, help, labels, tuple(starts) if labels else ((),), by_model=by_model)


def _gauge(name: str, help: str, labels: tuple[str, ...] = (), *, by_model: bool = False) -> Metric:
    return Metric(Kind.GAUGE, name, help, labels, by_model=by_model)


def _histogram(
    name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = (), *, by_model: bool = False
) -> Metric:
    return Metric(Kind.HISTOGRAM, name, help, labels, buckets=buckets, by_model=by_model)


def _each(values: Iterable[str]) -> list[tuple[str, ...]]:
    return [(value,) for value in values]


REQUESTS = _counter(
    "requests",
    "HTTP requests but for GETs that only look, by route and outcome; left: the client did not wait for the answer.",
    ("route", "outcome"),
    product((*ROUTES, OTHER), get_args(Outcome)),
)
REQUEST_SECONDS = _histogram(
    "request_seconds", "Seconds from a request to the end of its answer, if it succeeded.", _REQUEST_SECONDS, ("route",)
)
REFUSALS = _counter(
    "refusals",
    "Requests refused before any work, by reason.",
    ("reason",),
    _each(("too_many_waiting", "too_many_paused", "not_ready", "shutting_down")),
    by_model=True,
)
IMAGES = _counter(
    "images",
    "Images by outcome (succeeded, failed, cancelled) and reason: a failure's type; client, left, expired or not_kept.",
    ("outcome", "reason"),
    (
        ("succeeded", ""),
        ("cancelled", "client"),
        ("cancelled", "left"),
        ("cancelled", "expired"),
        ("cancelled", "not_kept"),
        *product(
            ("failed",),
            (
                "deadline_exceeded",
                "shutting_down",
                "replica_lost",
                "breaks_replicas",
                "out_of_memory",
                "adapter_gone",
                "not_finite",
                "internal",
            ),
        ),
    ),
    by_model=True,
)
IMAGE_SECONDS = _histogram(
    "image_seconds",
    "Seconds from a request to each finished image, its time in the queue included.",
    _REQUEST_SECONDS,
    by_model=True,
)
QUEUE_SECONDS = _histogram(
    "queue_seconds",
    "Seconds that a finished image was not worked on, in the ingress or on a replica.",
    _REQUEST_SECONDS,
    by_model=True,
)
FIRST_PREVIEW_SECONDS = _histogram(
    "first_preview_seconds", "Seconds from a streamed request to its first preview.", _PREVIEW_SECONDS, by_model=True
)
SKEW_SECONDS = _histogram(
    "fan_out_skew_seconds",
    "Seconds between the first and the last finished image of a request for several.",
    _PREVIEW_SECONDS,
    by_model=True,
)
GENERATED_AGAIN = _counter(
    "images_generated_again",
    "Images begun again on another replica: theirs was lost, returned them, had no memory, or not their adapters.",
    ("reason",),
    _each(("lost", "returned", "out_of_memory", "adapter_gone")),
    by_model=True,
)
STEPS_SAVED = _counter(
    "steps_saved",
    "Steps done by a replica and not again by the next, because one was kept; each counts once.",
    by_model=True,
)
CLIENT_IMAGES = _counter(
    "client_images", "Finished images by client: the hash of an API key, or none.", ("client",), by_model=True
)
CLIENT_GPU_SECONDS = _counter(
    "client_gpu_seconds",
    "Seconds of device time of finished images and of sketches, by client as in client_images.",
    ("client",),
    by_model=True,
)
PAUSED = _gauge("images_paused", "Images that are paused after a sketch, of all models.")
TRAJECTORY_BYTES = _gauge(
    "trajectory_bytes", "Bytes that paused images keep, and those may keep that are still to be paused, of all models."
)
QUEUED = _gauge("images_queued", "Images that wait because all replicas are busy.", by_model=True)
READY = _gauge("replicas_ready", "Replicas that generate images now.", by_model=True)
TARGET = _gauge("replicas_target", "Replicas that there should be.", by_model=True)

INGRESS: Sequence[Metric] = (
    REQUESTS,
    REQUEST_SECONDS,
    REFUSALS,
    IMAGES,
    IMAGE_SECONDS,
    QUEUE_SECONDS,
    FIRST_PREVIEW_SECONDS,
    SKEW_SECONDS,
    GENERATED_AGAIN,
    STEPS_SAVED,
    CLIENT_IMAGES,
    CLIENT_GPU_SECONDS,
    QUEUED,
    PAUSED,
    TRAJECTORY_BYTES,
    READY,
    TARGET,
)
"""The metrics of an ingress replica."""

STAGE_SECONDS = _counter(
    "stage_seconds",
    "Seconds of work by stage: prompt, unet, vae, preview by the device's own clock; file on the processor.",
    ("stage",),
    _each(get_args(Stage)),
)
WASTED_SECONDS = _counter(
    "wasted_gpu_seconds",
    "Seconds of device time spent on images that were then cancelled, failed or returned.",
    ("reason",),
    _each(get_args(Loss)),
)
SLOTS = _counter(
    "slots",
    "Slots by outcome on this replica, its warm-up included: succeeded, paused, cancelled, failed or returned.",
    ("outcome",),
    _each(("succeeded", "paused", *get_args(Loss))),
)
STEP_SECONDS = _histogram(
    "step_seconds",
    "Seconds of one UNet call by the device's own clock, by size: one that is warmed up, or other.",
    _STEP_SECONDS,
    ("size",),
)
UNCOMPILED = _counter(
    "uncompiled_images",
    "Images of a size or length of prompt without compiled models, under engine.compile: full. They are slower.",
)
ACTIVE = _gauge("images_active", "Images being denoised.")
CAPACITY = _gauge("images_capacity", "Images that the replica denoises at once: engine.max_batch_size.")
GPU_MEMORY = _gauge("gpu_memory_bytes", "Bytes of GPU memory: used by any process, total.", ("kind",))
INFO = _gauge("info", "Always 1; the labels say what is served.", ("version", "model", "hash", "device"))

REPLICA: Sequence[Metric] = (
    STAGE_SECONDS,
    WASTED_SECONDS,
    SLOTS,
    STEP_SECONDS,
    UNCOMPILED,
    ACTIVE,
    CAPACITY,
    GPU_MEMORY,
    INFO,
)
"""The metrics of an SDXL replica."""


class Metrics:
    """Counts into one of the tables, for models by their names. Its methods never raise.

    Create it once, in a deployment's constructor.
    """

    def __init__(self, table: Sequence[Metric], models: Iterable[str] = ("",)) -> None:
        self._labels: Mapping[str, str] = {}
        self._made = {metric.name: _made(metric) for metric in table}
        for metric, model in product(table, models):
            for values in metric.starts:
                self._start(metric, (*values, model) if metric.by_model else values)

    def labelled(self, **labels: str) -> Self:
        """Return what counts into the same with these labels."""
        more = copy(self)
        more._labels = {**self._labels, **labels}
        return more

    @_counted
    def add(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Add to a counter; nothing for 0."""
        if amount:
            self._made[metric.name].inc(amount, {**self._labels, **labels})

    @_counted
    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        self._made[metric.name].observe(value, {**self._labels, **labels})

    @_counted
    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge. To be repeated every few seconds: Ray drops one that is not."""
        self._made[metric.name].set(value, {**self._labels, **labels})

    @_counted
    def _start(self, metric: Metric, values: tuple[str, ...]) -> None:
        # Not `inc`, which takes no 0: a counter that appears with its first event has no increase to alert on.
        self._made[metric.name]._record(0, tags=dict(zip(metric.tags, values, strict=True)))


def _made(metric: Metric) -> metrics.Counter | metrics.Gauge | metrics.Histogram:
    name = f"psdxl_{metric.name}"
    match metric.kind:
        case Kind.COUNTER:
            return metrics.Counter(name, metric.help, metric.tags)
        case Kind.GAUGE:
            return metrics.Gauge(name, metric.help, metric.tags)
        case Kind.HISTOGRAM:
            return metrics.Histogram(name, metric.help, boundaries=list(metric.buckets), tag_keys=metric.tags)
