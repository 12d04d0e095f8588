"""A service below a path of its own, such as `/x`, where the page lies at `/x/`."""

from starlette.datastructures import URL
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class PrefixAsFolder:
    """Send who asks for the bare prefix on to the folder of that name: all addresses in the page are relative to it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"] or scope["path"] != scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        # Relative as well: a proxy in front may have taken a prefix of its own away.
        folder = URL(path=f"{scope['path'].rpartition('/')[2]}/", query=scope["query_string"].decode("latin-1"))
        await RedirectResponse(str(folder))(scope, receive, send)
