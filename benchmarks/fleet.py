"""What is simulated: a fleet, a load, and what became of it."""

from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Times:
    """Seconds that each part of an image takes.

    `prompt`, `step` and `vae` keep the GPU busy, `file` follows beside it. `around` is HTTP and Ray, half of it before
    and half after the images of a request. `ingress` keeps the ingress's one processor busy.
    """

    prompt: float
    step: float
    vae: float
    file: float
    around: float
    ingress: float = 0.0

    def on_gpu(self, kind: "Kind") -> float:
        """Return how long an image keeps a GPU busy."""
        return self.prompt + kind.cost * (kind.steps * self.step + self.vae)


@dataclass(frozen=True)
class Fleet:
    """What there is, and the service's settings of the same names."""

    gpus: int
    ingresses: int = 1
    max_batch_size: int = 4
    max_waiting_images: int = 64
    max_images: int = 16


@dataclass(frozen=True)
class Kind:
    """A kind of request and its share of all. Its steps and VAE cost so many times what `Times` says."""

    images: int
    steps: int = 20
    share: float = 1.0
    cost: float = 1.0


@dataclass(frozen=True)
class Closed:
    """Clients that each ask again as soon as they have their answer."""

    clients: int
    kind: Kind


@dataclass(frozen=True)
class Open:
    """Requests at random moments, each from a client of its own. What is refused does not come again."""

    requests_per_second: float
    mix: tuple[Kind, ...]


@dataclass(frozen=True)
class Answer:
    """When a request was answered, how long it took, and its images."""

    moment: float
    seconds: float
    images: int


@dataclass(frozen=True)
class Outcome:
    """What became of the requests after the warm-up.

    `gpu_use` and `ingress_use` are the busy part of the time, on average. `deciding_s` is the processor time that the
    fan-out's own code has really taken for an image, on the machine that simulates.
    """

    answers: tuple[Answer, ...]
    refused: int
    images_per_second: float
    gpu_use: float
    ingress_use: float
    deciding_s: float

    @property
    def finished(self) -> list[float]:
        """When each image was answered, in order."""
        return [answer.moment for answer in self.answers for _ in range(answer.images)]

    @property
    def refusals(self) -> float:
        """The part of the requests that was refused."""
        return self.refused / max(1, self.refused + len(self.answers))

    def percentile(self, percent: int) -> float:
        """Return the seconds in which so many per cent of the requests were answered; nan without any."""
        seconds = [answer.seconds for answer in self.answers]
        if len(seconds) < 2:
            return seconds[0] if seconds else float("nan")
        return quantiles(seconds, n=100, method="inclusive")[percent - 1]
