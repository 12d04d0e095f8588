"""The way to a service: its URL, and the environment's proxies and certificates.

Why not httpx's own reading of the environment: it fails on a broken proxy variable even for a service on this machine.
"""

import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Self
from urllib.request import getproxies

import httpx2

from serve_app.cli.errors import Unavailable, Unusable

# A stream sends a ping every 15 s, so 60 s of silence mean that it is dead.
_TIMEOUT = httpx2.Timeout(60, connect=10)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and the setting it comes from."""

    setting: str
    url: httpx2.URL


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach the service at `url`. Its methods raise CommandError."""

    url: httpx2.URL
    proxy: Proxy | None

    @classmethod
    def to(cls, text: str) -> Self:
        """Parse a service's URL and find its proxy in the environment. Raises Unusable."""
        url = _url(text)
        return cls(url, None if _on_this_machine(url) else _proxy(url))

    @property
    def place(self) -> str:
        """The URL without a password in it, for messages."""
        return _without_password(str(self.url)).rstrip("/")

    @property
    def detour(self) -> str:
        """The proxy in between, for messages."""
        return f" through the proxy of {self.proxy.setting}" if self.proxy else ""

    def client(self, headers: dict[str, str]) -> httpx2.Client:
        """Return an HTTP client of the service that reads nothing else from the environment."""
        # An http:// URL needs no certificates, so a broken certificate setting must not matter.
        tls = _tls() if self._tls_to_proxy or self.url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        proxy = httpx2.Proxy(self.proxy.url, ssl_context=tls if self._tls_to_proxy else None) if self.proxy else None
        try:
            return httpx2.Client(
                base_url=self.url,
                headers=headers,
                timeout=_TIMEOUT,
                verify=tls,
                proxy=proxy,
                trust_env=False,
            )
        except ImportError:
            assert self.proxy, "only SOCKS needs another package"
            raise _unusable(self.proxy.setting, self.url, "for SOCKS the package `socksio` must be installed") from None

    @property
    def _tls_to_proxy(self) -> bool:
        return self.proxy is not None and self.proxy.url.scheme == "https"

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Explain connection errors: raises Unavailable."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            raise self._no_connection(error) from None
        except httpx2.TransportError as error:
            raise Unavailable(f"lost the connection to {self.place}: {error or type(error).__name__}") from None

    def _no_connection(self, error: httpx2.TransportError) -> Unavailable:
        match None if self._tls_to_proxy else _tls_fault(error):
            case ssl.SSLCertVerificationError() as fault:
                return Unavailable(
                    f"the certificate of {self.place} is not trusted ({fault.verify_message}); "
                    "to trust it, set SSL_CERT_FILE to a file with the certificate of its authority"
                )
            case ssl.SSLError() as fault:
                return Unavailable(f"{self.place} does not speak TLS ({fault.reason}); is its URL http://?")
        why = error or "timeout"
        if self.proxy:
            return Unavailable(
                f"cannot reach {self.place} through the proxy of {self.proxy.setting} ({why}); "
                f"correct or unset it, or add {self.url.host} to NO_PROXY"
            )
        start = "Start a service with `make serve` or `serve run configs/local.yaml`, or name another with --url."
        return Unavailable(f"nothing answers on {self.place} ({why}). {start}")


def _url(text: str) -> httpx2.URL:
    try:
        url = httpx2.URL(text)
        url.raw_host.decode("ascii").encode("idna")  # the resolver does this too, but too late for a clear message
    except (httpx2.InvalidURL, UnicodeError) as error:
        # The parser's message quotes the part it does not understand, which may be half of a password.
        why = "write special characters of a name or password as %XX" if "@" in text else str(error)
        raise Unusable(f"{_without_password(text)} is not a URL: {why}") from None
    if not url.host:
        raise Unusable(f"{_without_password(text)} is not a URL: it has no host")
    if not _is_port(url):
        raise Unusable(f"{_without_password(text)} is not a URL: ports go from 1 to 65535")
    if url.query or url.fragment:
        raise Unusable(f"{_without_password(text)} is not the URL of a service: remove the part from ? or # on")
    return url


def _is_port(url: httpx2.URL) -> bool:
    return url.port is None or 0 < url.port < 1 << 16


def _without_password(text: str) -> str:
    return re.sub(r"//.*@", "//", text)


def _on_this_machine(url: httpx2.URL) -> bool:
    """Return whether a URL's host is this machine in any spelling: Localhost, 127.1, ::ffff:127.0.0.1, 0.0.0.0."""
    host = url.raw_host.decode("ascii").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)  # without DNS
    except socket.gaierror:
        return False
    for *_, (text, *_) in found:
        address = ip_address(str(text).partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if not (address.is_loopback or address.is_unspecified):
            return False
    return True


def _proxy(url: httpx2.URL) -> Proxy | None:
    """Return the proxy for a URL from the environment, or from the system's settings if it has any."""
    settings = getproxies()
    kind = next((kind for kind in (url.scheme, "all") if settings.get(kind)), None)
    if kind is None or any(_covers(entry, url) for entry in re.split(r"[,\s]+", settings.get("no", "").lower())):
        return None
    text = settings[kind]
    named = (name for name, value in os.environ.items() if name.lower() == f"{kind}_proxy" and value == text)
    setting = next(named, "the system's proxy setting")
    try:
        proxy = httpx2.URL(text if "://" in text else f"http://{text}")
        httpx2.Proxy(proxy)  # raises if it does not support the scheme
    except httpx2.InvalidURL:
        raise _unusable(setting, url, "it is not a URL") from None
    except ValueError:
        raise _unusable(setting, url, "it must be http://, https:// or socks5://") from None
    if not proxy.host or not _is_port(proxy):
        raise _unusable(setting, url, "it has no host, or an invalid port")
    return Proxy(setting, proxy)


def _covers(entry: str, url: httpx2.URL) -> bool:
    """Return whether an entry of NO_PROXY matches a URL's host: `*`, a domain with its subdomains, an address or a
    network.
    """
    try:
        return ip_address(url.host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name, host = entry.removeprefix("*").removeprefix("."), url.host.rstrip(".")
        return entry == "*" or f".{host}".endswith(f".{name}") or f".{host}:{url.port}".endswith(f".{name}")


def _unusable(setting: str, url: httpx2.URL, why: str) -> Unusable:
    what_to_do = f"correct or unset it, or add {url.host} to NO_PROXY"
    return Unusable(f"the proxy of {setting} cannot be used: {why}; {what_to_do}")


def _tls() -> ssl.SSLContext:
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        why = error.strerror or error
        raise Unusable(f"{_broken_setting()} cannot be used: {why}; correct or unset it") from None


def _broken_setting() -> str:
    """Return which of the environment's certificate settings fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    uses: dict[str, Callable[[str], None]] = {
        "SSL_CERT_FILE": lambda path: context.load_verify_locations(cafile=path),
        "SSL_CERT_DIR": lambda path: context.load_verify_locations(capath=path),
        "SSLKEYLOGFILE": lambda path: setattr(context, "keylog_filename", path),
    }
    for name, use in uses.items():
        try:
            if path := os.environ.get(name):
                use(path)
        except OSError:
            return name
    return "the default of OpenSSL"


def _tls_fault(error: BaseException | None) -> ssl.SSLError | None:
    """Return the TLS error behind a client's error, if there is one."""
    if error is None or isinstance(error, ssl.SSLError):
        return error
    return _tls_fault(error.__cause__ or error.__context__)
