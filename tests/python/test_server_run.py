"""A server as a process: signals, the drain, TLS and the socket."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

import httpx2

from forerun.errors import InvalidArgumentError
from forerun.server.run import address_of, example_call, listen
from forerun.server.settings import ServerSettings

SCRIPT = """
import json, sys
from forerun.server.access_log import configure_logs
from forerun.server.run import address_of, listen, run
from forerun.server.settings import ServerSettings
from server_apps import small_app
settings = ServerSettings(port=0, **json.loads(sys.argv[1]))
configure_logs(settings)
listener = listen(settings)
app = small_app(**json.loads(sys.argv[1]))
run(app, settings, listener, lambda: print(address_of(settings, listener), flush=True))
print("ended", flush=True)
"""
Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server with the settings given; returns the process and its URL."""
    processes: list[subprocess.Popen[str]] = []

    def _start(**settings: Any) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield _start
    for process in processes:
        process.kill()
        process.communicate()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a process that ends."""
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(start: Start, number: int) -> None:
    process, url = start(drain_seconds=600)
    with httpx2.Client(base_url=url) as client:  # with a connection that is kept
        assert client.get("/health").json() == "fine"
        process.send_signal(number)
        status, out, err = end_of(process)
    assert (status, out) == (0, "ended\n")
    assert "Traceback" not in err


def test_a_running_stream_finishes_and_new_requests_are_refused(start: Start) -> None:
    process, url = start(drain_seconds=600)
    with (
        httpx2.Client(base_url=url) as client,
        client.stream("GET", "/v1/stream?count=20&seconds=0.05") as stream,
    ):
        lines = stream.iter_lines()
        received = [next(lines)]
        process.send_signal(signal.SIGTERM)
        while client.get("/health").status_code != 503:
            time.sleep(0.01)
        refused = client.get("/v1/output")
        assert refused.json()["error"]["code"] == "server_shutting_down"
        received += lines
    assert received == [str(number) for number in range(20)]
    status, _, err = end_of(process)
    assert status == 0
    assert "waiting up to 600 s for 1 running requests" in err
    assert "cut off" not in err


def test_a_stream_that_takes_too_long_is_cut_off(start: Start) -> None:
    process, url = start(drain_seconds=0.2)
    with (
        httpx2.Client(base_url=url) as client,
        client.stream("GET", "/v1/stream?count=100000&seconds=0.05") as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx2.RemoteProtocolError):
            list(lines)
    status, _, err = end_of(process)
    assert status == 0
    assert "1 requests were cut off after 0.2 s" in err
    assert "/v1/stream 200 " in err
    assert ", cut off [" in err
    assert "Traceback" not in err


def test_a_stream_that_takes_too_long_ends_with_an_error(start: Start) -> None:
    process, url = start(drain_seconds=0.2)
    with (
        httpx2.Client(base_url=url) as client,
        client.stream("GET", "/v1/events") as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, error, _, done, _ = lines
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "server_shutting_down"
    assert done == "data: [DONE]"
    status, _, err = end_of(process)
    assert status == 0
    assert "1 requests were cut off after 0.2 s" in err
    assert "Cancel " not in err, "it waited for the stream"
    assert "Traceback" not in err


def test_a_second_signal_does_not_wait(start: Start) -> None:
    process, url = start(drain_seconds=600)
    with (
        httpx2.Client(base_url=url) as client,
        client.stream("GET", "/v1/stream?count=100000&seconds=0.05") as stream,
    ):
        next(stream.iter_lines())
        process.send_signal(signal.SIGTERM)
        while client.get("/health").status_code != 503:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert end_of(process)[0] == 0


def test_a_client_that_leaves_is_logged(start: Start) -> None:
    process, url = start(log_format="json")
    with httpx2.stream("GET", f"{url}/v1/stream?count=100000&seconds=0.01") as stream:
        next(stream.iter_lines())
    while httpx2.get(f"{url}/metrics").text.count('handler="/v1/stream"') == 0:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    entries = [json.loads(line) for line in end_of(process)[2].splitlines()]
    (entry,) = [entry for entry in entries if entry.get("path") == "/v1/stream"]
    assert (entry["status"], entry["complete"]) == (200, False)


def test_a_client_that_sends_no_request_is_not_waited_for(start: Start) -> None:
    process, url = start(read_seconds=0.2)
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with httpx2.stream("GET", f"{url}/v1/stream?count=20&seconds=0.05") as stream:
        for sent in (b"", head[:20], head, head + b"123456789" + head[:20]):
            with socket.create_connection((host, int(port))) as client:
                client.settimeout(60)
                client.sendall(sent)
                received = b""
                while part := client.recv(4096):
                    received += part
            status = b"HTTP/1.1 " + (b"408" if sent == head else b"200")
            assert received.startswith(status if len(sent) >= len(head) else b"")
            assert bool(received) == (len(sent) >= len(head))
        assert len(list(stream.iter_lines())) == 20, "an answer may take longer"
    assert httpx2.get(f"{url}/health").json() == "fine"
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 0


LARGE = b"GET /v1/stream?count=%d&seconds=0&width=100000 HTTP/1.1\r\nHost: x\r\n\r\n"


def slow_client(url: str) -> socket.socket:
    """A connection that takes little before it is read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    host, port = url.removeprefix("http://").split(":")
    client.connect((host, int(port)))
    client.settimeout(60)
    return client


