"""The service's metrics, on Ray's metrics endpoint as `ray_psdxl_*`.

Serve tags each with deployment, replica and application.
"""

from ray.serve import metrics

from serve_app.side_work import side_work

_counted = side_work("a metric could not be counted")

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]


class ReplicaMetrics:
    """The metrics of one SDXL replica. Create it once, in the replica's constructor."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._slots = metrics.Counter(
            "psdxl_slots", "Slots by outcome, the replica's warm-up included.", tag_keys=("outcome",)
        )
        self._step = metrics.Histogram(
            "psdxl_step_seconds", "Time of one denoising step of a batch.", boundaries=_SECONDS
        )
        self._occupancy = metrics.Gauge(
            "psdxl_batch_occupancy", "Images in the last step's batch, as a fraction of max_batch_size."
        )
        self._active = metrics.Gauge("psdxl_images_active", "Images being denoised.")
        self._waiting = metrics.Gauge("psdxl_images_waiting", "Images waiting in the replica.")
        self._preview = metrics.Histogram("psdxl_preview_seconds", "Time to decode one preview.", boundaries=_SECONDS)
        self._encode = metrics.Histogram("psdxl_encode_seconds", "Time to encode one image file.", boundaries=_SECONDS)

    def step(self, seconds: float, images: int) -> None:
        self._step.observe(seconds)
        self._occupancy.set(images / self._capacity)

    def preview(self, seconds: float) -> None:
        self._preview.observe(seconds)

    def encoded(self, seconds: float) -> None:
        self._encode.observe(seconds)

    def ended(self, outcome: str) -> None:
        self._slots.inc(tags={"outcome": outcome})

    def load(self, active: int, waiting: int) -> None:
        if not active:
            self._occupancy.set(0)
        self._active.set(active)
        self._waiting.set(waiting)


class IngressMetrics:
    """The metrics of one ingress replica. Create it once, in the ingress's constructor. Its methods never raise."""

    def __init__(self) -> None:
        self._images = metrics.Counter(
            "psdxl_images", "Images by outcome: succeeded, failed or cancelled.", tag_keys=("outcome",)
        )
        self._queued = metrics.Gauge("psdxl_images_queued", "Images queued because all replicas are busy.")
        self._first_preview = metrics.Histogram(
            "psdxl_first_preview_seconds", "Time from a streamed request to its first preview.", boundaries=_SECONDS
        )
        self._retried = metrics.Counter(
            "psdxl_slots_retried", "Slots generated again because their replica died, hung or returned them."
        )

    @_counted
    def first_preview(self, seconds: float) -> None:
        self._first_preview.observe(seconds)

    @_counted
    def ended(self, outcome: str) -> None:
        self._images.inc(tags={"outcome": outcome})

    @_counted
    def waiting(self, images: int) -> None:
        self._queued.set(images)

    @_counted
    def retried(self) -> None:
        self._retried.inc()
