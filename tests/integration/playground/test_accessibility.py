"""axe finds nothing wrong with the page, in any state, in any colours, at any width."""

import json
from base64 import b64decode
from typing import Any, Literal
from urllib.parse import urlencode

from axe_playwright_python.base import AXE_SCRIPT
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FilePayload, Page, ViewportSize

from tests.integration.playground.conftest import ENDLESS, OpenPlayground
from tests.integration.playground.exchange import changed_events, fail_seed

WIDTHS: dict[str, ViewportSize] = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}
ALL_RULES: dict[str, Any] = {"resultTypes": ["violations"], "reporter": "no-passes"}
COLOURS = {**ALL_RULES, "runOnly": ["color-contrast"]}
"""The rule that looks at colours: all the others would find the same in the dark."""

RELATIVES_OF_A_BRANCH = {
    "pause_after": 2,
    "num_inference_steps": 4,
    "variations": json.dumps([{"seed": 3, "strength": 0.2}]),
    "before": json.dumps([{"until_step": 1, "prompt": "a pear"}]),
}
PIXEL = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")


class Eyes:
    """Look at one page with axe in all colours and at all widths, again in each of its states."""

    def __init__(self, page: Page) -> None:
        self._page = page
        page.evaluate(AXE_SCRIPT)  # once, since the page stays the same
        self._axe = Axe("axe.version")
        self._browser = page.context.new_cdp_session(page)

    def check(self, state: str) -> None:
        for device, size in WIDTHS.items():
            self._page.set_viewport_size(size)
            self._browser.send("Emulation.setTouchEmulationEnabled", {"enabled": device == "phone"})
            self._look(f"{state}, {device}, light", "light", ALL_RULES)
            self._look(f"{state}, {device}, dark", "dark", COLOURS)

    def _look(self, state: str, scheme: Literal["light", "dark"], options: dict[str, Any]) -> None:
        self._page.emulate_media(color_scheme=scheme)
        results = self._axe.run(self._page, options=options)
        assert results.violations_count == 0, f"{state}:\n{results.generate_report()}"


def test_axe_finds_nothing(open_playground: OpenPlayground) -> None:
    playground = open_playground()
    page = playground.page
    eyes = Eyes(page)
    page.locator("#more").evaluate("details => details.open = true")
    page.get_by_label("Add a LoRA").select_option("a")
    eyes.check("empty, with a LoRA")
    page.get_by_role("button", name="Remove a", exact=True).click()

    page.locator("#init_image").set_input_files(FilePayload(name="photo.png", mimeType="image/png", buffer=PIXEL))
    page.get_by_role("button", name="Paint a mask").click()
    page.keyboard.press("Space")
    eyes.check("painting")
    page.keyboard.press("Escape")
    page.get_by_text("Around the mask", exact=True).click()
    eyes.check("masked")
    page.get_by_role("button", name="Remove the picture").click()

    playground.generate(**ENDLESS)
    playground.wait_for(4, "running")
    eyes.check("running")
    page.get_by_role("button", name="Cancel all").click()
    playground.wait_for(4, "cancelled")
    eyes.check("cancelled")

    page.evaluate("hash => { location.hash = hash; }", urlencode(RELATIVES_OF_A_BRANCH))
    playground.generate(steps=4, width_in_pixels=64, height_in_pixels=64)
    playground.wait_for(4, "paused")
    page.get_by_role("button", name="Sketch of seed 7 + 4").click()
    eyes.check("sketches of relatives")
    page.get_by_role("button", name="Finish all").click()
    page.get_by_role("button", name="Back to the defaults").click()
    playground.wait_for(4, "done")
    eyes.check("done")
    playground.tiles("done").first.locator(".open").click()
    eyes.check("full size")
    page.keyboard.press("Escape")

    page.route("**/stream", lambda route: changed_events(route, fail_seed(8)), times=1)
    playground.generate(steps=4)
    playground.wait_for(1, "failed")
    eyes.check("failed")

    playground.generate(prompt=" ", steps=0)
    page.locator("#prompt-error").wait_for()
    eyes.check("invalid")
