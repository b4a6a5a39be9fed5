"""The checks of `make lint` find what they are for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import check_cpp  # noqa: E402
import check_layers  # noqa: E402
import check_size  # noqa: E402
import check_words  # noqa: E402
import cuda_table  # noqa: E402


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("rows behind the node", "behind"),
        ("int num_guesses = 0;", "guesses"),
        ("int NumRowsBehind() const;", "behind"),
        ("The method is told by its tensors", "told by"),
        ("a place in the output", "place"),
    ],
)
def test_words_that_the_glossary_replaces_are_found_in_prose_and_names(
    line: str, found: str
) -> None:
    (problem,) = check_words.problems_of(line)
    assert f"'{found}'" in problem


def test_other_meanings_of_these_words_are_allowed() -> None:
    assert check_words.problems_of("changes the row in place, to two decimal places") == []
    assert check_words.problems_of("replaced placeholders and overstepped standards") == []


@pytest.mark.parametrize(
    ("layer", "target", "is_allowed"),
    [
        ("engine", "ops", True),
        ("ops", "engine", False),
        ("draft", "sched", False),
        ("engine", "cuda/library", False),
        ("cuda/verify", "verify", True),
        ("cuda/library", "ops", True),
        ("cuda/library", "model", False),
        ("cuda/library", "cuda/verify", True),
        ("cuda/verify", "cuda/emulation", False),
        ("cuda/verify", "cuda", True),
        ("verify", "unknown", False),
    ],
)
def test_includes_point_down_and_none_of_cpp_into_cuda(
    layer: str, target: str, is_allowed: bool
) -> None:
    assert (check_layers.include_problem(layer, target) == "") is is_allowed


def test_a_file_is_in_the_layer_of_its_folder() -> None:
    layers = {
        "cpp/include/forerun/error.h": "forerun",
        "cpp/ops/cpu/cpu_ops.cc": "ops",
        "cuda/portable.cuh": "cuda",
        "cuda/verify/device.cuh": "cuda/verify",
        "cuda/emulation/include/cuda_runtime.h": "cuda/emulation",
    }
    for name, layer in layers.items():
        assert check_layers.layer_of(Path(name)) == layer
        for include in (f"cuda/{part}x.h" for part in ("", "verify/")):
            (match,) = check_layers.INCLUDE.finditer(f'#include "{include}"')
            assert match.group(3) == include.rpartition("/")[0]


LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_80'
ptxas info    : Function properties for _Z5firstPf
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 40 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z6secondPf' for 'sm_90'
ptxas info    : Function properties for _Z6secondPf
    0 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_what_kernels_take_is_read_from_the_log_of_nvcc(tmp_path: Path) -> None:
    (tmp_path / "kernels.o.log").write_text(LOG)
    found = cuda_table.read_logs(tmp_path)
    assert found == {
        ("first", 80): cuda_table.Usage(registers=32, shared=40, stack=8, spilled=0),
        ("second", 90): cuda_table.Usage(registers=255, shared=0, stack=0, spilled=16),
    }
    assert cuda_table.parse_table(cuda_table.format_table("13.0.88", found)) == ("13.0.88", found)


def test_a_spill_that_the_table_does_not_list_fails_with_any_nvcc() -> None:
    usage = cuda_table.Usage(registers=32, shared=0, stack=0, spilled=8)
    found = {("kernel", 80): usage}
    assert cuda_table.compare(found, found, is_same_nvcc=True) == []
    without = {("kernel", 80): usage._replace(spilled=0)}
    (problem,) = cuda_table.compare(found, without, is_same_nvcc=False)
    assert problem == "kernel, compute capability 80: spills 8 bytes, the table has 0"
    others = {("kernel", 80): usage._replace(registers=40)}
    assert cuda_table.compare(found, others, is_same_nvcc=False) == []
    assert len(cuda_table.compare(found, others, is_same_nvcc=True)) == 1
    (problem,) = cuda_table.compare(found, {}, is_same_nvcc=False)
    assert problem.endswith("only in the build")


def test_imports_inside_functions_count_and_those_for_type_checkers_do_not() -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from forerun.llm import LLM
def load():
    from forerun import errors
"""
    modules = {"forerun", "forerun.llm", "forerun.errors"}
    assert check_layers.imports(source, modules) == {"forerun.errors"}


def test_modules_that_import_each_other_are_named() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert check_layers.find_circle(graph) == ["b", "c", "b"]
    assert check_layers.find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_module_has_a_level() -> None:
    for module in check_layers.python_modules(ROOT / "python" / "forerun"):
        check_layers.python_level(module)


def test_long_functions_and_lists_of_parameters_are_found() -> None:
    body = "  int x = 0;\n" * 60
    text = f"namespace a {{\nint F(int b, std::map<int, int> c) {{\n{body}}}\n}}  // namespace a\n"
    assert check_size.check_file("cpp/a.cc", text) == ["cpp/a.cc:2: F: 62 lines, budget 60"]
    seven = ", ".join(f"int {name}" for name in "abcdefg")
    text = f"class A {{\n public:\n  A({seven}) : a_(a) {{}}\n}};\n"
    assert check_size.check_file("cpp/a.h", text) == ["cpp/a.h:3: A: 7 parameters, budget 6"]


def test_functions_are_found_in_all_sources() -> None:
    text = (ROOT / "cpp" / "sched" / "scheduler.cc").read_text(encoding="utf-8")
    names = {function.name for function in check_size.cpp_functions(text)}
    assert {"Scheduler::Plan", "Scheduler::Admit"} <= names


def test_docstrings_do_not_count_as_lines_of_a_function() -> None:
    text = 'def f():\n    """' + "text\n" * 70 + '    """\n    return 1\n'
    (function,) = check_size.python_functions(text)
    assert function.num_lines == 2


def test_headers_that_no_source_includes_first_are_checked_alone() -> None:
    assert check_cpp.is_compiled_by_source(ROOT / "cpp" / "sched" / "scheduler.h")
    assert not check_cpp.is_compiled_by_source(ROOT / "cpp" / "draft" / "drafter.h")


def test_a_change_of_an_included_header_checks_a_source_again() -> None:
    included = check_cpp.closure(ROOT / "cpp" / "sched" / "scheduler.cc")
    assert ROOT / "cpp" / "kv" / "block_pool.h" in included
    assert ROOT / "cpp" / "include" / "forerun" / "types.h" in included
