"""Fails when a file, a function or a list of parameters outgrows its budget; prints the totals."""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("cpp", "cuda", "python", "tests", "bench", "tools")
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 6
_VLLM = "vLLM's signature"
# Files and functions that may be larger, each with the reason.
EXCEPTIONS = {
    "python/bindings/engine.cc:RegisterEngine": "a list of bindings",
    "python/forerun/llm.py:enqueue": _VLLM,
    "python/forerun/llm.py:chat": _VLLM,
    "python/forerun/llm.py:enqueue_chat": _VLLM,
    "python/forerun/llm_engine.py:add_request": _VLLM,
    "python/forerun/text/tokenizer.py:apply_chat_template": "transformers' signature",
}

COMMENT_OR_LITERAL = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)
SCOPE = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b")


class Function(NamedTuple):
    name: str
    line: int
    num_lines: int
    num_parameters: int


def file_budget(path: pathlib.Path) -> int:
    if "tests" in path.parts:
        return 500
    if path.suffix == ".h":
        return 200
    return 400 if path.suffix in {".cc", ".cu", ".cuh"} else 500


def python_functions(text: str) -> Iterator[Function]:
    """Functions with their lines beside the docstring and the parameters given by position."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args]
            num = sum(parameter.arg not in ("self", "cls") for parameter in parameters)
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if (docstring := ast.get_docstring(node, clean=False)) is not None:
                num_lines -= docstring.count("\n") + 1
            yield Function(node.name, node.lineno, num_lines, num)


def cpp_functions(text: str) -> Iterator[Function]:
    """Functions that are defined in namespaces and classes: a heuristic for formatted code."""
    code = COMMENT_OR_LITERAL.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    code = re.sub(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", "", code, flags=re.MULTILINE)
    code = re.sub(r"\b(public|private|protected):", lambda m: ";".ljust(len(m.group())), code)
    open_scopes: list[Function | str] = []
    start = 0
    for index, char in enumerate(code):
        if char == "{":
            in_scope = all(scope == "scope" for scope in open_scopes)
            head = code[start:index]
            if not in_scope:
                open_scopes.append("block")
            elif SCOPE.search(head.split("(")[0]) and ")" not in head.split("{")[-1]:
                open_scopes.append("scope")
            elif (declared := declaration(head)) is not None:
                begin = start + len(head) - len(head.lstrip())
                line = code.count("\n", 0, begin) + 1
                open_scopes.append(Function(declared[0], line, 0, declared[1]))
            else:
                open_scopes.append("block")
            if in_scope:
                start = index + 1
        elif char == "}":
            closed = open_scopes.pop() if open_scopes else "scope"
            if isinstance(closed, Function):
                end = code.count("\n", 0, index) + 1
                yield closed._replace(num_lines=end - closed.line + 1)
            if all(scope == "scope" for scope in open_scopes):
                start = index + 1
        elif char == ";" and all(scope == "scope" for scope in open_scopes):
            start = index + 1


def declaration(head: str) -> tuple[str, int] | None:
    """Name and number of parameters of the function whose body follows; None if it is none."""
    head = re.sub(r"\b(requires|noexcept|alignas|__attribute__|decltype)\s*\(+[^()]*\)+", "", head)
    found = re.search(r"([\w:~]+|operator\s*\S+?)\s*\(", head)
    if found is None or "=" in head[: found.start()].replace("operator=", ""):
        return None
    depth, num_commas, angle = 0, 0, 0
    inside = ""
    for char in head[found.end() - 1 :]:
        depth += (char in "([{") - (char in ")]}")
        angle += (char == "<") - (char == ">")
        if depth == 0:
            break
        num_commas += char == "," and depth == 1 and angle == 0
        inside += char
    return found.group(1), num_commas + 1 if inside.strip("( \n\t") not in ("", "void") else 0


def check_file(name: str, text: str) -> list[str]:
    path = pathlib.PurePath(name)
    problems = []
    num_lines = len(text.splitlines())
    limit = file_budget(pathlib.Path(name))
    if num_lines > limit and name not in EXCEPTIONS:
        problems.append(f"{name}: {num_lines} lines, budget {limit}")
    functions = python_functions(text) if path.suffix == ".py" else cpp_functions(text)
    for function in functions:
        where = f"{name}:{function.line}: {function.name}"
        if f"{name}:{function.name}" in EXCEPTIONS or "tests" in path.parts:
            continue
        if function.num_lines > MAX_FUNCTION_LINES:
            problems.append(f"{where}: {function.num_lines} lines, budget {MAX_FUNCTION_LINES}")
        if function.num_parameters > MAX_PARAMETERS:
            problems.append(
                f"{where}: {function.num_parameters} parameters, budget {MAX_PARAMETERS}"
            )
    return problems


def main() -> int:
    total: dict[str, int] = {}
    problems = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix not in {".h", ".cc", ".cu", ".cuh", ".py"}:
                continue
            text = path.read_text(encoding="utf-8")
            total[folder] = total.get(folder, 0) + len(text.splitlines())
            problems += check_file(path.relative_to(ROOT).as_posix(), text)
    print("lines: " + ", ".join(f"{folder} {count}" for folder, count in total.items()))
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
