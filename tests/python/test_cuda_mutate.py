"""The survey of barriers removes each alone, and tells what notices it from what went wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import cuda_mutate  # noqa: E402
import mutant_tests  # noqa: E402

LIST = ROOT / "cuda" / "barriers.txt"
KERNEL = """\
__global__ void Sum(int* out) {
  // __syncthreads(); in a comment is none
  __syncthreads();
  if (__syncthreads_or(out[0] > (1 + 2))) return;
  __syncwarp(0xffffu);
}
"""


def test_barriers_are_found_and_removed_one_at_a_time() -> None:
    path = ROOT / "cuda" / "sum.cu"
    barriers = list(cuda_mutate.find_barriers(path, KERNEL))
    assert [str(barrier) for barrier in barriers] == [
        "cuda/sum.cu 1 __syncthreads()",
        "cuda/sum.cu 2 __syncthreads_or(out[0] > (1 + 2))",
        "cuda/sum.cu 3 __syncwarp(0xffffu)",
    ]
    first, second, third = (barrier.removed_from(KERNEL) for barrier in barriers)
    lines = KERNEL.splitlines()
    assert first.splitlines() == [*lines[:2], "  static_cast<void>(0);", *lines[3:]]
    assert second.splitlines() == [*lines[:3], "  if ((out[0] > (1 + 2))) return;", *lines[4:]]
    assert third.splitlines() == [*lines[:4], "  static_cast<void>(0);", *lines[5:]]


def test_the_survey_reports_what_no_test_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_mutate, "ROOT", tmp_path)
    path = tmp_path / "sum.cu"
    path.write_text(KERNEL)

    def notice(mutated: Path) -> str:
        assert mutated == path
        source = path.read_text()
        assert source != KERNEL
        return "" if "__syncwarp" not in source else "race sum: SumTest.Sums"

    noticed = cuda_mutate.survey(cuda_mutate.all_barriers([path]), notice)
    assert path.read_text() == KERNEL
    assert list(noticed.values()) == ["race sum: SumTest.Sums"] * 2 + ["NOT NOTICED"]


def test_a_source_is_restored_when_a_build_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_mutate, "ROOT", tmp_path)
    path = tmp_path / "sum.cu"
    path.write_text(KERNEL)

    def interrupt(mutated: Path) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda_mutate.survey(cuda_mutate.all_barriers([path]), interrupt)
    assert path.read_text() == KERNEL


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one kernel file, where a command `ninja` is what a test writes."""
    monkeypatch.setattr(cuda_mutate, "ROOT", tmp_path)
    monkeypatch.setattr(cuda_mutate, "VARIANTS", ("race",))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for folder in ("cuda", "build/tests/cuda"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "cuda" / "sum.cu").write_text(KERNEL)
    return tmp_path


