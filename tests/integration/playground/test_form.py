"""The settings of the playground: bounds, links, colours and widths."""

import re

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.integration.conftest import Running
from tests.integration.playground.conftest import OpenPlayground, Playground
from tests.integration.playground.exchange import body_of


def test_a_shared_link_fills_in_the_same_settings(playground: Playground, open_playground: OpenPlayground) -> None:
    playground.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    playground.page.get_by_label("Scheduler").select_option("dpmpp_2m_sde")
    playground.page.get_by_label("Noise levels").select_option("karras")
    playground.page.get_by_label("Format").select_option("jpeg")
    playground.fill(
        prompt="50% of a & b = #1", negative_prompt="a “blue” one", images=3, seed=4294967295, steps=9, guidance=2.5
    )
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


OFFERED = [
    {"name": "euler", "said": "Euler", "default": True, "sigma_schedules": ["karras", "beta"]},
    {"name": "ddim", "said": "DDIM", "default": False, "sigma_schedules": ["beta", "sgm_uniform"]},
]


def test_only_what_the_served_model_can_be_sampled_with_is_offered(playground: Playground) -> None:
    page = playground.page
    scheduler, levels = page.get_by_label("Scheduler"), page.get_by_label("Noise levels")
    expect(scheduler.locator("option[value=edm_euler]")).to_have_count(0)  # the service's own list
    expect(scheduler.locator("option[value=dpm2_a]")).to_have_count(1)

    page.route("**/schedulers", lambda route: route.fulfill(json=OFFERED))
    page.reload()
    expect(scheduler.locator("option")).to_have_text(["default", "euler", "ddim"])
    expect(levels.locator("option")).to_have_text(["default", "karras", "beta"])
    levels.select_option("beta")
    scheduler.select_option("ddim")
    expect(levels.locator("option")).to_have_text(["default", "beta", "sgm uniform"])
    expect(levels).to_have_value("beta")
    scheduler.select_option("euler")
    levels.select_option("karras")
    scheduler.select_option("ddim")
    expect(levels).to_have_value("")
    page.get_by_role("button", name="Back to the defaults").click()
    expect(levels.locator("option")).to_have_text(["default", "karras", "beta"])
    page.goto(f"{playground.url}/#scheduler=ddim&sigma_schedule=sgm_uniform")
    page.reload()
    expect(levels).to_have_value("sgm_uniform")


def test_a_service_that_cannot_say_what_it_takes_is_offered_all(playground: Playground) -> None:
    page = playground.page
    page.route("**/schedulers", lambda route: route.fulfill(status=503, json={}))
    page.reload()
    expect(page.get_by_label("Scheduler").locator("option[value=edm_euler]")).to_have_count(1)
    expect(page.get_by_label("Noise levels").locator("option")).to_have_count(6)
    playground.forgive("503")


def test_bounds_and_defaults_are_the_services_own(playground: Playground) -> None:
    expect(playground.page.get_by_label("Width in pixels")).to_have_value("64")
    expect(playground.page.get_by_label("Images", exact=True)).to_have_attribute("max", "16")
    playground.generate(steps=999, width_in_pixels=65)
    expect(playground.page.get_by_label("Steps")).to_have_attribute("aria-invalid", "true")
    expect(playground.page.get_by_label("Steps")).to_have_accessible_description(
        "Value must be less than or equal to 998."
    )
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
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_accessible_description(
        "Prompt: at most 2000 characters, and this has 2001."
    )
    assert page.locator(".run").count() == 0


def test_without_javascript_the_page_says_so_and_offers_nothing_else(browser: Browser, service: Running) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(service.url)
    expect(page.locator("noscript p")).to_be_visible()  # texts in there are not looked at
    expect(page.get_by_role("button")).to_have_count(0)
    page.context.close()


def test_what_is_typed_before_the_bounds_are_known_stays(playground: Playground) -> None:
    held: list[Route] = []
    playground.page.route("**/models", lambda route: held.append(route))
    playground.page.goto("about:blank")
    with playground.page.expect_request("**/models"):
        playground.page.goto(playground.url + "/#prompt=a+pear&seed=5")
    playground.fill(prompt="a plum")
    held[0].continue_()
    expect(playground.page.get_by_role("button", name="Generate", exact=True)).to_be_enabled()
    expect(playground.page.get_by_label("Prompt", exact=True)).to_have_value("a plum")
    expect(playground.page.get_by_label("Seed", exact=True)).to_have_value("5")
    expect(playground.page.get_by_label("Steps")).to_have_value("20")


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


def check_widths(page: Page) -> None:
    """Check that nothing is wider than the window, whatever the strip says of the service."""
    page.evaluate("for (const dd of document.querySelectorAll('.service dd')) dd.textContent = 'Generating'")
    for width in (320, 360, 700, 1000):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_nothing_is_wider_than_a_phone(open_playground: OpenPlayground) -> None:
    playground = open_playground(viewport={"width": 360, "height": 740}, has_touch=True)
    playground.generate(prompt="a" * 300, seed=4294967290)
    playground.wait_for(4, "done")
    check_widths(playground.page)
    for tiles in (8, 12):
        playground.page.locator(".tile").first.get_by_role("button", name="More like this").click()
        playground.wait_for(tiles, "done")
    check_widths(playground.page)  # names of relatives are long
