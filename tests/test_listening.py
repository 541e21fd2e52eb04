import datetime
import ipaddress
import signal
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from serving import Running, read_all, ready, running

from kormed_edge.errors import ConfigError, EngineError
from kormed_edge.listening import Address, ServeError, listener, tls_context
from kormed_edge.loading import LoadingApp

GET = "GET {} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


class Slow:
    """An API whose one answer begins at once and ends when it is let."""

    def __init__(self) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        self.app = FastAPI()

        def parts() -> Iterator[str]:
            yield "first "
            self.begun.set()
            self.end.wait(30)
            yield "last"

        @self.app.get("/slow")
        def slow() -> StreamingResponse:
            return StreamingResponse(parts())

        @self.app.get("/readyz")
        def readyz() -> dict[str, bool]:
            return {"draining": self.app.state.draining}

        self.service = LoadingApp(ready(self.app))


@pytest.fixture
def slow() -> Iterator[Slow]:
    it = Slow()
    yield it
    it.end.set()


def begin(it: Running, slow: Slow) -> socket.socket:
    sock = it.connect()
    sock.sendall(GET.format("/slow").encode())
    assert slow.begun.wait(30)
    return sock


def count_ticks(it: Running) -> threading.Semaphore:
    """Released whenever the server has looked whether it should stop."""
    ticks, tick = threading.Semaphore(0), it.server.on_tick

    async def on_tick(counter: int) -> bool:
        stop = await tick(counter)
        ticks.release()
        return stop

    it.server.on_tick = on_tick
    return ticks


def test_draining_ends_what_is_under_way_and_says_so_to_others(slow: Slow) -> None:
    with running(slow.service) as it, begin(it, slow) as sock:
        ticks = count_ticks(it)
        it.stop()
        for _ in range(3):
            assert ticks.acquire(timeout=5)
        assert b'{"draining":true}' in it.say(GET.format("/readyz"))
        slow.end.set()
        assert b"last" in read_all(sock)
        it.thread.join(30)
        assert not it.thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            it.connect()


@pytest.mark.parametrize("again", [False, True])
def test_draining_that_takes_too_long_is_cut_short(slow: Slow, again: bool) -> None:
    seconds = 1000 if again else 0.2
    with running(slow.service, drain_seconds=seconds) as it, begin(it, slow) as sock:
        it.stop(signal.SIGINT)
        if again:
            it.stop(signal.SIGINT)
        assert b"last" not in read_all(sock)
        slow.end.set()
        it.thread.join(30)
        assert not it.thread.is_alive()


def test_a_service_that_cannot_load_stops() -> None:
    def load() -> FastAPI:
        raise EngineError("no model")

    with running(LoadingApp(load)) as it:
        it.thread.join(30)
        assert not it.thread.is_alive()


def test_answers_do_not_name_the_server(slow: Slow) -> None:
    with running(slow.service) as it:
        answer = it.say(GET.format("/readyz"))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"server:" not in answer.lower()


def test_a_header_that_is_too_long_is_refused(slow: Slow) -> None:
    with running(slow.service) as it:
        assert it.say(f"GET / HTTP/1.1\r\nX: {'y' * 20_000}").startswith(b"HTTP/1.1 400")


def test_what_a_proxy_says_of_the_client_is_not_believed(slow: Slow) -> None:
    @slow.app.get("/who")
    def who(request: Request) -> str:
        return request.client.host if request.client else ""

    with running(slow.service) as it:
        request = GET.format("/who").replace("Host", "X-Forwarded-For: 10.9.8.7\r\nHost")
        assert b'"127.0.0.1"' in it.say(request)


def test_a_unix_socket_is_for_owner_and_group_and_leaves_no_file(
    slow: Slow, tmp_path: Path
) -> None:
    path = tmp_path / "s.sock"
    with running(slow.service, address=Address(unix_socket=path)) as it:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert it.say(GET.format("/readyz")).startswith(b"HTTP/1.1 200")
    assert not path.exists()


def test_a_socket_that_a_killed_service_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    with listener(Address(unix_socket=path)) as sock:
        assert sock.getsockname() == str(path)


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ServeError, match="something listens on"):
            listener(Address(unix_socket=path)).__enter__()
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("keep")
    with pytest.raises(ServeError, match="is not a socket"):
        listener(Address(unix_socket=path)).__enter__()
    assert path.read_text() == "keep"


def test_a_port_in_use_is_named() -> None:
    with listener(Address(port=0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ServeError, match=f"127.0.0.1 port {port}: Address already in use"):
            listener(Address(port=port)).__enter__()


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("127.9.9.9", True), ("::1", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_loopback_addresses_are_known(host: str, local: bool) -> None:
    assert Address(host=host).is_local is local


def test_a_name_is_not_looked_up() -> None:
    with pytest.raises(ConfigError, match=r"--host ward\.example is not an IP address"):
        _ = Address(host="ward.example").ip


def test_an_address_is_shown_as_a_client_calls_it(tmp_path: Path) -> None:
    with listener(Address(port=0)) as sock:
        assert Address().shown(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
        assert Address(host="::1", certificate=tmp_path).shown(sock).startswith("https://[::1]:")
        assert Address(unix_socket=Path("/run/s")).shown(sock) == "unix:/run/s"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Address:
    """A certificate for 127.0.0.1 that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kormed")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(alternatives, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    pkcs8 = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, plain))
    (folder / "locked.pem").write_bytes(
        key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"word"))
    )
    for file in ("key.pem", "locked.pem"):
        (folder / file).chmod(0o600)
    return Address(port=0, certificate=folder / "cert.pem", key=folder / "key.pem")


def handshake(it: Running, client: ssl.SSLContext) -> str:
    with it.connect() as sock, client.wrap_socket(sock, server_hostname="127.0.0.1") as secured:
        secured.sendall(GET.format("/readyz").encode())
        assert read_all(secured).startswith(b"HTTP/1.1 200")
        return str(secured.version())


def test_tls_is_spoken_from_1_2_on(slow: Slow, secure: Address) -> None:
    client = ssl.create_default_context(cafile=str(secure.certificate))
    with running(slow.service, address=secure) as it:
        assert handshake(it, client) == "TLSv1.3"
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        assert handshake(it, client) == "TLSv1.2"


def test_tls_before_1_2_is_not_spoken(secure: Address) -> None:
    context = tls_context(secure)
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_no_plain_http_beside_tls(slow: Slow, secure: Address) -> None:
    with running(slow.service, address=secure) as it:
        assert it.say(GET.format("/readyz")) == b""


@pytest.mark.parametrize(
    ("certificate", "key", "mode", "message"),
    [
        ("cert.pem", "key.pem", 0o644, "has mode 644"),
        ("cert.pem", "cert.pem", 0o600, "no TLS with"),
        ("key.pem", "key.pem", 0o600, "no TLS with"),
        ("cert.pem", "locked.pem", 0o600, "no TLS with"),
        ("cert.pem", "missing.pem", None, "No such file"),
    ],
)
def test_a_key_that_does_not_fit_or_everyone_can_read_is_refused(
    secure: Address, certificate: str, key: str, mode: int | None, message: str
) -> None:
    assert secure.key is not None
    folder = secure.key.parent
    if mode is not None:
        (folder / key).chmod(mode)
    with pytest.raises(ConfigError, match=message):
        tls_context(Address(certificate=folder / certificate, key=folder / key))
    secure.key.chmod(0o600)
