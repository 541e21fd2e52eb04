"""HTTP that cannot leave this machine, for texts that must not."""

import socket
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from ipaddress import ip_address
from typing import Any
from urllib import request
from urllib.parse import SplitResult, urlsplit

from kormed_edge.errors import EvalError


def require_local(endpoint: str, allow_remote: bool = False) -> None:
    """Raise `EvalError` unless every address of the endpoint's host is this machine's loopback.

    No connection is made. `allow_remote` leaves only the check that it is a plain http(s) URL.
    """
    host = _parse(endpoint).hostname or ""
    remote = [] if allow_remote else [a for a in _addresses(host) if not _is_loopback(a)]
    if remote:
        raise _not_here(host, remote[0])


def _not_here(host: str, address: str) -> EvalError:
    return EvalError(
        f"{host} is {address}, which is not this machine",
        "a judge on the loopback, because the records must not leave the machine",
        "serve the judge here, or say --allow-remote if these records may leave",
    )


def _parse(endpoint: str) -> SplitResult:
    """The URL's parts; one with a user name, a query or a fragment could be read in two ways."""
    try:
        url = urlsplit(endpoint)
        plain = url.port != 0 and not (url.username or url.password or url.query or url.fragment)
    except ValueError:
        plain = False
    if not plain or url.scheme not in ("http", "https") or not url.hostname:
        raise EvalError(  # A user name may hold a secret, so the URL is not repeated.
            "judge: the endpoint is not a plain http or https address",
            "a base URL such as http://127.0.0.1:8080/v1, without user name, query or fragment",
            "correct --endpoint; a key belongs into a file",
        )
    return url


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise EvalError(
            f"{host}: no such host",
            "the judge's address on this machine",
            "http://127.0.0.1:8080/v1, or --allow-remote for a host behind a proxy",
        ) from None
    return [str(address[0]) for *_, address in found]


def _is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


class _Loopback(HTTPConnection):
    """A name may resolve to another address a moment later, so the peer is looked at as well."""

    def connect(self) -> None:
        super().connect()
        peer = self.sock.getpeername()[0]
        if not _is_loopback(peer):
            self.close()
            raise _not_here(self.host, peer)


class _LoopbackTls(HTTPSConnection, _Loopback):
    """The peer is looked at before the TLS handshake."""


class _LoopbackHandler(request.HTTPHandler):
    def http_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(_Loopback, req)


class _LoopbackTlsHandler(request.HTTPSHandler):
    def https_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(_LoopbackTls, req)


class _NoRedirect(request.HTTPRedirectHandler):
    """A redirect is an error like any other status that is not 200."""

    def redirect_request(self, *_: Any) -> None:
        return None


def opener(allow_remote: bool = False) -> request.OpenerDirector:
    """Opens URLs without following redirects; on the loopback alone and without a proxy, unless
    `allow_remote`."""
    here = (request.ProxyHandler({}), _LoopbackHandler, _LoopbackTlsHandler)
    return request.build_opener(_NoRedirect, *(() if allow_remote else here))
