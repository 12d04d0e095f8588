"""A real browser on the running service."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from ray import serve
from ray.serve import RunTarget

from serve_app.config import AuthConfig
from tests.integration.conftest import KEY, Cluster, Running, eventually, let_go, tiny_args
from tests.integration.paced import build
from tests.programs import program

# The first has no window, toolbar and tabs, which take a quarter of these tests' time.
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Images that leave time to act, also where the browser has to share its cores with them.
LONG = {"steps": 120, "width_in_pixels": 64, "height_in_pixels": 64}
ENDLESS = {**LONG, "steps": 998}

PROFILE: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}

_PATIENCE_MS = 20_000
expect.set_options(timeout=_PATIENCE_MS)


@pytest.fixture(scope="package")
def locked(cluster: Cluster, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a service that wants KEY, below a path of its own; it ends with this folder's tests."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    args = tiny_args(tiny_path, num_replicas=1, auth=AuthConfig(keys_file=str(keys)))
    serve.run_many([RunTarget(build(args), name="locked", route_prefix="/locked")])
    url = f"{cluster.url}/locked"
    with httpx2.Client(base_url=url) as http:
        eventually(lambda: http.get("/health").status_code == 200)
    yield url
    let_go("locked")


# Not for the whole session: while Playwright's own event loop runs, no asynchronous test can, nor does Serve deploy:
# hence the services first.
@pytest.fixture(scope="package")
def browser(service: Running, locked: str) -> Iterator[Browser]:
    found = program(_NAMES[0], *_NAMES)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )  # as root, Chromium has no sandbox
        yield browser
        browser.close()


class Playground:
    """The page, as a person uses it. `faults` is what nobody should ever see in a browser's console or network log."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        page.on(
            "console",
            lambda message: self.faults.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((url, "data:", "blob:")) else self.faults.append(request.url)
            ),
        )

    def open(self, fragment: str = "") -> None:
        self.page.goto(self.url + "/" + fragment)
        self.page.locator("#generate:enabled").wait_for()

    def leave(self) -> None:
        """Forget all that the page has kept; another may follow in its place."""
        context = self.page.context
        context.clear_permissions()
        for page in [page for page in context.pages if page != self.page]:
            page.close()
        if not self.page.is_closed():
            self.page.unroute_all(behavior="ignoreErrors")
            self.page.evaluate("sessionStorage.clear()")  # the tab's
            self.page.goto("about:blank")
            browser = context.new_cdp_session(self.page)
            browser.send("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
            browser.detach()

    def fill(self, **fields: Any) -> None:
        """Fill the form by its labels: fill(prompt="a cat", seed=7)."""
        for label, value in fields.items():
            self.page.get_by_label(label.replace("_", " ").capitalize(), exact=True).fill(str(value))

    def generate(self, **fields: Any) -> None:
        self.fill(**{"prompt": "a red apple", "seed": 7, **fields})
        self.page.get_by_role("button", name="Generate", exact=True).click()

    def tile(self, seed: int) -> Locator:
        """Return the tile of a seed in the newest run that has it."""
        return self.page.locator(".tile", has=self.page.get_by_text(f"Seed {seed}", exact=True)).first

    def tiles(self, state: str) -> Locator:
        return self.page.locator(f".tile[data-state={state}]")

    def wait_for(self, number: int, state: str) -> None:
        self.tiles(state).nth(number - 1).wait_for(timeout=60_000)

    def forgive(self, text: str) -> None:
        """Take a fault that the test has brought about off the list; the console may tell it later than the page."""

        def told() -> bool:
            self.page.wait_for_timeout(10)  # Playwright hears of it only while it is waited for
            return any(text in fault for fault in self.faults)

        eventually(told)
        self.faults[:] = [fault for fault in self.faults if text not in fault]


def in_flight(service: Running) -> int:
    """Return how many images are on the service, generated or waiting.

    It asks over HTTP, because Serve's handles take Playwright's loop for one of theirs.
    """
    status = service.http.get("/status").json()
    return int(status["images_in_flight"] + status["images_waiting"])


OpenPlayground = Callable[..., Playground]


@pytest.fixture
def open_playground(service: Running, browser: Browser) -> Iterator[OpenPlayground]:
    """Open the page in a browser profile of its own. Faults fail the test.

    open_playground(fragment, color_scheme="dark", ...)
    """
    opened: list[Playground] = []
    eventually(lambda: in_flight(service) == 0)

    def open_one(fragment: str = "", url: str = service.url, **profile: Any) -> Playground:
        context = browser.new_context(**{**PROFILE, **profile})
        context.set_default_timeout(_PATIENCE_MS)
        opened.append(Playground(context.new_page(), url))
        opened[-1].open(fragment)
        return opened[-1]

    yield open_one
    for playground in opened:
        playground.page.context.close()
    assert [fault for playground in opened for fault in playground.faults] == []


@pytest.fixture(scope="package")
def shared(browser: Browser) -> BrowserContext:
    context = browser.new_context(**PROFILE)
    context.set_default_timeout(_PATIENCE_MS)
    return context


@pytest.fixture
def playground(service: Running, shared: BrowserContext) -> Iterator[Playground]:
    """Open the page in a profile that tests share, since a new one takes longer to start than most of them last."""
    eventually(lambda: in_flight(service) == 0)
    playground = Playground(shared.pages[0] if shared.pages else shared.new_page(), service.url)
    playground.open()
    yield playground
    playground.leave()
    assert playground.faults == []
