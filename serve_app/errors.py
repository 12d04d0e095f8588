"""What can go wrong, as types.

    ServiceError            a request as a whole is refused or has failed; becomes an HTTP answer
    |-- NotFound            404  there is nothing by that name (any more)
    |   `-- ModelNotFound   404  another model is asked for than the served one
    |-- InvalidRequest      422  a field is wrong; `param` names it
    |-- TooManyWaiting      429  the waiting line is full; `retry_after_s` says when to come back
    |-- GenerationFailed    500  every image of the request failed
    |-- InternalError       500  a fault of ours; the log says more
    |-- NotReady            503  no replica has loaded its model yet
    `-- DeadlineExceeded    504  the deadline passed with nothing finished
    SlotFailed              one image failed, the others go on; crosses from the replica to the ingress
    SlotCancelled           one image was cancelled on its replica
    ReplicaLost             the replica died under a slot; the fan-out may generate the slot again elsewhere
    CheckpointError         a checkpoint cannot be served: the replica does not start

Every constructor hands all of its arguments to `Exception.__init__`: Ray rebuilds exceptions from `args`, and one
that cannot be rebuilt arrives without its type.
"""

from typing import ClassVar


class ServiceError(Exception):
    """A request that ends without a picture; `type` and `status` are what the client sees."""

    status: ClassVar[int]
    type: ClassVar[str]

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


class TooManyWaiting(ServiceError):
    status = 429
    type = "too_many_waiting"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class GenerationFailed(ServiceError):
    status = 500
    type = "generation_failed"


class InternalError(ServiceError):
    status = 500
    type = "internal"

    def __init__(self) -> None:
        super().__init__("the service failed at this request; its log says why")
        self.args = ()


class NotReady(ServiceError):
    status = 503
    type = "not_ready"


class DeadlineExceeded(ServiceError):
    status = 504
    type = "deadline_exceeded"


class SlotFailed(Exception):
    """One image failed. `type` is a slug for programs, `message` a sentence for people without internals in it."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(type, message)
        self.type = type
        self.message = message


class SlotCancelled(Exception):
    """One image was cancelled before it was finished."""


class ReplicaLost(Exception):
    """The replica that was generating a slot is gone."""


class CheckpointError(Exception):
    """A checkpoint cannot be served; the message says which setting to change."""


def first_line(error: BaseException) -> str:
    """Return the gist of another library's error, for a sentence of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
