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
