"""A service mounted below a path such as `/x`; its page is at `/x/`."""

from starlette.datastructures import URL
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class PrefixAsFolder:
    """Redirects `/x` to `/x/`, because all addresses in the page are relative."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"] or scope["path"] != scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        # Relative too: a proxy in front may strip another prefix.
        folder = URL(path=f"{scope['path'].rpartition('/')[2]}/", query=scope["query_string"].decode("latin-1"))
        await RedirectResponse(str(folder))(scope, receive, send)
