"""Fails when an include or an import points up or sideways in the levels of docs/architecture.md.

C++: a header may be included from its own folder and from folders of a higher level; cuda/ has
levels of its own and may include cpp/ up to ops, and cpp/ never includes cuda/. Python: the same
for imports of modules, those inside functions too (not those for type checkers), and no modules may
import each other in a circle.
"""

import ast
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
LEVELS = {
    "forerun": 0,
    "util": 1,
    "tensor": 2,
    "kv": 2,
    "index": 2,
    "draft_tree": 2,
    "sampling": 3,
    "verify": 4,
    "ops": 5,
    "model": 6,
    "draft": 7,
    "sched": 7,
    "engine": 8,
}
# The folders of cuda/. They may include cpp/ up to LAST_OF_CUDA; nothing in cpp/ includes them.
CUDA_LEVELS = {"cuda": 0, "cuda/verify": 1, "cuda/ops": 2, "cuda/emulation": 2, "cuda/library": 3}
LAST_OF_CUDA = LEVELS["ops"]
# The folders of python/forerun and, by name, the modules beside them.
PYTHON_LEVELS = [
    {"_core", "errors", "version"},
    {"util"},
    {"vllm_fields"},
    {"text"},
    {"values"},
    {"checkpoints"},
    {"engine"},
    {"llm", "kernels"},
    {"training", "server"},
    {"tools"},
    {"forerun", "__main__"},
]
GROUPS = {
    "values": "logits_processors logprobs metrics outputs prompt_histograms sampling_params "
    "speculative_config",
    "llm": "async_llm beam_search engine_args llm llm_engine unsupported",
}
INCLUDE = re.compile(r'^\s*#include "(?:cpp/(\w+)/|(forerun)/|(cuda(?:/\w+)?)/)', re.MULTILINE)
SOURCES = {".h", ".cc", ".cu", ".cuh"}


def layer_of(path: pathlib.PurePath) -> str:
    """The layer of a file, given from the root."""
    if path.parts[0] == "cuda":
        return "/".join(path.parts[: min(2, len(path.parts) - 1)])
    return "forerun" if "include" in path.parts else path.parts[1]


def include_problem(layer: str, target: str) -> str:
    """What is wrong with a layer that includes another; empty if nothing is."""
    levels = LEVELS | CUDA_LEVELS
    if target not in levels or layer not in levels:
        return f"unknown layer '{target if target not in levels else layer}'"
    is_wrong = levels[target] >= levels[layer]
    if layer in CUDA_LEVELS and target in LEVELS:
        is_wrong = LEVELS[target] > LAST_OF_CUDA
    elif layer in LEVELS and target in CUDA_LEVELS:
        is_wrong = True
    if target == layer or not is_wrong:
        return ""
    return f"{layer} (level {levels[layer]}) includes {target} (level {levels[target]})"


def check_includes(problems: list[str]) -> int:
    num_includes = 0
    for path in sorted([*(ROOT / "cpp").rglob("*"), *(ROOT / "cuda").rglob("*")]):
        if path.suffix not in SOURCES:
            continue
        name = path.relative_to(ROOT)
        for match in INCLUDE.finditer(path.read_text(encoding="utf-8")):
            num_includes += 1
            if problem := include_problem(layer_of(name), next(filter(None, match.groups()))):
                problems.append(f"{name}: {problem}")
    return num_includes


def python_modules(package: pathlib.Path) -> dict[str, pathlib.Path]:
    """The files of a package by the names of their modules."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.orelse:
                yield from statements(statement)
        else:
            yield from statements(child)


def imports(source: str, modules: set[str]) -> set[str]:
    """The modules of a package that a source imports."""
    found = set()
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & modules


def python_level(module: str) -> tuple[int, str]:
    """A module's level and what it belongs to."""
    parts = module.split(".")
    wing = parts[1] if len(parts) > 1 else "forerun"
    wing = next((group for group, names in GROUPS.items() if wing in names.split()), wing)
    for level, wings in enumerate(PYTHON_LEVELS):
        if wing in wings:
            return level, wing
    raise SystemExit(f"{module}: tools/check_layers.py has no level for it")


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty when none do."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if circle := visit(target, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def check_imports(problems: list[str]) -> int:
    files = python_modules(ROOT / "python" / "forerun")
    names = {*files, "forerun._core"}
    graph = {module: imports(path.read_text(), names) for module, path in files.items()}
    for module, targets in graph.items():
        level, wing = python_level(module)
        for target in sorted(targets):
            target_level, target_wing = python_level(target)
            if target_level >= level and target_wing != wing:
                problems.append(
                    f"{module} ({wing}, level {level}) imports {target} "
                    f"({target_wing}, level {target_level})"
                )
    if circle := find_circle(graph):
        problems.append(f"modules import each other in a circle: {' -> '.join(circle)}")
    return sum(map(len, graph.values()))


def main() -> int:
    problems: list[str] = []
    num_includes = check_includes(problems)
    num_imports = check_imports(problems)
    print("\n".join(problems) or f"layers: {num_includes} includes, {num_imports} imports, none up")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
