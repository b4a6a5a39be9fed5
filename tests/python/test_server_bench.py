"""bench/server.py runs, and reads what servers send."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from page_server import running_server

pytest.importorskip("uvicorn", reason="uvicorn is not installed")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "server.py"
    spec = importlib.util.spec_from_file_location("bench_server_script", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # for its dataclasses
    spec.loader.exec_module(module)
    return module


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()][2:]


def test_the_overhead_is_measured(
    bench: ModuleType, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--batches", "1", "3", "--tokens", "4", "--rounds", "2"]
    bench.main(["overhead", str(tiny_dir), *options, "--serve=--max-model-len 64"])
    one, three = rows_of(capsys.readouterr().out)
    assert [one[0], three[0]] == ["1", "3"]
    assert all(float(cell) > 0 for cell in one[1:4])
    assert all(cell.endswith("%") for cell in three[4:])


def test_the_latency_under_load_is_measured(
    bench: ModuleType, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server(tiny_dir, log_requests=False) as url:
        options = ["--rate", "50", "--requests", "5", "--tokens", "6"]
        bench.main(["load", f"a={url}", f"b={url}/v1", *options])
        found = rows_of(capsys.readouterr().out)
        with pytest.raises(SystemExit, match="the server answered 400"):
            bench.main(["load", f"a={url}", *options[:-1], "-1"])
    assert [row[0] for row in found] == ["a", "b"]
    assert all(float(row[-1]) > 0 for row in found)


def test_times_are_those_at_which_the_tokens_came(bench: ModuleType) -> None:
    chunk = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n'
    body = chunk % b"a" + chunk % b"b" + chunk % b"" + chunk % b"c" + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer = bench.Answer(1.0)
    cut = len(chunk % b"a") + 3  # within the second event
    answer.pieces = [(2.0, head), (3.0, body[:cut]), (5.0, body[cut:-30]), (8.0, body[-30:])]
    assert bench.read(answer, is_stream=True).token_times == [3.0, 5.0, 8.0]


def test_answers_without_text_have_no_times(bench: ModuleType) -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 4}}
    text = {"choices": [{"text": "x"}]}
    for events, expected in (
        ([(3.0, usage)], ["-"] * 6),
        ([(2.0, text), (3.0, usage)], [*["1000.0"] * 2, "-", "-", *["0.0"] * 2]),
    ):
        row = bench.report_load("a", [bench.Answer(1.0, events=events)] * 2)
        assert row == "| " + " | ".join(["a", *expected, "4.0"]) + " |"
