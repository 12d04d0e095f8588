"""Sees before a request is accepted that its adapters can be used."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

from serve_app.adapters import AdapterFolder, Version
from serve_app.config import ONLY_MODEL, AdaptersConfig
from serve_app.errors import AdapterError, DeadlineExceeded, InvalidRequest
from serve_app.prompt_embeddings import names_in
from serve_app.recipe import Embedding, Lora, Recipe
from serve_app.schemas import EmbeddingFile, LoraFile
from serve_app.threads import Threads

_MOST_REMEMBERED = 10_000
_AT_ONCE = 4
"""How many threads look at files. A disk that hangs holds up these alone."""

Asked = TypeVar("Asked", Lora, Embedding)
"""An adapter as a request names it."""
Asking = TypeVar("Asking", bound=Recipe)

Ask = Callable[[Sequence[Lora], Sequence[Embedding]], Awaitable[Mapping[Version, str] | None]]
"""Has a replica read adapters, and returns the hashes of files that were named without; None if none has answered.

Raises AdapterError where they cannot be used.
"""


class AdapterCheck:
    """Finds a request's adapters in the folder, and has a replica read each file once."""

    def __init__(self, config: AdaptersConfig, ask: Ask, model: str = ONLY_MODEL) -> None:
        self._folder = AdapterFolder(config.folder, model) if config.folder else None
        self._most = config.max_per_request
        self._ask = ask
        self._threads = Threads(_AT_ONCE, "adapters")
        self._fitting: OrderedDict[tuple[str, str | None], None] = OrderedDict()

    async def embeddings(self, among: Collection[str] | None = None) -> list[EmbeddingFile]:
        """Return the embeddings in the folder, or those `among` them with one of these names, in lower case."""
        if (folder := self._folder) is None:
            return []
        return [
            EmbeddingFile(name=one.name, hash=folder.hash_if_known(one), tokens=one.tokens or 0, unusable=one.unusable)
            for one in await self._threads.run(folder.embeddings, among)
        ]

    async def loras(self, among: Collection[str] | None = None) -> list[LoraFile]:
        """Return the LoRAs in the folder, or those `among` them with one of these names, in whichever folders."""
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
            for adapter in await self._threads.run(folder.loras, among)
        ]

    async def named(self, request: Asking, model: str, within_s: float = math.inf) -> Asking:
        """Return a request, or a recipe, whose adapters have their hashes; `model` is the hash of the served model.

        Raises InvalidRequest if there are too many, AdapterError if one cannot be found or used, DeadlineExceeded if
        it takes longer than `within_s` seconds.
        """
        names = names_in([*request.texts.values()])
        if not (names or request.loras or request.embeddings):
            return request
        if len(request.loras) > self._most:
            raise InvalidRequest(f"loras: at most {self._most} LoRAs are served in one request", "loras")
        try:
            async with asyncio.timeout(None if within_s == math.inf else within_s):
                answered = await self._have_new_ones_read(model, request.loras)
                loras = await self._threads.run(self._found, request.loras)
                embeddings = await self._threads.run(self._embedded, request.embeddings, names)
                if answered:
                    await self._require_fitting(model, loras, embeddings)
        except TimeoutError as error:
            raise DeadlineExceeded("the files of its adapters could not be read in time") from error
        except AdapterError as error:
            raise AdapterError(error.name, error.what, error.kind, _field_of(error, request)) from error
        return request.model_copy(update={"loras": loras, "embeddings": embeddings})

    async def _have_new_ones_read(self, model: str, loras: Sequence[Lora]) -> bool:
        """Have a replica read files whose hashes are unknown here: it needs them anyway, and so they are read once.

        Hashes that it does not tell are found out here. Return False if no replica answers. Raises AdapterError.
        """
        if (folder := self._folder) is None or not (new := await self._threads.run(self._unknown, folder, loras)):
            return True
        if (hashes := await self._ask(new, ())) is None:
            return False
        for version, hash_ in hashes.items():
            folder.learn(version, hash_)
        self._remember(model, [*hashes.values()])
        return True

    def _unknown(self, folder: AdapterFolder, loras: Sequence[Lora]) -> list[Lora]:
        return [Lora(name=one.name) for one in loras if folder.hash_if_known(folder.find(one.name)) is None]

    async def _require_fitting(self, model: str, loras: Sequence[Lora], embeddings: Sequence[Embedding]) -> None:
        """Raise AdapterError where a file cannot be used with a model. A replica reads each once."""
        fresh = [lora for lora in loras if (model, lora.hash) not in self._fitting]
        new = [embedding for embedding in embeddings if (model, embedding.hash) not in self._fitting]
        if (fresh or new) and await self._ask(fresh, new) is not None:
            self._remember(model, [*(lora.hash for lora in fresh), *(embedding.hash for embedding in new)])

    def _embedded(self, given: Sequence[Embedding], names: Sequence[str]) -> tuple[Embedding, ...]:
        """Return the embeddings that prompts name, in one order; `given` may say their hashes."""
        hashes = {one.name: one.hash for one in given}
        if unnamed := [name for name in hashes if name not in names]:
            raise InvalidRequest(
                f'embeddings: no prompt names "{unnamed[0]}"; write embedding:{unnamed[0]} in it', "embeddings"
            )
        if names and self._folder is None:
            raise AdapterError(names[0], "cannot be found, since adapters.path is not set", "embeddings")
        found = []
        for name in sorted(names):
            assert self._folder is not None
            now = self._folder.hash_of(self._folder.find_embedding(name))
            found.append(_agreed(Embedding(name=name, hash=hashes.get(name)), now, "embeddings"))
        return tuple(found)

    def _found(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        if not loras:
            return ()
        if self._folder is None:
            raise InvalidRequest("loras: this service has none, since adapters.path is not set", "loras")
        found = []
        for lora in loras:
            now = self._folder.hash_of(self._folder.find(lora.name))
            found.append(_agreed(lora, now, "loras"))
        return tuple(found)

    def _remember(self, model: str, hashes: Sequence[str | None]) -> None:
        self._fitting |= {(model, hash_): None for hash_ in hashes}
        while len(self._fitting) > _MOST_REMEMBERED:
            self._fitting.popitem(last=False)


def _field_of(error: AdapterError, request: Recipe) -> str:
    """Return the field of a request that names an adapter."""
    if error.kind == "loras" or any(one.name == error.name and one.hash for one in request.embeddings):
        return error.kind
    return next((field for field, text in request.texts.items() if error.name in names_in([text])), error.kind)


def _agreed(asked: Asked, now: str, param: str) -> Asked:
    """Return an adapter with its file's hash. Raises AdapterError where another one was asked for."""
    if asked.hash not in (None, now):
        raise AdapterError(asked.name, f"is another file by now: {now}, not {asked.hash}", param)
    return asked.model_copy(update={"hash": now})
