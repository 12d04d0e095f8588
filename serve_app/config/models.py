"""Several models behind one ingress: what each has of its own."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import StringConstraints

ONLY_MODEL = ""
"""What the only model of a service is called where names are needed: it has none in the config."""

OWN = (
    "num_replicas",
    "scaling",
    "num_gpus",
    "num_cpus",
    "model",
    "engine",
    "preview",
    "adapters",
    "limits",
    "admission",
)
"""The settings that a model may have for itself; all others are the ingress's."""

ModelName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""Part of the name of a deployment, and so of log files and labels."""

MODELS = (
    "Several models behind one ingress: names, each with the settings in which that model differs from those beside "
    f"it here, field by field ({', '.join(f'`{name}`' for name in OWN)}). Requests choose with `model`. Empty: the "
    "service has one model, that of `model`."
)
"""What the setting means."""


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes, section by section: what a section does not name stays."""
    changed = dict(values)
    for name, section in changes.items():
        before = values.get(name)
        if isinstance(section, Mapping) and isinstance(before, Mapping):
            section = {**before, **section}
        changed[name] = section
    return changed


def own_settings(name: str, values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings of a model: those beside `models`, with its own. Raises ValueError."""
    if foreign := sorted(own.keys() - set(OWN)):
        raise ValueError(f"models.{name}.{foreign[0]}: a model may have these settings of its own: {', '.join(OWN)}")
    settings = merged(values, own)
    model = settings.get("model", {})
    if not isinstance(model, Mapping):
        return settings  # it will be refused
    if "name" in model:
        raise ValueError(f"models.{name}: {name} is the model's name already; leave out model.name")
    return {**settings, "model": {**model, "name": name}}
