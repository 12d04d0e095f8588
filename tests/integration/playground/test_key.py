"""A service that asks for a key, below a path of its own: its page, and its other clients while it is there."""

import httpx2
import pytest
from openai import AuthenticationError, OpenAI
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


def test_the_sdk_gets_in_with_a_key_and_not_without(locked: str) -> None:
    with OpenAI(api_key=KEY, base_url=f"{locked}/v1", max_retries=0, timeout=60) as sdk:
        assert [card.id for card in sdk.models.list()] == ["tiny"]
        assert sdk.images.generate(prompt="a", size="64x64", extra_body={"num_inference_steps": 1}).data
    with (
        OpenAI(api_key="guess", base_url=f"{locked}/v1", max_retries=0, timeout=60) as sdk,
        pytest.raises(AuthenticationError) as raised,
    ):
        sdk.images.generate(prompt="a")
    assert raised.value.code == "invalid_api_key"


def test_below_a_prefix_the_same_is_open(locked: str) -> None:
    assert httpx2.get(f"{locked}/health").status_code == 200
    assert httpx2.get(f"{locked}/status").status_code == 401
    page = httpx2.get(locked, follow_redirects=True)
    assert (page.status_code, str(page.url)) == (200, f"{locked}/")
    document = httpx2.get(f"{locked}/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert document["servers"] == [{"url": "/locked"}]
