"""How long a GPU was idle."""

from collections.abc import Sequence


def idle_fraction(spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of the time from the first start to the last end that no span covers. Spans may overlap."""
    ordered = sorted(spans)
    if not ordered:
        raise ValueError("nothing ran on the GPU")
    begin, end = ordered[0]
    idle = 0.0
    for start, stop in ordered[1:]:
        idle += max(0.0, start - end)
        end = max(end, stop)
    return idle / (end - begin) if end > begin else 0.0
