"""Fails when an include or an import points up or sideways in the levels of docs/architecture.md.

C++: a header may be included from its own folder and from folders of a higher level. Python: the
same for imports of modules, those inside functions too (not those for type checkers), and no
modules may import each other in a circle.
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
    "ops": 3,
    "model": 4,
    "draft": 5,
    "sched": 5,
    "engine": 6,
}
# The folders of python/forerun and, by name, the modules beside them.
PYTHON_LEVELS = [
    {"_core", "errors", "version"},
    {"util"},
    {"vllm_fields"},
    {"text"},
    {"values"},
    {"checkpoints"},
    {"engine"},
    {"llm"},
    {"training"},
    {"tools"},
    {"forerun", "__main__"},
]
GROUPS = {
    "values": "logits_processors logprobs metrics outputs prompt_histograms sampling_params "
    "speculative_config",
    "llm": "beam_search engine_args llm llm_engine unsupported",
}
INCLUDE = re.compile(r'^\s*#include "(?:cpp/(\w+)/|(forerun)/)', re.MULTILINE)


def check_includes(problems: list[str]) -> int:
    num_includes = 0
    for path in sorted((ROOT / "cpp").rglob("*")):
        if path.suffix not in {".h", ".cc"}:
            continue
        layer = "forerun" if "include" in path.parts else path.relative_to(ROOT / "cpp").parts[0]
        for match in INCLUDE.finditer(path.read_text()):
            target = match.group(1) or match.group(2)
            num_includes += 1
            if target not in LEVELS:
                problems.append(f"{path.relative_to(ROOT)}: unknown layer '{target}'")
            elif target != layer and LEVELS[target] >= LEVELS[layer]:
                problems.append(
                    f"{path.relative_to(ROOT)}: {layer} (level {LEVELS[layer]}) includes "
                    f"{target} (level {LEVELS[target]})"
                )
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
