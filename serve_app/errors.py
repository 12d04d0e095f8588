"""The error types.

    ServiceError            the whole request is refused or failed; becomes an HTTP answer
    |-- NotFound            404  nothing has that name (any more)
    |   `-- ModelNotFound   404  the request names a model that is not served
    |-- InvalidRequest      422  a field is wrong; `param` names it
    |   `-- AdapterError    422  the file of an adapter cannot be used; the message names the adapter
    |-- NotPaused           409  images are to go on that are not paused
    |-- TooManyWaiting      429  the queue is full; `retry_after_s` says when to retry
    |-- TooManyPaused       429  paused images keep all that they may keep
    |-- GenerationFailed    500  every image of the request failed
    |-- InternalError       500  a bug in the service; the log says more
    |-- NotReady            503  no replica has loaded its model yet; `retry_after_s` says when one may have
    |-- ShuttingDown        503  the service has been told to stop; `retry_after_s` says when another may have started
    `-- DeadlineExceeded    504  the deadline passed before any image finished
    SlotFailed              one image failed, the others go on; sent from the replica to the ingress
    ReplicaLost             the replica, or the call to it, is gone; the fan-out may have the slot generated elsewhere
    SlotReturned            the replica does not generate the slot; the fan-out has it generated elsewhere
    CheckpointError         a checkpoint cannot be served: the replica does not start

Every constructor passes all its arguments to `Exception.__init__`: Ray rebuilds exceptions from `args`, and an error
that it cannot rebuild loses its type.
"""

from typing import ClassVar


class ServiceError(Exception):
    """The whole request is refused or failed. The client sees `type` and `status`."""

    status: ClassVar[int]
    type: ClassVar[str]
    retry_after_s: int | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param


class NotFound(ServiceError):
    status = 404
    type = "not_found"


class ModelNotFound(NotFound):
    type = "model_not_found"


class InvalidRequest(ServiceError):
    status = 422
    type = "invalid_request"


_NOUNS = {"loras": "LoRA", "embeddings": "embedding"}


class AdapterError(InvalidRequest):
    """The file of an adapter cannot be used, or not with this model.

    `kind` is `loras` or `embeddings`; `param` the field that names it, if that is another.
    """

    def __init__(self, name: str, what: str, kind: str = "loras", param: str | None = None) -> None:
        super().__init__(f'the {_NOUNS[kind]} "{name}" {what}', param or kind)
        self.args = (name, what, kind, param)
        self.name = name
        self.what = what
        self.kind = kind

    def __str__(self) -> str:
        return self.message


class TooManyWaiting(ServiceError):
    status = 429
    type = "too_many_waiting"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class NotPaused(ServiceError):
    status = 409
    type = "not_paused"


class TooManyPaused(ServiceError):
    status = 429
    type = "too_many_paused"
    retry_after_s = 10


class GenerationFailed(ServiceError):
    status = 500
    type = "generation_failed"


class InternalError(ServiceError):
    status = 500
    type = "internal"

    def __init__(self) -> None:
        super().__init__("the service failed on this request; its log says why")
        self.args = ()


class NotReady(ServiceError):
    status = 503
    type = "not_ready"

    def __init__(self, message: str, param: str | None = None, retry_after_s: int = 1) -> None:
        super().__init__(message, param)
        self.args = (message, param, retry_after_s)
        self.retry_after_s = retry_after_s


class ShuttingDown(ServiceError):
    status = 503
    type = "shutting_down"
    retry_after_s = 10

    def __init__(self) -> None:
        super().__init__("the service is shutting down; try again, another may take its place")
        self.args = ()


class DeadlineExceeded(ServiceError):
    status = 504
    type = "deadline_exceeded"


_ENDINGS = {error.type: error for error in (DeadlineExceeded, GenerationFailed, NotReady)}


def error_of(type: str, message: str, param: str | None) -> ServiceError:
    """Return the error with which a generation ended, from what its last event told."""
    if type == ShuttingDown.type:
        return ShuttingDown()
    kind = _ENDINGS.get(type)
    return kind(message, param) if kind else InternalError()


OUT_OF_MEMORY = "out_of_memory"
ADAPTER_GONE = "adapter_gone"
"""The type of a failure on replicas that cannot read an accepted image's adapters any more."""
"""The type of the failure that another replica, or this one later, may not have."""


class SlotFailed(Exception):
    """One image failed. `type` is for programs; `message` is for people and reveals no internals."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(type, message)
        self.type = type
        self.message = message


class ReplicaLost(Exception):
    """The replica that was generating a slot is gone, or the call to it is."""


class SlotReturned(Exception):
    """The replica does not generate the slot. It is generated elsewhere; this is not one of its tries.

    `begun`: the slot was being generated when the replica broke down, and so may be why.
    """

    def __init__(self, message: str = "", begun: bool = False) -> None:
        super().__init__(message, begun)
        self.message = message
        self.begun = begun

    def __str__(self) -> str:
        return self.message


class CheckpointError(Exception):
    """A checkpoint cannot be served; the message says which setting to change."""


def first_line(error: BaseException) -> str:
    """Return another library's error as one line, to quote in a message of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
