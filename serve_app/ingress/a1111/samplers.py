"""What A1111 calls the samplers and their schedules."""

from collections.abc import Collection

from serve_app.errors import InvalidRequest
from serve_app.ingress.a1111.schemas import Sampler, Schedule
from serve_app.recipe import SchedulerName, SigmaSchedule
from serve_app.samplers import SAMPLERS, SCHEDULES

_AUTOMATIC = "automatic"
_BY_NAME: dict[str, SchedulerName] = {
    name.lower(): scheduler
    for scheduler, sampler in SAMPLERS.items()
    for name in (sampler.said, *sampler.aliases, scheduler)
}
_SCHEDULES: dict[str, SigmaSchedule | None] = {
    **{name.lower(): schedule for schedule, label in SCHEDULES.items() for name in (schedule, label)},
    _AUTOMATIC: None,
}

SCHEDULE_LIST = [
    Schedule(name=_AUTOMATIC, label="Automatic"),
    *(Schedule(name=schedule, label=label) for schedule, label in SCHEDULES.items()),
]


def sampler_list(names: Collection[SchedulerName]) -> list[Sampler]:
    """Return the samplers of these names as A1111 lists them."""
    taken = (sampler for name, sampler in SAMPLERS.items() if name in names)
    return [Sampler(name=sampler.said, aliases=list(sampler.aliases)) for sampler in taken]


def sampling_of(sampler: str | None, schedule: str | None) -> tuple[SchedulerName | None, SigmaSchedule | None]:
    """Return our names of a sampler and a schedule; None: the model's default. Raises InvalidRequest."""
    named = (schedule or _AUTOMATIC).lower()
    if named not in _SCHEDULES:
        labels = ", ".join(each.label for each in SCHEDULE_LIST)
        raise InvalidRequest(f"scheduler: {schedule} is not one of {labels}", "scheduler")
    if not sampler:
        return None, _SCHEDULES[named]
    scheduler, part_of_the_name = _named(sampler.lower())
    if scheduler is None:
        names = ", ".join(each.said for each in SAMPLERS.values())
        raise InvalidRequest(f"sampler_name: {sampler} is not one of {names}", "sampler_name")
    return scheduler, _SCHEDULES[named] or part_of_the_name


def _named(sampler: str) -> tuple[SchedulerName | None, SigmaSchedule | None]:
    """Return a sampler by its name, and the schedule that older names end with, as in "LMS Karras"."""
    if sampler in _BY_NAME:
        return _BY_NAME[sampler], None
    for ending, schedule in _SCHEDULES.items():
        if (scheduler := _BY_NAME.get(sampler.removesuffix(f" {ending}"))) is not None:
            return scheduler, schedule
    return None, None
