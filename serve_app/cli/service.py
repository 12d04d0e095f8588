"""The client of a service: yields its events, and turns its errors into messages that say what to do."""

import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx2
from pydantic import Field, TypeAdapter, ValidationError

from serve_app.cli.errors import SettingRefused, Unavailable, Unusable
from serve_app.cli.route import Route
from serve_app.schemas import (
    CompletedEvent,
    ErrorBody,
    ErrorEvent,
    Event,
    Health,
    Problem,
    Resumed,
    StartEvent,
    can_be_key,
)

KEY_VARIABLE = "PARALLEL_SDXL_API_KEY"

_PAUSES_S = (0.5, 1, 2, 4, 8)
"""Before each try to go on with a broken stream while nothing new comes; together less than streams.keep_s."""

_CANCEL_TIMEOUT_S = 5
_IS_JSON = {"Content-Type": "application/json"}

_UNLIMITED = None
"""One event may hold a whole picture or grid."""

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Service:
    """The service at the end of a route. Its methods raise CommandError."""

    route: Route
    key: str | None = field(repr=False)

    @contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[Iterator[Event]]:
        """Send a request and yield an iterator of its events, which goes on where a connection breaks.

        Leaving the context cancels what is unfinished.
        """
        content = _json({"on_disconnect": "wait", **body})
        with self._explained(), self._client() as http, ExitStack() as connection:
            source = connection.enter_context(
                http.sse(
                    "/stream",
                    method="POST",
                    content=content,
                    headers=_IS_JSON,
                    max_event_size=_UNLIMITED,
                )
            )
            self._check(source.response)
            with closing(self._events(http, connection, source)) as events:
                yield events

    def resume(self, id_: str, images: list[int], changes: Mapping[str, Any]) -> list[int]:
        """Let sketches go on, maybe with changes; return those that do, none if it is too late."""
        with self._explained(), self._client() as http:
            response = http.post(
                f"/generations/{id_}/resume", content=_json({"images": images, **changes}), headers=_IS_JSON
            )
            if response.status_code in (httpx2.codes.NOT_FOUND, httpx2.codes.CONFLICT):
                return []
            self._check(response)
            return Resumed.model_validate_json(response.content).resumed

    def cancel(self, id_: str, images: list[int]) -> None:
        """End images of a request; those that have ended meanwhile are no error."""
        with self._explained(), self._client() as http:
            for index in images:
                http.delete(f"/generations/{id_}/images/{index}", timeout=_CANCEL_TIMEOUT_S)

    def health(self) -> Health:
        """Return what the service says of itself: its version, its models."""
        with self._explained(), self._client() as http:
            return Health.model_validate_json(http.get("/health").content)

    def _events(self, http: httpx2.Client, connection: ExitStack, source: httpx2.EventSource) -> Generator[Event]:
        """Yield all events. Raises TransportError where the connection breaks for good."""
        id_, last, unfinished, pauses = "", "", False, iter(_PAUSES_S)
        following: httpx2.EventSource | None = source
        try:
            while following:
                lost = None
                try:
                    for message in following:
                        event = self._event(message.data)
                        if message.id != last:
                            last, pauses = message.id, iter(_PAUSES_S)
                        if isinstance(event, StartEvent):
                            id_ = event.id
                        unfinished = not isinstance(event, CompletedEvent | ErrorEvent)
                        yield event
                except httpx2.TransportError as error:
                    lost = error
                # A service without ids, an older one, cannot go on.
                following = _resume(http, connection, pauses, id_, last) if unfinished and last else None
            unfinished = False
            if lost:
                raise lost
        finally:
            if unfinished and last:
                with suppress(httpx2.HTTPError):
                    http.delete(f"/generations/{id_}", timeout=_CANCEL_TIMEOUT_S)

    def _client(self) -> httpx2.Client:
        headers = {}
        if self.key:
            if not can_be_key(self.key):
                raise Unusable(f"{KEY_VARIABLE} holds characters that are not allowed in a key")
            if self.route.url.userinfo:
                raise Unusable(f"use either the URL's password or a key: remove the password or unset {KEY_VARIABLE}")
            headers["Authorization"] = f"Bearer {self.key}"
        return self.route.client(headers)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with self.route.explained():
            try:
                yield
            except (httpx2.DecodingError, httpx2.SSEError, ValidationError):
                raise self._stranger() from None

    def _event(self, data: str) -> Event:
        try:
            return _EVENT.validate_json(data)
        except ValidationError:
            raise self._stranger() from None

    def _check(self, response: httpx2.Response) -> None:
        if response.status_code == httpx2.codes.OK:
            return
        problem = _problem(response)
        match response.status_code, problem:
            case httpx2.codes.UNAUTHORIZED, _:
                raise Unavailable(
                    f"the service refuses the key in {KEY_VARIABLE}"
                    if self.key
                    else f"the service needs a key: set the environment variable {KEY_VARIABLE}"
                )
            case httpx2.codes.TOO_MANY_REQUESTS, _:
                raise Unavailable(f"the service is busy: try again {_when(response)}")
            case ((httpx2.codes.UNPROCESSABLE_ENTITY | httpx2.codes.REQUEST_ENTITY_TOO_LARGE), Problem()):
                raise SettingRefused(problem.message, problem.param)
            case httpx2.codes.SERVICE_UNAVAILABLE, Problem():
                raise Unavailable(
                    f"the service is not ready: {problem.message}; {self.route.place}/health shows when it is"
                )
            case _, Problem():
                raise Unavailable(f"the service answers {response.status_code}: {problem.message}")
            case _:
                raise self._stranger(f"; it answers {response.status_code} {response.reason_phrase}")

    def _stranger(self, detail: str = "") -> Unavailable:
        return Unavailable(
            f"{self.route.place}{self.route.detour} is not a parallel-sdxl service "
            f"that this version understands, or is still starting{detail}"
        )


def _resume(
    http: httpx2.Client, connection: ExitStack, pauses: Iterator[float], id_: str, last: str
) -> httpx2.EventSource | None:
    """Return the rest of a stream after an event; None where the service cannot be reached or knows of none."""
    for pause_s in pauses:
        time.sleep(pause_s)
        with suppress(httpx2.TransportError):
            connection.close()
            source = connection.enter_context(
                http.sse(f"/generations/{id_}/events", headers={"Last-Event-ID": last}, max_event_size=_UNLIMITED)
            )
            if source.response.status_code == httpx2.codes.OK:
                return source
            if source.response.is_client_error:
                return None
    return None


def _json(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:  # NaN, or an argument that is not UTF-8
        raise Unusable(f"a setting cannot be sent: {error}") from None


def _problem(response: httpx2.Response) -> Problem | None:
    try:
        return ErrorBody.model_validate_json(response.read()).error
    except ValidationError:  # a gateway's page, not ours
        return None


def _when(response: httpx2.Response) -> str:
    seconds = response.headers.get("Retry-After", "")
    return f"in {seconds} s" if seconds.isdecimal() else "later"
