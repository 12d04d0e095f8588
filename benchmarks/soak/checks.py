"""What observations say of the service's promises. Each check returns a sentence for each that is broken."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from statistics import median, quantiles

from benchmarks.soak.clients import Fate, Tally
from benchmarks.soak.cluster import Part, State
from benchmarks.soak.witness import Refusal, Stage

_MEMORY = 1.05
_IMAGE, _IMAGE_S = 1.25, 0.05
"""An image may take so much longer than before, and so many seconds: two cores are never quite idle."""

_HEALTH_S = 0.05
_ROUNDS = 4
"""The images of a request take turns with everyone else's: the largest request, of four, may take so many rounds."""

_COLUMNS = ("event", "sent", "faults", "lost", "duplicates", "500s", "torn", "time to heal")


@dataclass(frozen=True)
class Row:
    """An event, and what became of the requests around it."""

    event: str
    tally: Tally
    faults: int
    healed_s: float | None = None
    may_tear: bool = False
    """Whether a process has died that held connections."""


@dataclass(frozen=True)
class Flood:
    """Requests beyond what there is room for.

    `room` is how many images may be in work and wait at once, `seconds` how long images were generated.
    """

    tally: Tally
    seconds: float
    room: int
    refusals: tuple[Refusal, ...]
    health_s: tuple[float, ...]

    @property
    def promised_s(self) -> float:
        """What the last of as many images as there is room for has to wait, at the pace of this flood."""
        return self.room * self.seconds / max(1, self.tally.images)

    @property
    def told_well(self) -> float:
        """The part of the refused that were told when there would be room, within a factor of two.

        Retry-After is in whole seconds, at least one.
        """
        well = [r.told_s <= 2 * r.room_s + 1 and r.room_s <= 2 * r.told_s for r in self.refusals]
        return sum(well) / max(1, len(well))


def delivered(row: Row) -> list[str]:
    """Everything accepted came, once, as the same picture."""
    bad = {Fate.LOST, Fate.ERROR} | (set() if row.may_tear else {Fate.TORN, Fate.UNREACHED})
    tally = row.tally
    if any(tally.fates[fate] for fate in bad) or tally.duplicates or tally.wrong:
        return [f"{row.event}: {tally}; {tally.details[:3]}"]
    return []


def left_over(start: State, now: State) -> list[str]:
    """No slot, task, lease or object is left: no process holds more than one of its kind did at the start."""
    broken = [f"{now.images} images are left"] if now.images else []
    if now.objects > start.objects:
        broken.append(f"{now.objects} objects are in the object stores, {start.objects} were at the start")
    for (part, pid), held in now.holds.items():
        usual: Counter[str] = reduce(or_, (there for (kind, _), there in start.holds.items() if kind is part))
        if surplus := held - usual:
            broken.append(f"the {part.value} {pid} still holds {dict(surplus)}")
    return broken


def grown(start: State, now: State, most: float = _MEMORY) -> list[str]:
    """No process that lived throughout takes more memory, and one of each kind did live."""
    lived = start.memory.keys() & now.memory.keys()
    parts = {part for part, _ in lived}
    broken = [f"no {part.value} lived throughout" for part in (Part.REPLICA, Part.INGRESS) if part not in parts]
    return broken + [
        f"the {part.value} {pid} had {start.memory[part, pid] / 1e6:.1f} MB and has {now.memory[part, pid] / 1e6:.1f}"
        for part, pid in sorted(lived, key=str)
        if now.memory[part, pid] > most * start.memory[part, pid]
    ]


def slower(before_s: float, after_s: float) -> list[str]:
    """An image is generated as fast as before."""
    if after_s > _IMAGE * before_s + _IMAGE_S:
        return [f"an image took {before_s:.2f} s and takes {after_s:.2f} s"]
    return []


def happened(
    part: Part, victim: int, before: Mapping[Part, frozenset[int]], after: Mapping[Part, frozenset[int]]
) -> list[str]:
    """The process died and another came."""
    if victim not in before[part] or victim in after[part]:
        return [f"the {part.value} {victim} was to die and did not"]
    if len(after[part]) != len(before[part]) or not after[part] - before[part]:
        return [f"the {part.value} {victim} died and was not replaced"]
    return []


def stages_missed(cancelled: Mapping[Stage, int]) -> list[str]:
    """Clients left at every stage of an image."""
    return [f"nobody left while an image was {stage.value}" for stage in Stage if not cancelled[stage]]


def kept_promises(flood: Flood) -> list[str]:
    """The accepted wait no longer than admission lets them, the refused hear when to come, health answers first."""
    longest, usual = max(flood.tally.seconds, default=0.0), median(flood.tally.seconds or [0.0])
    broken = []
    if usual > flood.promised_s or longest > _ROUNDS * flood.promised_s:
        broken.append(f"answers took {usual:.1f} s, at most {longest:.1f} s; promised were {flood.promised_s:.1f} s")
    if not flood.refusals or flood.told_well < 0.5:
        broken.append(f"{flood.told_well:.0%} of {len(flood.refusals)} refusals told when there would be room")
    if percentile(flood.health_s, 99) > usual:
        broken.append(f"/health waits behind images: {spread(flood.health_s)}")
    return broken


def slow_health(seconds: Iterable[float]) -> list[str]:
    """The idle service answers about its health at once."""
    told = tuple(seconds)
    return [f"/health of the idle service: {spread(told)}"] if percentile(told, 99) > _HEALTH_S else []


def percentile(seconds: Iterable[float], part: int) -> float:
    return quantiles(seconds, n=100, method="inclusive")[part - 1]


def spread(seconds: Iterable[float]) -> str:
    told = tuple(seconds)
    if len(told) < 2:
        return "none"
    return f"p50 {median(told):.3f} s, p99 {percentile(told, 99):.3f} s, at most {max(told):.3f} s of {len(told)}"


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    for row in rows:
        fates = row.tally.fates
        healed = "" if row.healed_s is None else f"{row.healed_s:.1f} s"
        cells = (row.event, row.tally.sent, row.faults, fates[Fate.LOST], row.tally.duplicates, fates[Fate.ERROR])
        lines.append("| " + " | ".join(map(str, (*cells, fates[Fate.TORN], healed))) + " |")
    return "\n".join(lines)
