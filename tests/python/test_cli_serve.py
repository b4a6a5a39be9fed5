"""`forerun serve`: its options, and the server that it starts."""

from __future__ import annotations

import gc
import importlib.util
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

import httpx2

from forerun.engine.config import settle_options
from forerun.errors import InvalidArgumentError
from forerun.server.run import listen
from forerun.server.settings import ServerSettings
from forerun.tools import cli
from forerun.tools.cli_serve import engine_options_of, guarded, settings_of
from forerun.vllm_fields import ENGINE_ARGS, Kind


def parsed(*arguments: str) -> Any:
    return cli._parser().parse_args(["serve", "MODEL", *arguments])


def test_every_setting_has_an_option(tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}")
    given = {
        "host": ["0.0.0.0"],
        "port": ["0"],
        "api_keys": ["a", "b"],
        "served_model_names": ["c", "d"],
        "root_path": ["/e"],
        "allowed_origins": ["https://f.example", '["https://g.example"]'],
        "allowed_hosts": ["h.example", "i.example"],
        "forwarded_allow_ips": ["10.0.0.1", "10.1.0.0/16"],
        "max_body_bytes": ["5"],
        "read_seconds": ["10"],
        "max_concurrent_requests": ["11"],
        "max_tokens_limit": ["6"],
        "max_logprobs": ["9"],
        "log_format": ["json"],
        "log_level": ["debug"],
        "tool_call_parser": ["hermes"],
        "reasoning_parser": ["qwen3"],
        "chat_template": [str(template)],
        "default_chat_template_kwargs": ['{"a": 1}'],
        "stream_interval": ["7"],
        "drain_seconds": ["8"],
    }
    flags = {"api_keys": "--api-key", "served_model_names": "--served-model-name"}
    line = ["--no-log-requests", "--enable-force-include-usage"]
    for name, values in given.items():
        line += [flags.get(name, f"--{name.replace('_', '-')}"), *values]
    settings = settings_of(parsed(*line))
    assert settings == ServerSettings(
        host="0.0.0.0",
        port=0,
        api_keys=("a", "b"),
        served_model_names=("c", "d"),
        root_path="/e",
        allowed_origins=("https://f.example", "https://g.example"),
        allowed_hosts=("h.example", "i.example"),
        forwarded_allow_ips=("10.0.0.1", "10.1.0.0/16"),
        max_body_bytes=5,
        read_seconds=10.0,
        max_concurrent_requests=11,
        max_tokens_limit=6,
        max_logprobs=9,
        log_format="json",
        log_level="debug",
        log_requests=False,
        tool_call_parser="hermes",
        reasoning_parser="qwen3",
        chat_template="{{ messages }}",
        default_chat_template_kwargs={"a": 1},
        force_include_usage=True,
        stream_interval=7,
        drain_seconds=8.0,
    )
    files = {"ssl_keyfile", "ssl_certfile"}
    assert {field.name for field in fields(settings)} == {
        *(*given, *files),
        *("log_requests", "force_include_usage"),
    }
    for name in files:
        assert getattr(parsed(f"--{name.replace('_', '-')}", "x"), name) == "x"
    assert settings_of(parsed("--allowed-hosts", "*")) == ServerSettings(allowed_hosts=("*",))


@pytest.mark.parametrize("text", ["{", "[1]", "5"])
def test_variables_of_the_template_are_an_object(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="default_chat_template_kwargs"):
        settings_of(parsed("--default-chat-template-kwargs", text))


