"""Where a picture spent its time."""

from serve_app.messages import Work
from serve_app.schemas import Timings

NO_TIME = Timings(queue=0, encode_prompt=0, denoise=0, decode=0, encode=0, total=0)


def timings_of(work: Work, total: float) -> Timings:
    """Split the time up to a picture; what was not work is taken to be spent in the queue."""
    queue = total - (work.encode_prompt + work.denoise + work.decode + work.encode)
    return Timings(
        queue=max(0.0, queue),
        encode_prompt=work.encode_prompt,
        denoise=work.denoise,
        decode=work.decode,
        encode=work.encode,
        total=total,
        gpu=work.gpu,
    )
