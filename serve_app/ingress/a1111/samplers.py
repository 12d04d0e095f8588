"""What A1111 calls the samplers and their schedules."""

from serve_app.errors import InvalidRequest
from serve_app.ingress.a1111.schemas import Sampler, Schedule
from serve_app.metadata import SAMPLERS
from serve_app.recipe import SchedulerName

_ALIASES: dict[SchedulerName, tuple[str, ...]] = {
    "euler": ("k_euler",),
    "euler_a": ("k_euler_a", "k_euler_ancestral"),
    "dpmpp_2m": ("k_dpmpp_2m",),
    "dpmpp_2m_karras": ("k_dpmpp_2m_ka",),
    "ddim": (),
    "unipc": (),
}
_BY_NAME: dict[str, SchedulerName] = {
    name.lower(): scheduler for scheduler, said in SAMPLERS.items() for name in (said, *_ALIASES[scheduler], scheduler)
}
_AUTOMATIC, _KARRAS = "automatic", "karras"

SAMPLER_LIST = [Sampler(name=said, aliases=list(_ALIASES[scheduler])) for scheduler, said in SAMPLERS.items()]
SCHEDULE_LIST = [Schedule(name=_AUTOMATIC, label="Automatic"), Schedule(name=_KARRAS, label="Karras")]


def scheduler_of(sampler: str | None, schedule: str | None) -> SchedulerName | None:
    """Return our scheduler for a sampler and a schedule; None: the model's default. Raises InvalidRequest."""
    kind = (schedule or _AUTOMATIC).lower()
    if not sampler:
        scheduler = None
    elif (scheduler := _BY_NAME.get(sampler.lower())) is None:
        raise InvalidRequest(f"sampler_name: {sampler} is not one of {', '.join(SAMPLERS.values())}", "sampler_name")
    if kind == _AUTOMATIC or (kind == _KARRAS and scheduler == "dpmpp_2m_karras"):
        return scheduler
    if kind == _KARRAS and scheduler == "dpmpp_2m":
        return "dpmpp_2m_karras"
    raise InvalidRequest(
        f"scheduler: must be Automatic, or Karras with the sampler DPM++ 2M, not {schedule}", "scheduler"
    )
