"""ServerSettings: what is accepted, and what is said about the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forerun.errors import InvalidArgumentError
from forerun.server.settings import ServerSettings

WRONG: dict[str, list[Any]] = {
    "host": ["", None, 1],
    "port": [-1, 65536, "80", True],
    "api_keys": ["key", [""], ["a b"], ["ä"], ["a\n"], [3]],
    "served_model_names": ["name", [""]],
    "root_path": ["llm", "/llm/", "/", None],
    "allowed_origins": ["*", [""]],
    "allowed_hosts": ["a", [""], ["a:8000"], ["http://a"], ["[::1]"]],
    "forwarded_allow_ips": ["*", [""], ["a"], ["10.0.0.1/x"]],
    "max_body_bytes": [0, 1.5],
    "read_seconds": [-1, 0, float("nan"), "soon"],
    "max_concurrent_requests": [0, 1.5],
    "max_tokens_limit": [0, "many"],
    "max_logprobs": [-2, "all"],
    "log_format": ["xml"],
    "log_level": ["loud"],
    "log_requests": [1],
    "tool_call_parser": [""],
    "reasoning_parser": [""],
    "chat_template": [""],
    "stream_interval": [0],
    "drain_seconds": [-1, float("nan"), "soon"],
}


def test_the_defaults_serve_this_machine_alone() -> None:
    settings = ServerSettings()
    assert settings.host == "127.0.0.1"
    assert settings.allowed_origins == ()


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, vs in WRONG.items() for v in vs])
def test_a_wrong_value_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ServerSettings(**{field: value})
    assert caught.value.field.startswith(field)
    assert len(caught.value.problems) == 1


def test_every_mistake_is_listed() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ServerSettings(port=-1, log_format="xml", root_path="x")
    assert {problem.field for problem in caught.value.problems} == {
        "port",
        "log_format",
        "root_path",
    }


def test_a_wrong_key_is_not_shown() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ServerSettings(api_keys=["secret word"])
    assert "secret" not in str(caught.value)


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    for given, missing in (("ssl_certfile", "ssl_keyfile"), ("ssl_keyfile", "ssl_certfile")):
        with pytest.raises(InvalidArgumentError) as caught:
            ServerSettings(**{given: tmp_path / "a.pem"})
        assert caught.value.field == missing
    (tmp_path / "a.pem").write_text("no certificate")
    with pytest.raises(InvalidArgumentError, match="PEM"):
        ServerSettings(ssl_certfile=str(tmp_path / "a.pem"), ssl_keyfile=str(tmp_path / "a.pem"))
    with pytest.raises(InvalidArgumentError, match="No such file"):
        ServerSettings(ssl_certfile=str(tmp_path / "b.pem"), ssl_keyfile=str(tmp_path / "b.pem"))
