"""Proxies and certificates from the environment."""

import ssl
import sys
from pathlib import Path

import pytest

from serve_app import demo
from serve_app.cli.errors import Unusable
from serve_app.cli.route import Route
from serve_app.cli.service import Service
from tests.certificates import certificate
from tests.cli.command import run
from tests.cli.server import COMPLETED, IMAGE, START, answering, streaming

ELSEWHERE = "http://gpu.example:8000"
NONSENSE = {
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "all_proxy": "socks://127.0.0.1:1080/",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://[::1",
    "NO_PROXY": "[[,:/",
    "SSL_CERT_FILE": "/nonexistent",
    "SSL_CERT_DIR": "/nonexistent",
}


def test_a_service_on_this_machine_is_reached_past_a_proxy_which_hears_nothing(tmp_path: Path) -> None:
    with answering(502, b"") as (proxy, overheard), streaming(START, IMAGE, COMPLETED) as (url, heard):
        env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), proxy)
        env |= {"NO_PROXY": "", "PARALLEL_SDXL_API_KEY": "secret"}
        done = run("generate", "a", "--out", tmp_path, "--url", url, **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert [headers["Authorization"] for headers in heard] == ["Bearer secret"]
    assert overheard == []


def test_nonsense_in_the_environment_does_not_matter_to_a_service_on_this_machine(tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url, **NONSENSE)
    assert (done.returncode, done.stderr) == (0, "")


def test_nor_to_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in NONSENSE.items():
        monkeypatch.setenv(name, value)
    with answering(200, b"") as (url, _):
        monkeypatch.setattr(demo, "URL", url)
        assert demo._answers()


@pytest.mark.parametrize("way", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_service_elsewhere_is_reached_through_the_proxy(way: str, tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (proxy, heard):
        done = run("generate", "a", "--out", tmp_path, "--url", ELSEWHERE, **{way: proxy})
    assert (done.returncode, done.stderr) == (0, "")
    assert [headers["Host"] for headers in heard] == ["gpu.example:8000"]


@pytest.mark.parametrize(
    ("env", "code", "words"),
    [
        (
            {"HTTP_PROXY": "http://127.0.0.1:9"},
            3,
            "cannot reach http://gpu.example:8000 through the proxy of HTTP_PROXY",
        ),
        ({"all_proxy": "socks://me:password@127.0.0.1:1080/"}, 2, "the proxy of all_proxy cannot be used: it must be"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(env: dict[str, str], code: int, words: str, tmp_path: Path) -> None:
    done = run("generate", "a", "--out", tmp_path, "--url", ELSEWHERE, **env)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert words in done.stderr
    assert "add gpu.example to NO_PROXY" in done.stderr
    assert "password" not in done.stderr


@pytest.mark.parametrize("url", [ELSEWHERE, "https://gpu.example"])
def test_what_a_proxy_answers_in_place_of_the_service_is_said_to_be_the_proxys(url: str, tmp_path: Path) -> None:
    with answering(502, b"") as (proxy, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url, ALL_PROXY=proxy)
    assert done.returncode == 3
    assert "through the proxy of ALL_PROXY" in done.stderr
    assert "502 Bad Gateway" in done.stderr


def test_a_proxy_that_does_not_speak_tls_is_not_taken_for_the_service(tmp_path: Path) -> None:
    with answering(200, b"") as (proxy, _):
        done = run("generate", "a", "--out", tmp_path, "--url", ELSEWHERE, ALL_PROXY=proxy.replace("http", "https"))
    assert (done.returncode, "through the proxy of ALL_PROXY" in done.stderr) == (3, True)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with one proxy for all URLs."""
    monkeypatch.setenv("ALL_PROXY", "http://proxy.example:3128")
    return monkeypatch


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9:8000",
        "localhost",
        "LocalHost.:8000",
        "gpu.localhost",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
        "127.1",
        "0x7f.1",
        "0.0.0.0:8000",
        "me:password@127.0.0.1",
    ],
)
def test_this_machine_has_many_names(host: str, ways: pytest.MonkeyPatch) -> None:
    assert Route.to(f"http://{host}").proxy is None
    assert Route.to(f"https://{host}").proxy is None


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "localhost.example", "127.0.0.1.example", "[2001:db8::1]", "127.0.0.1@gpu.example"]
)
def test_other_machines_have_others(host: str, ways: pytest.MonkeyPatch) -> None:
    proxy = Route.to(f"http://{host}").proxy
    assert proxy
    assert (proxy.setting, str(proxy.url)) == ("ALL_PROXY", "http://proxy.example:3128")


@pytest.mark.parametrize(
    ("no_proxy", "direct"),
    [
        ("*", True),
        ("other, *", True),
        ("gpu.example", True),
        (".EXAMPLE", True),
        ("*.example", True),
        ("other gpu.example:8000", True),
        ("gpu.example:9", False),
        ("u.example", False),
        ("", False),
        (",, .,*.", False),
        ("[[,:/,10.0.0.0/99", False),
        ("http://gpu.example", False),
    ],
)
def test_no_proxy_names_hosts(no_proxy: str, direct: bool, ways: pytest.MonkeyPatch) -> None:
    ways.setenv("NO_PROXY", no_proxy)
    for url in (ELSEWHERE, "http://gpu.example.:8000"):
        assert (Route.to(url).proxy is None) == direct


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.4,2001:db8::/32", False),
        ("[2001:db8::1]", "2001:db8::/32", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
        ("11.10.0.0", "10.0.0.0", False),
    ],
)
def test_no_proxy_names_networks(host: str, no_proxy: str, direct: bool, ways: pytest.MonkeyPatch) -> None:
    ways.setenv("NO_PROXY", no_proxy)
    assert (Route.to(f"http://{host}").proxy is None) == direct


def test_one_proxy_is_looked_at_and_the_others_may_be_what_they_like(ways: pytest.MonkeyPatch) -> None:
    ways.setenv("ALL_PROXY", "socks://127.0.0.1:1080/")
    ways.setenv("https_proxy", "nonsense://")
    ways.setenv("http_proxy", "proxy.example:3128")
    proxy = Route.to(ELSEWHERE).proxy
    assert proxy
    assert (proxy.setting, str(proxy.url)) == ("http_proxy", "http://proxy.example:3128")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("socks://127.0.0.1:1080/", "must be http://"),
        ("http://[::1", "not a URL"),
        ("http://", "has no host"),
        ("http://proxy.example:99999", "an invalid port"),
        ("\udcff", "not a URL"),
        ("socks5://127.0.0.1:9", "`socksio` must be installed"),
    ],
)
def test_every_proxy_that_cannot_be_used_is_refused(value: str, why: str, ways: pytest.MonkeyPatch) -> None:
    ways.setenv("ALL_PROXY", value)
    ways.setitem(sys.modules, "socksio", None)  # as where it is not installed
    with pytest.raises(Unusable, match=rf"ALL_PROXY .*{why}"):
        Route.to(ELSEWHERE).client({})


@pytest.mark.parametrize("name", ["nonexistent", "empty.pem", "."])
def test_a_file_of_certificates_that_cannot_be_used_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    done = run("generate", "a", "--out", tmp_path, "--url", "https://gpu.example", SSL_CERT_FILE=str(tmp_path / name))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "SSL_CERT_FILE cannot be used" in done.stderr


@pytest.mark.parametrize("broken", ["SSL_CERT_FILE", "SSLKEYLOGFILE"])
def test_of_several_settings_of_tls_the_one_that_cannot_be_used_is_named(broken: str, tmp_path: Path) -> None:
    (tmp_path / "authorities").mkdir()
    good = {
        "SSL_CERT_FILE": str(certificate(tmp_path)),
        "SSL_CERT_DIR": str(tmp_path / "authorities"),
        "SSLKEYLOGFILE": str(tmp_path / "keys.log"),
    }
    env = good | {broken: str(tmp_path / "nowhere" / "file")}
    done = run("generate", "a", "--out", tmp_path, "--url", "https://gpu.example", **env)
    assert done.returncode == 2
    assert " ".join(done.stderr.split()).startswith(f"Error: {broken} cannot be used: No such file")


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_a_terminal_of_no_width_is_one_of_unknown_width(columns: str, tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url, COLUMNS=columns, LINES=columns)
    assert "1 of 2 images in" in done.stdout


def test_certificates_of_an_authority_of_ones_own_are_trusted_where_named(tmp_path: Path) -> None:
    path = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    with streaming(START, IMAGE, COMPLETED, tls=context) as (url, _):
        trusted = run("generate", "a", "--out", tmp_path, "--url", url, SSL_CERT_FILE=str(path), ALL_PROXY="nonsense")
        stranger = run("generate", "a", "--out", tmp_path, "--url", url)
    assert (trusted.returncode, trusted.stderr) == (0, "")
    assert stranger.returncode == 3
    assert f"the certificate of {url} is not trusted" in stranger.stderr
    assert "SSL_CERT_FILE" in stranger.stderr


def test_a_service_without_tls_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    with streaming(START, IMAGE, COMPLETED) as (url, _):
        done = run("generate", "a", "--out", tmp_path, "--url", url.replace("http", "https"))
    assert (done.returncode, "does not speak TLS" in done.stderr) == (3, True)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///generate",
        "http://[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:0",
        "http://a..b",
        f"http://{'a' * 64}.example",
        "http://127.0.0.1:8000?key=1",
        "http://127.0.0.1:8000/#top",
        "http://\udcff",
    ],
)
def test_what_is_no_url_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(Unusable, match="URL"):
        Route.to(url)


@pytest.mark.parametrize("password", ["pass#word", "pass/word", "pass?word", "pass@word", "pass%word", "password"])
def test_no_password_is_shown(password: str) -> None:
    try:
        shown = Route.to(f"http://me:{password}@127.0.0.1:8000").place
    except Unusable as error:
        shown = str(error)
    assert "pass" not in shown.replace("a name or password", "")
    assert "word" not in shown.replace("a name or password", "")


def test_a_request_carries_a_password_or_a_key() -> None:
    with pytest.raises(Unusable, match="PARALLEL_SDXL_API_KEY"):
        Service(Route.to("http://me:password@127.0.0.1:9"), "secret").health()
