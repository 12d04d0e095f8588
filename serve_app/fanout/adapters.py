"""Sees before a request is accepted that its adapters can be used."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence

from serve_app.adapters import AdapterFolder
from serve_app.config import AdaptersConfig
from serve_app.errors import AdapterError, InvalidRequest
from serve_app.recipe import Lora
from serve_app.schemas import GenerateRequest, LoraFile

_MOST_REMEMBERED = 10_000

Ask = Callable[[Sequence[Lora]], Awaitable[None]]
"""Has a replica say what is wrong with adapters. Raises AdapterError."""


class AdapterCheck:
    """Finds a request's adapters in the folder, and has a replica read each file once."""

    def __init__(self, config: AdaptersConfig, ask: Ask) -> None:
        self._folder = AdapterFolder(config.folder) if config.folder else None
        self._most = config.max_per_request
        self._ask = ask
        self._fitting: OrderedDict[tuple[str, str | None], None] = OrderedDict()

    def listed(self) -> list[LoraFile]:
        """Return what the folder holds. Reads files."""
        if (folder := self._folder) is None:
            return []
        return [
            LoraFile(
                name=adapter.name,
                hash=folder.hash_if_known(adapter),
                size=adapter.version.size,
                trigger_words=list(adapter.trigger_words),
                base_model=adapter.base_model,
                rank=adapter.rank,
                unusable=adapter.unusable,
            )
            for adapter in folder.all()
        ]

    async def named(self, request: GenerateRequest, model: str) -> GenerateRequest:
        """Return a request whose adapters have their hashes; `model` is the hash of the served model.

        Raises InvalidRequest if there are too many, AdapterError if one cannot be found or used.
        """
        if not request.loras:
            return request
        if len(request.loras) > self._most:
            raise InvalidRequest(f"loras: at most {self._most} are served in one request", "loras")
        loras = await asyncio.to_thread(self._found, request.loras)
        if fresh := [lora for lora in loras if (model, lora.hash) not in self._fitting]:
            await self._ask(fresh)
            self._remember(model, fresh)
        return request.model_copy(update={"loras": loras})

    def _found(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        if self._folder is None:
            raise InvalidRequest("loras: this service has none, since adapters.path is not set", "loras")
        found = []
        for lora in loras:
            now = self._folder.hash_of(self._folder.find(lora.name))
            if lora.hash not in (None, now):
                raise AdapterError(lora.name, f"is another file by now: {now}, not {lora.hash}")
            found.append(lora.model_copy(update={"hash": now}))
        return tuple(found)

    def _remember(self, model: str, loras: Sequence[Lora]) -> None:
        self._fitting |= {(model, lora.hash): None for lora in loras}
        while len(self._fitting) > _MOST_REMEMBERED:
            self._fitting.popitem(last=False)