@pytest.mark.parametrize(
    ("option", "logs"),
    [
        ("--enable-log-requests", True),
        ("--no-enable-log-requests", False),
        ("--disable-log-requests", False),
        ("--disable-uvicorn-access-log", False),
        ("--enable-prompt-tokens-details", True),
    ],
)
def test_vllms_options_about_logs_and_details_are_taken(option: str, logs: bool) -> None:
    assert settings_of(parsed(option)).log_requests == logs


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
    ],
)
def test_without_keys_a_server_of_this_machine_is_called_by_its_names_alone(
    host: str, is_local: bool
) -> None:
    def allowed(*options: str) -> tuple[str, ...]:
        settings = settings_of(parsed("--host", host, "--port", "0", *options))
        with listen(settings) as listener:
            return guarded(settings, listener.getsockname()[0]).allowed_hosts

    assert allowed() == (("localhost",) if is_local else ())
    assert allowed("--api-key", "a") == ()
    assert allowed("--allowed-hosts", "*") == ("*",)
    assert allowed("--allowed-hosts", "me.example") == ("me.example",)


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::", False),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_a_server_is_local_by_its_address(address: str, is_local: bool) -> None:
    assert guarded(ServerSettings(), address).allowed_hosts == (("localhost",) * is_local)


def test_web_pages_cannot_give_a_local_server_their_name(tiny_dir: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "forerun", "serve", str(tiny_dir), "--port", "0"),
            *("--host", "localhost", "--num-threads", "1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        url = f"{base_url(shlex.split(process.stdout.readline()))}/health"
        for host, status in (("chat.localhost", 200), ("evil.example", 403)):
            assert httpx2.get(url, headers={"host": host}).status_code == status
    finally:
        process.kill()
        process.communicate()


def test_keys_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORERUN_API_KEY", "one two")
    assert settings_of(parsed()).api_keys == ("one", "two")
    assert settings_of(parsed("--api-key", "three")).api_keys == ("three", "one", "two")


def test_a_variable_without_keys_does_not_open_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " "):
        monkeypatch.setenv("FORERUN_API_KEY", value)
        with pytest.raises(InvalidArgumentError, match="FORERUN_API_KEY"):
            settings_of(parsed())


def test_every_option_of_the_engine_is_one_of_the_server() -> None:
    given = engine_options_of(parsed())
    runs = {name for name, field in ENGINE_ARGS.items() if field.kind is Kind.RUNS}
    assert runs - set(given) == {"model", "skip_tokenizer_init"}
    core, speculative = settle_options(given)
    assert speculative is not None
    assert speculative.method == "suffix"
    more = [
        "--max-num-seqs",
        "3",
        "--seed",
        "4",
        "--dtype",
        "float32",
        "--no-enable-prefix-caching",
    ]
    core, _ = settle_options(engine_options_of(parsed(*more)))
    assert (core.max_num_seqs, core.seed, core.dtype) == (3, 4, "float32")
    assert core.enable_prefix_caching is False


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        ([], "suffix"),
        (["--spec-method", "none"], None),
        (["--spec-method", "ngram", "--spec-tokens", "3"], "ngram"),
        (["--spec-tokens", "3"], "suffix"),
        (["--speculative-config", '{"method": "grammar"}'], "grammar"),
    ],
)
def test_drafts_come_from_where_the_options_say(arguments: list[str], method: str | None) -> None:
    _, speculative = settle_options(engine_options_of(parsed(*arguments)))
    assert (None if speculative is None else speculative.method) == method


def test_a_command_line_for_vllm_works() -> None:
    line = (
        "--host 0.0.0.0 --port 8001 --api-key token --served-model-name qwen "
        "--max-model-len 4096 --max-num-seqs 16 --max-num-batched-tokens 512 --dtype bfloat16 "
        "--gpu-memory-utilization 0.9 --tensor-parallel-size 1 --enforce-eager --seed 1 "
        "--enable-prefix-caching --enable-auto-tool-choice --tool-call-parser hermes "
        "--reasoning-parser qwen3 --allowed-origins '[\"*\"]' --uvicorn-log-level warning "
        "--generation-config vllm --scheduling-policy priority --shutdown-timeout 5 "
        '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 4, '
        '"prompt_lookup_max": 4}\''
    )
    options = parsed(*shlex.split(line))
    settings = settings_of(options)
    assert settings.allowed_origins == ("*",)
    assert (settings.reasoning_parser, settings.drain_seconds) == ("qwen3", 5.0)
    core, speculative = settle_options(engine_options_of(options))
    assert speculative is not None
    assert (speculative.method, core.max_model_len) == ("ngram", 4096)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--allowed-origins", "[1"], "allowed_origins"),
        (["--chat-template", "no/such/file"], "chat_template"),
        (["--root-path", "x"], "root_path"),
        (["--ssl-keyfile", "x"], "ssl_certfile"),
    ],
)
def test_a_wrong_setting_is_named(arguments: list[str], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        settings_of(parsed(*arguments))
    assert caught.value.field == field


def test_a_config_without_drafts_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"spec_tokens.*None with --spec-method none"):
        engine_options_of(parsed("--spec-method", "none", "--spec-tokens", "3"))


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "uvicorn" else find(name)
    )
    assert cli.main(["serve", "MODEL"]) == 2
    assert "needs uvicorn, which is not installed: pip install 'forerun[serve]'" in (
        capsys.readouterr().err
    )