def test_a_client_that_does_not_read_its_answer_is_not_waited_for(start: Start) -> None:
    process, url = start(read_seconds=0.2, max_concurrent_requests=1)
    with slow_client(url) as client:
        client.sendall(LARGE % 1000)
        assert client.recv(1)
        assert httpx2.get(f"{url}/v1/output").status_code == 503
        end = time.monotonic() + 30
        while httpx2.get(f"{url}/v1/output").status_code == 503:
            assert time.monotonic() < end
            time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, _, err = end_of(process)
    assert status == 0
    assert "Traceback" not in err


def test_what_a_client_does_not_read_is_not_kept_for_it(start: Start) -> None:
    process, url = start(read_seconds=0.2)
    size = 1 << 24
    with slow_client(url) as client:
        client.sendall(b"GET /v1/zeros?count=%d HTTP/1.1\r\nHost: x\r\n\r\n" % size)
        received = client.recv(1)
        time.sleep(1)
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 20):
                received += part
    assert 0 < len(received) < size
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 0


def test_a_client_that_reads_slowly_gets_its_answer(start: Start) -> None:
    process, url = start(read_seconds=0.5)
    with slow_client(url) as client:
        client.sendall(LARGE % 100)
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            part = client.recv(200_000)
            assert part, "it was cut off"
            received += part
            time.sleep(len(part) / 4e6)
    assert received.count(b"0" * 99_000) == 100
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 0


@pytest.mark.parametrize("proxies", [[], ["127.0.0.1"]])
def test_a_proxy_is_believed_where_it_is_named(start: Start, proxies: list[str]) -> None:
    process, url = start(forwarded_allow_ips=proxies, log_format="json")
    httpx2.get(f"{url}/v1/output", headers={"x-forwarded-for": "192.0.2.7"})
    process.send_signal(signal.SIGTERM)
    (entry,) = [json.loads(line) for line in end_of(process)[2].splitlines()]
    assert entry["client"].startswith("192.0.2.7:" if proxies else "127.0.0.1:")


def test_tls_serves_https_alone(start: Start, tmp_path: Path) -> None:
    trustme = pytest.importorskip("trustme", reason="trustme is not installed")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    process, url = start(
        ssl_keyfile=str(tmp_path / "key.pem"), ssl_certfile=str(tmp_path / "cert.pem")
    )
    assert url.startswith("https://")
    import ssl

    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    assert httpx2.get(f"{url}/health", verify=context).json() == "fine"
    with pytest.raises(httpx2.HTTPError):
        httpx2.get(f"{url.replace('https', 'http')}/health")
    process.send_signal(signal.SIGTERM)
    assert end_of(process)[0] == 0


def test_a_port_that_is_taken_is_named() -> None:
    with listen(ServerSettings(port=0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match=f"127.0.0.1:{port}.*in use"):
            listen(ServerSettings(port=port))


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="host: got no such host"):
        listen(ServerSettings(host="no such host"))


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")],
)
def test_the_address_is_one_that_clients_can_use(host: str, shown: str) -> None:
    settings = ServerSettings(host=host, port=0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert address_of(settings, listener) == f"http://{shown}:{port}"


def test_the_line_that_says_how_to_call_is_one_for_a_shell() -> None:
    line = example_call("http://127.0.0.1:8000", 'it\'s a "model"', needs_key=True)
    assert "\n" not in line
    words = shlex.split(line)
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert "Authorization: Bearer KEY" in words
    assert json.loads(words[-1])["model"] == 'it\'s a "model"'
    assert "Bearer" not in example_call("http://127.0.0.1:8000", "model", needs_key=False)
