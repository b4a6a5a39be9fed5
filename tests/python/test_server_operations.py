"""Keys, limits, CORS, the drain and the log, around a small app."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from server_apps import small_app
from starlette.testclient import TestClient

from forerun.server.access_log import configure_logs
from forerun.server.auth import HostCheck
from forerun.server.limits import BodyLimit
from forerun.server.settings import ServerSettings


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# Keys.


def test_a_request_needs_one_of_the_keys() -> None:
    client = TestClient(small_app(api_keys=["one", "two"]))
    for key in ("one", "two"):
        assert client.post("/v1/echo", content="x", headers=bearer(key)).text == "x"
    assert client.post("/v1/echo", headers={"authorization": "bearer  one "}).status_code == 200
    wrong: list[Any] = [
        {},
        bearer(""),
        bearer("On"),
        bearer("one two"),
        {"authorization": "one"},
        {"authorization": "Basic one"},
        {"authorization": b"Bearer \xe4"},
        {"x-api-key": "one"},
        [("authorization", "Bearer one"), ("authorization", "Bearer one")],
    ]
    for headers in wrong:
        response = client.post("/v1/echo", content="x", headers=headers)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "invalid_api_key"
        assert error["param"] is None


def test_every_route_but_the_page_and_the_health_needs_a_key() -> None:
    client = TestClient(small_app(api_keys=["one"]))
    for path in ("/", "/health"):
        assert client.get(path).status_code == 200
    for path in ("/metrics", "/docs", "/openapi.json", "/nowhere", "/health/", "/v1/output"):
        assert client.get(path).status_code == 401, path


def test_a_key_is_compared_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    client = TestClient(small_app(api_keys=["one", "two", "three"]))
    monkeypatch.setattr(hmac, "compare_digest", watched)
    for key in ("one", "three", "none of them", "x"):
        compared.clear()
        client.post("/v1/echo", headers=bearer(key))
        assert len(compared) == 3
        assert {len(value) for pair in compared for value in pair} == {32}


def test_each_key_is_a_tenant_of_its_own_which_stays() -> None:
    def tenant(key: str, keys: list[str]) -> str:
        client = TestClient(small_app(api_keys=keys))
        return str(client.post("/v1/echo", headers=bearer(key)).headers["x-tenant"])

    one, two = tenant("one", ["one", "two"]), tenant("two", ["one", "two"])
    assert len({one, two, ""}) == 3
    assert one == tenant("one", ["three", "one"])
    assert "one" not in one
    assert TestClient(small_app()).post("/v1/echo").headers["x-tenant"] == ""


# Bodies.


def test_a_body_may_be_as_long_as_the_limit() -> None:
    client = TestClient(small_app(max_body_bytes=10))
    assert client.post("/v1/echo", content=b"0123456789").content == b"0123456789"
    for body in (b"0123456789a", iter([b"01234", b"56789", b"a"])):
        response = client.post("/v1/echo", content=body)
        assert response.status_code == 413
        assert "10 bytes" in response.json()["error"]["message"]


def run_limit(
    messages: list[dict[str, Any]], headers: list[tuple[bytes, bytes]], max_bytes: int
) -> tuple[list[dict[str, Any]], int, int | None]:
    """What the app receives, how much was read of the client, and the status of a refusal."""
    received: list[dict[str, Any]] = []
    statuses: list[int] = []
    pending = list(messages)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.extend([await receive(), await receive()])

    async def receive() -> Any:
        return pending.pop(0) if pending else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": "POST", "headers": headers, "path": "/"}
    asyncio.run(BodyLimit(app, max_bytes, 60)(scope, receive, send))
    return received, len(messages) - len(pending), statuses[0] if statuses else None


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=8), st.integers(1, 30))
def test_a_body_reaches_the_app_whole_in_however_many_parts(
    parts: list[bytes], max_bytes: int
) -> None:
    messages = [
        {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
        for i, part in enumerate(parts)
    ]
    body = b"".join(parts)
    received, _, status = run_limit(messages, [], max_bytes)
    if len(body) <= max_bytes:
        assert status is None
        assert received[0]["body"] == body
        assert received[1]["type"] == "http.disconnect"
    else:
        assert status == 413
        assert received == []


def test_a_body_announced_as_too_long_is_not_read() -> None:
    messages = [{"type": "http.request", "body": b"x" * 20, "more_body": False}]
    received, num_read, status = run_limit(messages, [(b"content-length", b"20")], 10)
    assert (received, num_read, status) == ([], 0, 413)


def test_a_client_that_leaves_within_its_body_is_not_served() -> None:
    messages = [
        {"type": "http.request", "body": b"{}", "more_body": True},
        {"type": "http.disconnect"},
    ]
    assert run_limit(messages, [], 10) == ([], 2, None)


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it has no body")

    async def silent() -> Any:
        await asyncio.Event().wait()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "headers": [], "path": "/"}
    asyncio.run(BodyLimit(app, 10, 0.01)(scope, silent, send))
    assert sent[0]["status"] == 408
    assert (b"x-should-retry", b"false") in sent[0]["headers"]
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == "request_timeout"


def test_a_request_that_has_no_body_is_not_read() -> None:
    client = TestClient(small_app(api_keys=["one"], max_body_bytes=1))
    for path in ("/", "/health"):
        response = client.request("GET", path, content=b"more than one byte")
        assert response.status_code == 200
        assert client.post(path, content=b"x").status_code == 401


def test_more_requests_than_may_be_answered_at_once_are_refused() -> None:
    app = small_app(max_concurrent_requests=2)
    client = TestClient(app)
    app.state.drain.enter()
    assert client.get("/v1/output").status_code == 200
    app.state.drain.enter()
    refused = client.get("/v1/output")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == "too_many_requests"
    for path in ("/health", "/metrics"):
        assert client.get(path).status_code == 200
    app.state.drain.leave()
    assert client.get("/v1/output").status_code == 200


# Host, CORS and the prefix of a proxy.


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("localhost.:8000", 200),
        ("Chat.localhost", 200),
        ("a.b.localhost.", 200),
        ("host.docker.internal:8000", 200),
        ("127.0.0.2", 200),
        ("192.168.1.7:8000", 200),
        ("[FE80::1]:8000", 200),
        ("me.example", 200),
        ("ME.example.:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("evillocalhost", 403),
        ("docker.internal", 403),
        ("a.host.docker.internal", 403),
        ("a.me.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[evil]", 403),
        ("localhost..", 403),
        (".", 403),
        ("localhost:8000:8000", 403),
        ("::1", 403),
        ("", 403),
    ],
)
def test_a_server_is_called_by_its_own_names(host: str, status: int) -> None:
    app = small_app(allowed_hosts=["me.example"])
    for path in ("/", "/health", "/v1/output", "/metrics"):
        response = TestClient(app).get(path, headers={"host": host})
        assert response.status_code == status, path
    if status == 403:
        assert response.json()["error"]["code"] == "invalid_host"
    for hosts in ([], ["*"]):
        client = TestClient(small_app(allowed_hosts=hosts))
        assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [
        ("1.0", [], 200),
        ("1.0", ["evil.example"], 403),
        ("1.0", ["localhost", "localhost"], 403),
        ("1.1", [], 403),
        ("1.1", ["localhost", "evil.example"], 403),
    ],
)
def test_only_old_clients_may_leave_the_name_out(
    version: str, hosts: list[str], status: int
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "http_version": version, "headers": headers}
    asyncio.run(HostCheck(app, ["localhost"])(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status


def test_other_origins_are_refused_unless_they_are_named() -> None:
    asking = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    closed = TestClient(small_app(api_keys=["one"]))
    response = closed.post("/v1/echo", headers={**bearer("one"), "origin": "https://a.example"})
    assert "access-control-allow-origin" not in response.headers
    assert closed.options("/v1/echo", headers=asking).status_code == 401
    opened = TestClient(small_app(api_keys=["one"], allowed_origins=["https://a.example"]))
    preflight = opened.options("/v1/echo", headers=asking)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    # A refusal is readable too.
    refused = opened.post("/v1/echo", headers={"origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    other = opened.post("/v1/echo", headers={**bearer("one"), "origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_proxy_may_keep_its_prefix_or_take_it_off() -> None:
    client = TestClient(small_app(root_path="/llm", api_keys=["one"]))
    for path in ("/health", "/llm/health"):
        assert client.get(path).json() == "fine", path
    for path in ("/llm/v1/echo", "/v1/echo"):
        assert client.post(path).status_code == 401, path
        assert client.post(path, headers=bearer("one")).status_code == 200, path
    for path in ("/llmhealth", "/llm/llm/health"):
        assert client.get(path).status_code == 401, path


# The drain.


def test_a_draining_server_refuses_all_but_its_metrics() -> None:
    app = small_app()
    client = TestClient(app)
    assert client.get("/health").status_code == 200
    asyncio.run(app.state.drain.finish(0))
    for path in ("/v1/output", "/health"):
        response = client.get(path)
        assert response.status_code == 503
        assert response.headers["connection"] == "close"
        assert response.json()["error"]["code"] == "server_shutting_down"
    assert client.get("/metrics").status_code == 200


def test_the_drain_waits_for_all_that_run() -> None:
    async def run() -> list[int]:
        drain = small_app().state.drain
        left = [await drain.finish(0)]
        drain.enter()
        drain.enter()
        left.append(await drain.finish(0.01))
        waiting = asyncio.create_task(drain.finish(60))
        for _ in range(2):
            await asyncio.sleep(0)
            assert not waiting.done()
            drain.leave()
        return [*left, await waiting]

    assert asyncio.run(run()) == [0, 2, 0]


def test_a_request_that_fails_has_ended() -> None:
    app = small_app()
    client = TestClient(app, raise_server_exceptions=False)
    assert client.get("/v1/fail").status_code == 500
    assert app.state.drain.num_running == 0


# The log.


def log_lines(
    capsys: pytest.CaptureFixture[str], app: Any, calls: list[tuple[str, dict[str, str]]], form: str
) -> list[str]:
    configure_logs(ServerSettings(log_format=form))
    client = TestClient(app, raise_server_exceptions=False)
    for path, headers in calls:
        client.get(path, headers=headers)
    return capsys.readouterr().err.splitlines()


def test_each_request_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    calls = [
        ("/v1/output?secret=1", {"x-request-id": "my-id"}),
        ("/v1/fail", {}),
        ("/a%0Ab%1b", {}),
        ("/v1/stream?count=3&seconds=0", {}),
    ]
    lines = log_lines(capsys, small_app(), calls, "text")
    lines = [line for line in lines if " GET " in line]
    assert len(lines) == 4
    assert " GET /v1/output 200 in 0." in lines[0]
    assert "3 prompt tokens (0 cached), 0 generated" in lines[0]
    assert lines[0].endswith("[my-id]")
    assert "secret" not in lines[0]
    assert " GET /v1/fail 500 " in lines[1]
    assert " GET /a%0Ab%1B 404 " in lines[2]
    assert " GET /v1/stream 200 " in lines[3]
    assert "cut off" not in lines[3]


def test_lines_of_json_have_the_same_in_fields(capsys: pytest.CaptureFixture[str]) -> None:
    lines = log_lines(capsys, small_app(), [("/v1/output", {"x-request-id": "my-id"})], "json")
    (entry,) = [json.loads(line) for line in lines]
    assert entry["level"] == "info"
    assert entry["logger"] == "forerun.server"
    assert (entry["path"], entry["status"], entry["request_id"]) == ("/v1/output", 200, "my-id")
    assert (entry["num_prompt_tokens"], entry["num_generated_tokens"]) == (3, 0)
    assert entry["complete"] is True
    configure_logs(ServerSettings(log_format="json"))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("wrong")
    (line,) = capsys.readouterr().err.splitlines()
    assert "two\nlines" in json.loads(line)["exception"]


def test_no_line_is_written_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    app = small_app(log_requests=False)
    assert log_lines(capsys, app, [("/v1/output", {})], "text") == []


def test_probes_are_logged_when_they_fail(capsys: pytest.CaptureFixture[str]) -> None:
    app = small_app()
    calls: list[tuple[str, dict[str, str]]] = [("/health", {}), ("/metrics", {})]
    assert log_lines(capsys, app, calls, "text") == []
    asyncio.run(app.state.drain.finish(0))
    (line,) = log_lines(capsys, app, calls, "text")
    assert " GET /health 503 " in line


def test_a_request_id_is_the_clients_if_it_is_sound() -> None:
    client = TestClient(small_app(api_keys=["one"]))
    ids = set()
    for given_id in ("a" * 129, "a b", "", 'a"'):
        response = client.get("/v1/output", headers={"x-request-id": given_id})
        ids.add(response.headers["x-request-id"])
    assert len(ids) == 4
    assert all(len(made) == 32 for made in ids)
    response = client.get("/health", headers={"x-request-id": "a.b-C:1_"})
    assert response.headers["x-request-id"] == "a.b-C:1_"