# The rest needs a model.

Server = tuple["subprocess.Popen[str]", list[str]]
KEY = {"FORERUN_API_KEY": "one"}


@pytest.fixture
def server(tiny_dir: Path) -> Iterator[Server]:
    """A server's process, and the words of the line that it says."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "forerun", "serve", str(tiny_dir), "--port", "0"),
            *("--num-threads", "1", "--log-format", "json", "--served-model-name", "tiny"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **KEY},
    )
    assert process.stdout is not None
    yield process, shlex.split(process.stdout.readline())
    process.kill()
    process.communicate()


def base_url(words: list[str]) -> str:
    return words[1].removesuffix("/v1/chat/completions")


def test_the_line_that_it_says_works(server: Server) -> None:
    process, words = server
    assert words[:2] == ["curl", f"{base_url(words)}/v1/chat/completions"]
    headers = dict(words[i + 1].split(": ") for i, word in enumerate(words) if word == "-H")
    assert headers["Authorization"] == "Bearer KEY"
    body = {**json.loads(words[words.index("-d") + 1]), "max_tokens": 4}
    assert httpx2.post(words[1], headers=headers, json=body).status_code == 401
    headers["Authorization"] = "Bearer one"
    answer = httpx2.post(words[1], headers=headers, json=body).json()
    assert answer["model"] == "tiny"
    assert answer["usage"]["completion_tokens"] == 4
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    entries = [json.loads(line) for line in err.splitlines()]
    (served,) = [entry for entry in entries if entry.get("status") == 200]
    assert served["num_generated_tokens"] == 4
    assert served["first_token_seconds"] > 0


def test_chat_and_bench_measure_it(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = base_url(server[1])
    monkeypatch.setenv("FORERUN_API_KEY", "one")
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert cli.main(["chat", "--url", url, "--max-tokens", "6", "--stats", "--ignore-eos"]) == 0
    told = capsys.readouterr().err
    assert "Chat with tiny. " in told
    assert "[cut off after 6 tokens]" in told
    assert " tokens per target pass, mean acceptance length " in told
    prompts, numbers = tmp_path / "prompts.jsonl", tmp_path / "numbers.json"
    lines = [{"prompt": "low low low low low"}, {"turns": ["ab ab", "low"], "category": "chat"}]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["--url", url, "--rounds", "2", "--max-tokens", "24", "--output", str(numbers)]
    assert cli.main(["bench", str(prompts), *arguments, "--ignore-eos"]) == 0
    report = json.loads(numbers.read_text())
    assert list(report["methods"]) == ["none", "server"]
    plain, drafted = report["methods"].values()
    assert plain["num_drafts"] == 0
    assert plain["tokens_per_target_pass"] == 1
    assert drafted["num_drafts"] > 0
    assert drafted["tokens_per_target_pass"] > 1
    for summary in (plain, drafted):
        assert summary["num_tokens"] == 2 * 3 * 24
        assert summary["same_tokens"]
        assert summary["tokens_per_second"] > 0
        assert list(summary["by_category"]) == ["no category", "chat"]
    assert "share of roofline" not in capsys.readouterr().out


def test_a_port_that_is_taken_is_told_before_the_model_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with listen(ServerSettings(port=0)) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert cli.main(["serve", "no/such/model", "--port", str(port)]) == 2
        assert gc.isenabled()
    assert f"port: got 127.0.0.1:{port}; " in capsys.readouterr().err