def write_command(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def write_ninja(checkout: Path, test: str) -> None:
    """A build whose test binary is the script `test`, with the kernel's text in its comments."""
    write_command(checkout / "test.sh", test)
    source, binary = checkout / "cuda" / "sum.cu", "build/tests/cuda/forerun_sum_race_test"
    write_command(
        checkout / "ninja",
        f"cd {checkout} && cp test.sh {binary} && sed 's/^/# /' {source} >> {binary}",
    )


def survey_of(checkout: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    words = [str(checkout / "cuda" / "sum.cu"), "--build", str(checkout / "build")]
    monkeypatch.setattr(sys, "argv", ["cuda_mutate.py", *words, "--tests", "sum", *options])
    return cuda_mutate.main()


@pytest.mark.parametrize(
    ("printed", "is_of_the_file"),
    [
        ("{root}/cuda/sum.cu:3:25: error: 'x' was not declared", True),
        ("../cuda/sum.cu:3:25: error: 'x' was not declared", True),
        ("cuda/sum.cu:3: error: unterminated #if", True),
        ("{root}/cuda/a_sum.cu:3:25: error: 'x' was not declared", False),
        ("{root}/cuda/other.cu:3:25: error: 'x' was not declared", False),
        ("{root}/cuda/sum.cu:3:25: warning: unused variable 'x'", False),
        ("{root}/cuda/sum.cu:9:1: fatal error: error writing to x.o: No space left", False),
        ("{root}/cuda/sum.cu:9:1: internal compiler error: Segmentation fault", False),
        ("g++: fatal error: Killed signal terminated program cc1plus", False),
        ("ninja: error: unknown target 'forerun_sum_race_test'", False),
    ],
)
def test_only_a_compile_error_in_the_file_notices_a_removal(
    checkout: Path, printed: str, is_of_the_file: bool
) -> None:
    text = printed.format(root=checkout).replace("'", "")
    write_command(checkout / "ninja", f"echo '[1/2] CXX sum.o\n{text}'; exit 1")
    tests = cuda_mutate.Tests(checkout / "build", ["sum"])
    if is_of_the_file:
        assert tests.failure(checkout / "cuda" / "sum.cu") == "does not compile"
    else:
        with pytest.raises(mutant_tests.SurveyError, match="forerun_sum_race_test could not be"):
            tests.failure(checkout / "cuda" / "sum.cu")
    with pytest.raises(mutant_tests.SurveyError):  # nothing is removed
        tests.failure()


def test_a_test_that_is_killed_ends_the_survey(checkout: Path) -> None:
    write_ninja(checkout, "kill -9 $$")
    with pytest.raises(mutant_tests.SurveyError, match=f"by signal {int(signal.SIGKILL)}"):
        cuda_mutate.Tests(checkout / "build", ["sum"]).failure()


def test_a_timeout_is_no_failure_and_reported_apart(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_mutate, "TIMEOUT_S", 1)
    source = checkout / "cuda" / "sum.cu"
    fails = f"grep -q '  __syncthreads();' {source} && grep -q _or {source} || exit 3"
    write_ninja(checkout, f"grep -q __syncwarp {source} || exec sleep 20\n{fails}")
    assert survey_of(checkout, monkeypatch, "--write", str(checkout / "list.txt")) == 1
    printed = capsys.readouterr().out
    assert "0 of 3 removals are not noticed" in printed
    assert "1 of 3 removals keep a test from its end" in printed
    assert (checkout / "list.txt").read_text().splitlines() == [
        cuda_mutate.COLUMNS,
        "cuda/sum.cu 1 __syncthreads(): race sum: exit code 3",
        "cuda/sum.cu 2 __syncthreads_or(out[0] > (1 + 2)): race sum: exit code 3",
        "cuda/sum.cu 3 __syncwarp(0xffffu): race sum: DOES NOT END",
    ]


@pytest.mark.parametrize(("test", "code"), [("exit 0", 1), ("{compare} || exit 3", 0)])
def test_the_return_code_says_whether_all_removals_were_noticed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, test: str, code: int
) -> None:
    (checkout / "kept.cu").write_text(KERNEL)
    compare = f"cmp -s {checkout / 'kept.cu'} {checkout / 'cuda' / 'sum.cu'}"
    write_ninja(checkout, test.format(compare=compare))
    assert survey_of(checkout, monkeypatch) == code


def problems_of(
    listed: list[str], barriers: list[cuda_mutate.Barrier], tests: set[str]
) -> list[str]:
    """Barriers that the lines of a list lack, or whose removal no test notices."""
    noticed_by = {}
    for line in listed:
        name, _, by = line.rpartition("): ")
        noticed_by[f"{name})"] = by
    names = [str(barrier) for barrier in barriers]
    problems = [f"not listed: {name}" for name in names if name not in noticed_by]
    problems += [f"not in the sources: {name}" for name in noticed_by if name not in names]
    for name, by in noticed_by.items():
        run = re.fullmatch(r"(?:race|plain) \w+: (exit code -?\d+|[\w./]+)", by)
        # A parameterised test is <instance>/<suite>.<test>/<parameter>.
        test = re.sub(r"^\w+/(?=\w+\.)|/\w+$", "", run.group(1)) if run else ""
        is_noticed = by == "does not compile" or test in tests or test.startswith("exit code")
        if not is_noticed:
            problems.append(f"not noticed by a test that exists: {name}: {by}")
    return problems


def defined_tests() -> set[str]:
    sources = (file.read_text() for file in (ROOT / "tests" / "cuda").rglob("*_test.cc"))
    definition = re.compile(r"\bTEST(?:_[FP])?\((\w+),\s*(\w+)\)")
    return {f"{suite}.{test}" for text in sources for suite, test in definition.findall(text)}


def test_the_removal_of_each_barrier_is_listed_as_noticed_by_a_test() -> None:
    """tools/cuda_mutate.py --write cuda/barriers.txt makes the list anew."""
    columns, *listed = LIST.read_text().splitlines()
    assert columns == cuda_mutate.COLUMNS
    barriers = cuda_mutate.all_barriers(cuda_mutate.kernel_files())
    assert barriers
    assert problems_of(listed, barriers, defined_tests()) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (None, "not listed: cuda/sum.cu 3"),
        ("cuda/sum.cu 4 __syncwarp(): race sum: SumTest.Sums", "not in the sources: cuda/sum.cu 4"),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): NOT NOTICED", "not noticed by"),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): race sum: DOES NOT END", "not noticed by"),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): race sum: SumTest.Gone", "not noticed by"),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): ", "not noticed by"),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): plain sum: exit code -6", None),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): race sum: All/SumTest.Sums/2", None),
        ("cuda/sum.cu 3 __syncwarp(0xffffu): does not compile", None),
    ],
)
def test_a_barrier_that_is_not_noticed_is_a_problem(line: str | None, problem: str | None) -> None:
    barriers = list(cuda_mutate.find_barriers(ROOT / "cuda" / "sum.cu", KERNEL))
    listed = [f"{barrier}: race sum: SumTest.Sums" for barrier in barriers[:2]]
    listed += [] if line is None else [line]
    problems = problems_of(listed, barriers, {"SumTest.Sums"})
    assert bool(problems) == (problem is not None)
    if problem is not None:
        assert any(found.startswith(problem) for found in problems)
