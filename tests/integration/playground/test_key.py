"""The page of a service that asks for a key, below a path of its own."""

from playwright.sync_api import expect

from tests.integration.conftest import KEY
from tests.integration.playground.conftest import OpenPlayground


def test_a_key_is_asked_for_and_kept_for_the_tab_only(locked: str, open_playground: OpenPlayground) -> None:
    playground = open_playground()
    page = playground.page
    page.goto(f"{locked}/")
    dialog = page.get_by_role("dialog", name="This service asks for an API key")
    key = dialog.get_by_label("API key")
    expect(key).to_be_focused()
    key.fill("wröng→")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("This cannot be the key")
    key.fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("The service does not know this key.")
    page.keyboard.press("Escape")
    expect(page.get_by_text("This service needs an API key.")).to_be_visible()
    page.get_by_role("button", name="Enter a key").click()
    key.fill(KEY)
    dialog.get_by_role("button", name="Use this key").click()
    playground.generate(steps=100)
    expect(playground.tile(8)).to_have_attribute("data-state", "running")
    playground.tile(8).get_by_role("button", name="Cancel this image").click()
    playground.wait_for(1, "cancelled")
    playground.wait_for(3, "done")
    expect(page.locator("#service")).to_contain_text("1/1")

    page.reload()
    page.locator("#generate:enabled").wait_for()
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    assert page.evaluate("[...Object.values(localStorage), document.cookie]") == [""]
    page.get_by_role("button", name="Forget the API key").click()
    playground.generate(images=1, steps=4)
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".run .notice p").first).to_have_text("This service needs an API key.")
    page.get_by_role("button", name="Enter a key").click()
    key.fill(KEY)
    page.keyboard.press("Enter")
    playground.wait_for(1, "done")
    playground.forgive("status of 401")
