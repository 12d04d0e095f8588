"""A service below a path of its own, as Serve's `route_prefix` gives it one."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from serve_app.config import AuthConfig
from serve_app.ingress.api import create_api
from tests.fakes import FakePool, Metrics, OneModel
from tests.ingress.conftest import ARGS


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("SERVICE_KEYS", "one")
    args = ARGS.model_copy(update={"auth": AuthConfig(keys_env="SERVICE_KEYS")})
    with TestClient(
        create_api(OneModel(FakePool(), args, Metrics()), args), root_path="/deep/x", follow_redirects=False
    ) as client:
        yield client


def test_the_bare_prefix_leads_to_the_page_whose_addresses_are_relative(below: TestClient) -> None:
    for asked, answered in (("/deep/x", "x/"), ("/deep/x?a=b%20c", "x/?a=b%20c")):
        response = below.get(asked)
        assert (response.status_code, response.headers["location"]) == (307, answered)
    assert below.get("/deep/x", follow_redirects=True).url.path == "/deep/x/"
    assert below.get("/deep/x/playground/main.js").status_code == 200


def test_the_openapi_document_says_where_its_paths_begin(below: TestClient, client: TestClient) -> None:
    assert below.get("/deep/x/openapi.json", headers={"Authorization": "Bearer one"}).json()["servers"] == [
        {"url": "/deep/x"}
    ]
    assert "servers" not in client.get("/openapi.json").json()


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/docs/oauth2-redirect"])
def test_no_page_needs_scripts_from_elsewhere(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert "GET /openapi.json" in response.json()["error"]["message"]
