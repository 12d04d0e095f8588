"""The client of a service: yields its events, and turns its errors into messages that say what to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx2
from pydantic import Field, TypeAdapter, ValidationError

from serve_app.cli.errors import SettingRefused, Unavailable, Unusable
from serve_app.cli.route import Route
from serve_app.schemas import ErrorBody, Event, Health, Problem, can_be_key

KEY_VARIABLE = "PARALLEL_SDXL_API_KEY"

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Service:
    """The service at the end of a route. Its methods raise CommandError."""

    route: Route
    key: str | None = field(repr=False)

    @contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[Iterator[Event]]:
        """Send a request and yield an iterator of its events.

        Leaving the context closes the connection, and the service then cancels what is unfinished.
        """
        with (
            self._explained(),
            self._client() as http,
            # No size limit: one event may hold a whole picture or grid.
            http.sse(
                "/stream",
                method="POST",
                content=_json(body),
                headers={"Content-Type": "application/json"},
                max_event_size=None,
            ) as source,
        ):
            self._check(source.response)
            yield (self._event(message.data) for message in source)

    def version(self) -> str:
        """Return the service's version."""
        with self._explained(), self._client() as http:
            return Health.model_validate_json(http.get("/health").content).version

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
