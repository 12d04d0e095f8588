"""An HTTP app whose settings can change while it serves."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.routing import BaseRoute, Router
from starlette.types import Receive, Scope, Send

from serve_app.config import AppArgs


class LiveApi:
    """Hands each connection to the app of the newest settings; those under way stay with the one that took them."""

    def __init__(
        self,
        running: Callable[[], AbstractAsyncContextManager[None]],
        create: Callable[[AppArgs], FastAPI],
        args: AppArgs,
    ) -> None:
        self._running = running
        self._create = create
        self._lifespan = Router(lifespan=self._open)
        self._life: _Life | None = None
        self._args = args
        self.newest = create(args)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The routes, by which Serve names them in its metrics."""
        return self.newest.routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._lifespan if scope["type"] == "lifespan" else self.newest
        await app(scope, receive, send)

    async def change(self, args: AppArgs) -> None:
        """Serve with other settings from now on. Raises ValueError if they cannot be used; nothing changes then."""
        if args == self._args:  # Serve also tells at each start, and when an ingress replica gets another rank
            return
        api, before = self._create(args), self._life
        self._life = await _Life.begun(api)
        self._args, self.newest = args, api
        if before is not None:
            await before.end()

    @asynccontextmanager
    async def _open(self, _: object) -> AsyncIterator[None]:
        async with self._running():
            self._life = await _Life.begun(self.newest)
            try:
                yield
            finally:
                await self._life.end()


class _Life:
    """An app's lifespan, open in a task of its own: whoever ends it need not have begun it."""

    def __init__(self, api: FastAPI) -> None:
        self._begun, self._over = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._live(api))

    @classmethod
    async def begun(cls, api: FastAPI) -> "_Life":
        """Open the lifespan. Raises what it raises."""
        life = cls(api)
        begun = asyncio.create_task(life._begun.wait())
        await asyncio.wait([begun, life._task], return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if life._task.done():
            await life._task
        return life

    async def end(self) -> None:
        self._over.set()
        await self._task

    async def _live(self, api: FastAPI) -> None:
        async with api.router.lifespan_context(api):
            self._begun.set()
            await self._over.wait()
