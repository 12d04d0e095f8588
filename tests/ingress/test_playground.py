"""The playground's files over HTTP."""

import os
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

import serve_app
from serve_app.ingress import playground

FOLDER = Path(serve_app.__file__).parent / "playground"
FILES = sorted(path.name for path in FOLDER.iterdir())
ADDRESSES = ["/", *(f"/playground/{name}" for name in FILES)]


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_file_comes_with_a_strict_policy_and_is_asked_for_again_each_time(
    client: TestClient, address: str
) -> None:
    response = client.get(address)
    assert response.status_code == 200
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"
    again = client.get(address, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_change_is_seen_whatever_the_age_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "_FOLDER", tmp_path)
    api = FastAPI()
    playground.install(api)
    tags = set()
    for text in ("one", "two"):
        (tmp_path / "index.html").write_text(text)
        os.utime(tmp_path / "index.html", (0, 0))
        tags.add(TestClient(api).get("/").headers["etag"])
    assert len(tags) == 2


def test_files_below_their_version_are_kept_for_ever(client: TestClient) -> None:
    page = client.get("/").text
    (version,) = {name.split("/")[0] for name in re.findall('="playground/([^"]+)"', page)}
    addresses = {address.partition("#")[0] for address in re.findall('="(playground/[^"]+)"', page)}
    assert f"playground/{version}/main.js" in addresses
    for address in addresses:
        response = client.get(address)
        assert (response.status_code, response.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")
        assert response.content == client.get(address.replace(f"{version}/", "")).content


def test_a_file_of_another_version_is_not_kept(client: TestClient) -> None:
    """While an update is rolled out, the page may be from one ingress replica and its files from another."""
    response = client.get(f"/playground/{'0' * 16}/main.js")
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-cache")


def test_a_change_of_any_file_changes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "_FOLDER", tmp_path)
    api = FastAPI()
    playground.install(api)
    (tmp_path / "index.html").write_text('<script src="playground/main.js"></script>')
    pages = set()
    for text in ("one", "two"):
        (tmp_path / "main.js").write_text(text)
        response = TestClient(api).get("/")
        pages |= {response.text, response.headers["etag"]}
    assert len(pages) == 4


def test_the_page_is_html_and_its_modules_are_javascript(client: TestClient) -> None:
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert "javascript" in client.get("/playground/main.js").headers["content-type"]


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_inline_and_nothing_comes_from_elsewhere(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]", text)
    if name == "index.html":
        assert not re.search(r"<style|<script>| style=| on[a-z]+=", text)


@pytest.mark.parametrize(
    "address",
    [
        "/playground/",
        "/playground/nothing.js",
        "/playground/../config.py",
        "/playground/%2e%2e/config.py",
        f"/playground/{'0' * 16}/nothing.js",
        f"/playground/{'0' * 16}/%2e%2e/config.py",
        f"/playground/{'0' * 15}/main.js",
    ],
)
def test_there_is_nothing_else(client: TestClient, address: str) -> None:
    response = client.get(address)
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found")


def test_the_openapi_document_names_the_page(client: TestClient) -> None:
    assert "text/html" in client.get("/openapi.json").json()["paths"]["/"]["get"]["responses"]["200"]["content"]
