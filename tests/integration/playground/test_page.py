"""What a person does on the playground, in a real browser, on a real service."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Request, Route, expect

from tests.integration.conftest import SMALL, Running, eventually
from tests.integration.playground.conftest import OpenPlayground, Playground, in_flight

LONG = 400  # steps that leave time to act


def watch_sources(page: Page) -> None:
    """Note every address that a picture of the page is given."""
    page.evaluate("""() => {
        window.sources = {};
        new MutationObserver((records) => records.forEach(({ target }) => {
            const seed = target.closest(".tile")?.querySelector(".seed").textContent;
            if (seed && target.getAttribute("src")) (window.sources[seed] ??= []).push(target.getAttribute("src"));
        })).observe(document.body, { subtree: true, attributes: true, attributeFilter: ["src"] });
    }""")


def changed_events(route: Route, change: Any) -> None:
    """Answer a stream with its events changed: `change(event)` returns the event to send, or None to end there."""
    response = route.fetch(timeout=60_000)
    frames = []
    for line in response.text().splitlines():
        if line.startswith("data: "):
            event = change(json.loads(line.removeprefix("data: ")))
            if event is None:
                break
            frames.append(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n")
    route.fulfill(response=response, body="".join(frames))


def fail_seed(seed: int) -> Any:
    def change(event: dict[str, Any]) -> dict[str, Any]:
        if event["type"] == "image" and event["seed"] == seed:
            return {"type": "failed", "index": event["index"], "seed": seed, "error": {"type": "out_of_memory", "message": "no room for it"}}
        return event

    return change


def body_of(request: Request) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(request.post_data or "{}")
    return body


def download(playground: Playground, tile: Locator, folder: Path) -> Path:
    with playground.page.expect_download() as waiting:
        tile.get_by_role("link", name="Download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_prompt_becomes_pictures_that_sharpen_before_they_are_done(playground: Playground) -> None:
    watch_sources(playground.page)
    playground.generate(steps=100)
    playground.wait_for(4, "done")
    sources = playground.page.evaluate("window.sources")
    assert set(sources) == {f"Seed {seed}" for seed in range(7, 11)}
    for addresses in sources.values():
        *previews, final = [address for address, before in zip(addresses, [None, *addresses], strict=False) if address != before]
        assert len(set(previews)) >= 2
        assert all(preview.startswith("data:image/jpeg") for preview in previews)
        assert final.startswith("blob:")
    for picture in playground.page.locator(".tile img").all():
        assert picture.evaluate("image => image.naturalWidth") == 64
    expect(playground.page.get_by_role("status")).to_have_text("4 images done")


def test_one_image_is_cancelled_and_the_others_go_on(playground: Playground) -> None:
    playground.generate(steps=LONG)
    expect(playground.tile(8)).to_have_attribute("data-state", "running")
    playground.tile(8).get_by_role("button", name="Cancel this image").click()
    expect(playground.tile(8)).to_have_attribute("data-state", "cancelled")
    expect(playground.tile(8).get_by_role("button", name="Paint this image again")).to_be_focused()
    playground.wait_for(3, "done")
    expect(playground.page.get_by_role("status")).to_have_text("3 images done, 1 image cancelled")
    playground.tile(8).get_by_role("button", name="Paint this image again").click()
    playground.wait_for(4, "done")


def test_all_images_are_cancelled(playground: Playground, service: Running) -> None:
    playground.generate(steps=998)
    playground.wait_for(4, "running")
    eventually(lambda: in_flight(service) == 4)
    playground.page.get_by_role("button", name="Cancel all").click()
    playground.wait_for(4, "cancelled")
    eventually(lambda: in_flight(service) == 0, seconds=5)
    expect(playground.page.get_by_role("button", name="Cancel all")).to_be_hidden()


def test_all_that_failed_or_was_cancelled_is_tried_again_at_once(playground: Playground) -> None:
    def one_of_each(event: dict[str, Any]) -> Any:
        if event["type"] == "image" and event["seed"] == 9:
            return {"type": "cancelled", "index": event["index"], "seed": 9}
        return fail_seed(8)(event)

    playground.page.route("**/stream", lambda route: changed_events(route, one_of_each), times=1)
    playground.generate()
    playground.wait_for(2, "done")
    with playground.page.expect_request("**/stream") as request:
        playground.page.get_by_role("button", name="Try again").click()
    assert body_of(request.value)["seeds"] == [8, 9]
    playground.wait_for(4, "done")


def test_closing_the_page_frees_the_replicas(playground: Playground, service: Running) -> None:
    playground.generate(steps=998)
    playground.wait_for(4, "running")
    eventually(lambda: in_flight(service) == 4)
    playground.page.close()
    eventually(lambda: in_flight(service) == 0, seconds=5)


def test_a_failed_image_says_why_and_can_be_retried(playground: Playground) -> None:
    playground.page.route("**/stream", lambda route: changed_events(route, fail_seed(8)), times=1)
    playground.generate()
    expect(playground.tile(8)).to_contain_text("No room for it.")
    expect(playground.tile(8)).to_contain_text("Failed")
    assert playground.tiles("done").count() == 3
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(4, "done")
    expect(playground.tile(8)).not_to_contain_text("No room for it.")
    expect(playground.page.get_by_role("button", name="Try again")).to_be_hidden()


def test_a_connection_that_is_lost_leaves_what_is_finished_and_the_rest_can_be_retried(playground: Playground) -> None:
    ended = []

    def cut_off(event: dict[str, Any]) -> dict[str, Any] | None:
        ended.append(event["type"])
        return None if ended.count("image") > 2 else event

    playground.page.route("**/stream", lambda route: changed_events(route, cut_off), times=1)
    playground.generate()
    playground.wait_for(2, "failed")
    expect(playground.tiles("failed").first).to_contain_text("The connection was lost")
    assert playground.tiles("done").count() == 2
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(4, "done")


def test_a_service_that_cannot_be_reached_is_said_and_tried_again(playground: Playground) -> None:
    playground.page.route("**/stream", lambda route: route.abort(), times=1)
    playground.generate()
    expect(playground.page.locator(".run .notice p")).to_have_text("The service cannot be reached.")
    expect(playground.page.locator(".tiles")).to_be_hidden()
    playground.forgive("ERR_FAILED")
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(4, "done")
    expect(playground.page.locator(".run .notice")).to_be_hidden()


def test_refused_runs_do_not_push_out_finished_ones(playground: Playground) -> None:
    page = playground.page
    playground.generate(images=1, steps=4)
    playground.wait_for(1, "done")
    page.route("**/stream", lambda route: route.abort())
    notices = page.locator(".run .notice p:visible")
    for refused in range(1, 14):
        playground.generate(images=1, steps=4)
        expect(notices).to_have_count(min(refused, 12))
        expect(page.get_by_role("button", name="Cancel all")).to_have_count(0)
    expect(page.locator(".tile:visible")).to_have_count(1)
    page.get_by_role("button", name="Remove").first.click()
    expect(notices).to_have_count(11)
    playground.forgive("ERR_FAILED")


def test_a_picture_stays_when_painting_it_again_is_refused(playground: Playground) -> None:
    playground.generate(images=1, steps=4)
    playground.wait_for(1, "done")
    playground.page.route("**/stream", lambda route: route.abort(), times=1)
    playground.tile(7).get_by_role("button", name="Paint this image again").click()
    expect(playground.page.locator(".run .notice p")).to_have_text("The service cannot be reached.")
    expect(playground.tile(7)).to_have_attribute("data-state", "done")
    playground.forgive("ERR_FAILED")
    with playground.page.expect_request("**/stream") as request:
        playground.page.get_by_role("button", name="Try again").click()
    assert body_of(request.value)["seeds"] == [7]
    playground.wait_for(1, "done")


def test_only_one_tile_is_painted_again_and_its_seed_gives_the_same_picture(playground: Playground, tmp_path: Path) -> None:
    playground.generate(images=2)
    playground.wait_for(2, "done")
    before = download(playground, playground.tile(8), tmp_path).read_bytes()
    other = playground.tile(7).locator("img").get_attribute("src")
    with playground.page.expect_request("**/stream") as request:
        playground.tile(8).get_by_role("button", name="Paint this image again").click()
    assert body_of(request.value)["seeds"] == [8]
    playground.wait_for(2, "done")
    assert download(playground, playground.tile(8), tmp_path).read_bytes() == before
    assert playground.tile(7).locator("img").get_attribute("src") == other


def test_a_picture_is_downloaded_under_the_name_of_its_seed(playground: Playground, tmp_path: Path) -> None:
    playground.page.get_by_label("Format").select_option("webp")
    playground.generate(images=1, width_in_pixels=72)
    playground.wait_for(1, "done")
    path = download(playground, playground.tile(7), tmp_path)
    assert path.name == "seed-7.webp"
    with Image.open(path) as picture:
        assert picture.size == (72, 64)


def test_more_like_this_paints_the_next_seeds_with_the_runs_settings(playground: Playground) -> None:
    playground.generate(prompt="a pear", images=3)
    playground.wait_for(3, "done")
    playground.fill(prompt="a plum", images=1)
    with playground.page.expect_request("**/stream") as request:
        playground.tile(8).get_by_role("button", name="More like this").click()
    assert body_of(request.value)["prompt"] == "a pear"
    assert body_of(request.value)["seeds"] == [10, 11, 12]
    playground.wait_for(6, "done")


def test_a_shared_link_fills_in_the_same_settings(playground: Playground, open_playground: OpenPlayground) -> None:
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.page.get_by_label("Scheduler").select_option("dpmpp_2m_karras")
    playground.page.get_by_label("Format").select_option("jpeg")
    playground.fill(prompt="50% of a & b = #1", negative_prompt="a “blue” one", images=3, seed=4294967295, steps=9, guidance=2.5)
    playground.fill(width_in_pixels=72, height_in_pixels=96)
    playground.page.get_by_role("button", name="Copy a link to these settings").click()
    link = playground.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(playground.url + "/#"), "a fragment: no prompt in any server's log"
    there = open_playground(link.removeprefix(playground.url + "/"))
    values = "() => Object.fromEntries(new FormData(document.getElementById('settings')))"
    assert there.page.evaluate(values) == playground.page.evaluate(values)
    there.page.reload()
    expect(there.page.get_by_label("Seed", exact=True)).to_have_value("4294967295")
    assert there.page.evaluate(values) == playground.page.evaluate(values)


def test_reloading_after_a_run_keeps_its_settings_and_its_pictures(playground: Playground) -> None:
    playground.generate(prompt="a pear", images=2)
    playground.wait_for(2, "done")
    kept = playground.page.get_by_role("button", name="a pear, 2 images, seed 7")
    kept.wait_for()
    playground.page.reload()
    expect(playground.page.get_by_label("Prompt", exact=True)).to_have_value("a pear")
    playground.fill(prompt="a plum", images=1)
    kept.click()
    playground.wait_for(2, "done")
    assert playground.tile(8).locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    expect(playground.page.get_by_label("Prompt", exact=True)).to_have_value("a pear")
    expect(playground.page.get_by_label("Images", exact=True)).to_have_value("2")
    clear = playground.page.get_by_role("button", name="Clear the history")
    clear.click()  # Playwright declines what a page asks
    expect(kept).to_be_visible()
    playground.page.once("dialog", lambda dialog: dialog.accept())
    clear.click()
    expect(playground.page.get_by_role("region", name="History")).to_be_hidden()
    playground.page.reload()
    expect(playground.page.get_by_role("heading", name="One prompt, many seeds")).to_be_visible()
    expect(kept).to_be_hidden()


def test_the_history_of_another_tab_is_seen_on_coming_back(playground: Playground) -> None:
    other = playground.page.context.new_page()
    other.goto(playground.url)
    playground.generate(images=1, steps=4)
    name = "a red apple, 1 image, seed 7"
    playground.page.get_by_role("button", name=name).wait_for()
    kept = other.get_by_role("button", name=name)
    expect(kept).to_be_hidden()
    other.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(kept).to_be_visible()


def test_the_history_is_bounded(playground: Playground) -> None:
    playground.page.evaluate("""async () => {
        const { keep } = await import("/playground/history.js");
        const canvas = new OffscreenCanvas(8, 8);
        canvas.getContext("2d");
        const blob = await canvas.convertToBlob();
        for (let i = 0; i < 30; i++) {
            await keep({ id: `run ${i}`, settings: { prompt: `prompt ${i}` }, model: "tiny", images: [{ seed: i, blob }] });
        }
    }""")
    playground.page.reload()
    expect(playground.page.locator(".history li")).to_have_count(24)
    expect(playground.page.locator(".history button").first).to_have_accessible_name("prompt 29, 1 image, seed 29")


def test_everything_by_keyboard(playground: Playground) -> None:
    keyboard = playground.page.keyboard
    playground.page.get_by_label("Prompt", exact=True).focus()
    keyboard.type("a red apple")
    keyboard.press("Control+Enter")
    playground.wait_for(4, "done")
    pictures = playground.page.locator(".tile .open")
    pictures.first.focus()
    keyboard.press("Enter")
    dialog = playground.page.get_by_role("dialog", name="Picture at full size")
    expect(dialog).to_contain_text("1 of 4")
    keyboard.press("ArrowRight")
    expect(dialog).to_contain_text("2 of 4")
    keyboard.press("ArrowLeft")
    keyboard.press("ArrowLeft")
    expect(dialog).to_contain_text("1 of 4")
    keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(pictures.first).to_be_focused()


def test_bounds_and_defaults_are_the_services_own(playground: Playground) -> None:
    expect(playground.page.get_by_label("Width in pixels")).to_have_value("64")
    expect(playground.page.get_by_label("Images", exact=True)).to_have_attribute("max", "16")
    playground.generate(steps=999, width_in_pixels=65)
    expect(playground.page.get_by_label("Steps")).to_have_attribute("aria-invalid", "true")
    expect(playground.page.get_by_label("Steps")).to_have_accessible_description("Value must be less than or equal to 998.")
    width = playground.page.get_by_label("Width in pixels")
    expect(width).to_be_focused()
    expect(width).to_have_accessible_description(re.compile(r"^Width: a multiple of 8, from \d+ to \d+\.$"))
    assert playground.page.locator(".run").count() == 0


def test_guidance_takes_any_decimal(playground: Playground) -> None:
    with playground.page.expect_request("**/stream") as request:
        playground.generate(images=1, steps=4, guidance=2.525)
    assert body_of(request.value)["guidance_scale"] == 2.525
    playground.wait_for(1, "done")


def test_a_prompt_of_a_link_that_is_too_long_is_refused_before_it_is_sent(open_playground: OpenPlayground) -> None:
    page = open_playground("#prompt=" + 2001 * "a").page
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_accessible_description("Prompt: at most 2000 characters, and this has 2001.")
    assert page.locator(".run").count() == 0


def test_without_javascript_the_page_says_so_and_offers_nothing_else(browser: Browser, service: Running) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(service.url)
    expect(page.locator("noscript p")).to_be_visible()  # texts in there are not looked at
    expect(page.get_by_role("button")).to_have_count(0)
    page.context.close()


def test_what_is_typed_before_the_bounds_are_known_stays(playground: Playground) -> None:
    held: list[Route] = []
    playground.page.route("**/openapi.json", lambda route: held.append(route))
    playground.page.goto("about:blank")
    with playground.page.expect_request("**/openapi.json"):
        playground.page.goto(playground.url + "/#prompt=a+pear&seed=5")
    playground.fill(prompt="a plum")
    held[0].continue_()
    expect(playground.page.get_by_role("button", name="Generate")).to_be_enabled()
    expect(playground.page.get_by_label("Prompt", exact=True)).to_have_value("a plum")
    expect(playground.page.get_by_label("Seed", exact=True)).to_have_value("5")
    expect(playground.page.get_by_label("Steps")).to_have_value("20")


def test_what_the_service_refuses_is_said_beside_the_field(playground: Playground) -> None:
    steps = playground.page.get_by_label("Steps")
    steps.evaluate("input => input.removeAttribute('max')")
    playground.generate(steps=5000)
    expect(steps).to_be_focused()
    expect(playground.page.locator("#num_inference_steps-error")).to_contain_text("less than or equal to 998")
    expect(playground.page.locator(".run")).to_have_count(0)
    playground.forgive("status of 422")
    playground.fill(steps=4)
    expect(playground.page.locator("#num_inference_steps-error")).to_have_count(0)
    playground.generate(steps=4)
    playground.wait_for(4, "done")


def test_a_busy_service_tells_the_place_in_line(playground: Playground, service: Running) -> None:
    with service.http.stream("POST", "/stream", json={"prompt": "a", **SMALL, "num_images": 8, "num_inference_steps": 998}) as others:
        eventually(lambda: in_flight(service) == 8)
        playground.generate(images=2)
        playground.wait_for(2, "queued")
        expect(playground.tile(7)).to_contain_text("Next in line")
        expect(playground.tile(8)).to_contain_text("Place 2 in line")
        strip = playground.page.locator("#service")
        expect(strip).to_contain_text("Painting")
        expect(strip.locator("[data-value=waiting]")).to_have_text("2")
        expect(strip.locator("[data-value=replicas]")).to_have_text("2/2")
        others.close()
    playground.wait_for(2, "done")


def test_a_full_line_says_when_to_come_back(playground: Playground, service: Running) -> None:
    body = {"prompt": "a", **SMALL, "num_images": 12, "num_inference_steps": 998}
    with service.http.stream("POST", "/stream", json=body), service.http.stream("POST", "/stream", json=body):
        playground.generate(images=2)
        expect(playground.page.locator(".run .notice")).to_contain_text("images are waiting")
        expect(playground.page.locator(".run .notice")).to_contain_text("There should be room again")
        expect(playground.page.locator(".tiles")).to_be_hidden()
        playground.forgive("status of 429")
    eventually(lambda: in_flight(service) == 0)
    playground.page.get_by_role("button", name="Try again").click()
    playground.wait_for(2, "done")


def test_the_status_is_not_asked_for_while_nobody_looks(playground: Playground) -> None:
    page = playground.page
    page.evaluate("""() => {
        Object.defineProperty(document, "hidden", { value: true, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }""")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/status") else None)
    page.clock.install()
    page.clock.run_for(60_000)
    assert asked == []
    with page.expect_request("**/status"):
        page.evaluate("""() => {
            delete document.hidden;
            document.dispatchEvent(new Event("visibilitychange"));
        }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colours_are_those_of_the_system_until_one_chooses(open_playground: OpenPlayground, scheme: str) -> None:
    page = open_playground(color_scheme=scheme).page
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    assert (int(before.removeprefix("rgb(").split(",")[0]) > 128) == (scheme == "light")
    for _ in range(1 if scheme == "dark" else 2):
        page.get_by_role("button", name="Colours").click()
    assert page.evaluate(ground) != before
    page.reload()
    assert page.evaluate(ground) != before


def test_nothing_is_wider_than_a_phone(open_playground: OpenPlayground) -> None:
    playground = open_playground(viewport={"width": 360, "height": 740}, has_touch=True)
    playground.generate(prompt="a" * 300, seed=4294967290)
    playground.wait_for(4, "done")
    assert playground.page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("clipboard", ["the browser's", "none, as over plain HTTP"])
def test_seeds_are_copied(playground: Playground, clipboard: str) -> None:
    page = playground.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if clipboard != "the browser's":
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    playground.generate(images=2)
    playground.wait_for(2, "done")
    playground.tile(8).get_by_role("button", name="Copy the seed").click()
    expect(page.get_by_role("status")).to_have_text("Seed 8 copied")
    playground.fill(seed="")
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("8")
    playground.tile(7).locator(".open").click()
    page.get_by_role("dialog").get_by_role("button", name="Copy the seed").click()
    expect(page.get_by_role("status")).to_have_text("Seed 7 copied")
    page.keyboard.press("Escape")
    playground.fill(seed="")
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("7")
