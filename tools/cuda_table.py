"""Compares what ptxas says of every kernel with cuda/compile_table.txt.

    python tools/cuda_table.py build/release/nvcc            # after a build with nvcc
    python tools/cuda_table.py build/release/nvcc --write    # after a kernel has changed

Fails on registers that were spilled to memory unless the table lists them, and on kernels that it
does not list. Other numbers must be equal where the version of nvcc is the table's.
"""

import argparse
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
TABLE = ROOT / "cuda" / "compile_table.txt"
COLUMNS = "# capability registers shared_bytes stack_bytes spilled_bytes kernel"
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
PROPERTIES = re.compile(
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


class Usage(NamedTuple):
    """What one kernel takes on one compute capability."""

    registers: int
    shared: int
    stack: int
    spilled: int  # stores and loads


Table = dict[tuple[str, int], Usage]  # by kernel and compute capability


def parse_log(text: str) -> Table:
    """The kernels of one log of `nvcc -Xptxas -v`, by mangled name."""
    table = {}
    parts = ENTRY.split(text)
    for name, capability, said in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        properties, registers = PROPERTIES.search(said), REGISTERS.search(said)
        if properties is None or registers is None:
            raise SystemExit(f"{name}: ptxas says nothing of its registers")
        shared = SHARED.search(said)
        stack, stores, loads = map(int, properties.groups())
        usage = Usage(int(registers[1]), int(shared[1]) if shared else 0, stack, stores + loads)
        table[name, int(capability)] = usage
    return table


def demangle(names: list[str]) -> list[str]:
    """Names as in the source, without parameters and namespaces of one file."""
    done = subprocess.run(
        ["c++filt", "--no-params"],
        input="\n".join(names),
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        name.removeprefix("void ").replace("(anonymous namespace)::", "")
        for name in done.stdout.splitlines()
    ]


def read_logs(folder: pathlib.Path) -> Table:
    """The kernels of all logs below a folder, by their names in the source."""
    table: Table = {}
    for log in sorted(folder.rglob("*.log")):
        table |= parse_log(log.read_text(encoding="utf-8"))
    names = demangle([name for name, _ in table])
    found = {(name, key[1]): usage for name, (key, usage) in zip(names, table.items(), strict=True)}
    if len(found) != len(table):
        raise SystemExit("two kernels have one name without their parameters")
    return found


def parse_table(text: str) -> tuple[str, Table]:
    """The version of nvcc and the kernels of the committed table."""
    lines = text.splitlines()
    table = {}
    for line in lines[2:]:
        *numbers, name = line.split(maxsplit=5)
        capability, *usage = map(int, numbers)
        table[name, capability] = Usage(*usage)
    return lines[0].removeprefix("# nvcc "), table


def format_table(version: str, table: Table) -> str:
    rows = [
        f"{capability:3} {use.registers:3} {use.shared:6} {use.stack:5} {use.spilled:5} {name}"
        for (name, capability), use in sorted(table.items())
    ]
    return "\n".join([f"# nvcc {version}", COLUMNS, *rows]) + "\n"


def compare(found: Table, listed: Table, is_same_nvcc: bool) -> list[str]:
    """What the kernels that were found do that the table does not list."""
    problems = []
    for key in sorted(found.keys() | listed.keys()):
        where = f"{key[0]}, compute capability {key[1]}"
        if key not in found or key not in listed:
            problems.append(f"{where}: only in {'the build' if key in found else 'the table'}")
        elif found[key].spilled > listed[key].spilled:
            problems.append(
                f"{where}: spills {found[key].spilled} bytes, the table has {listed[key].spilled}"
            )
        elif is_same_nvcc and found[key] != listed[key]:
            problems.append(f"{where}: {found[key]}, the table has {listed[key]}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="of the objects that nvcc made")
    parser.add_argument("--write", action="store_true", help="write the table")
    options = parser.parse_args()
    version = (options.folder / "version.txt").read_text(encoding="utf-8").strip()
    found = read_logs(options.folder)
    if not found:
        raise SystemExit(f"{options.folder}: no log of nvcc names a kernel")
    if options.write:
        TABLE.write_text(format_table(version, found), encoding="utf-8")
        return 0
    listed_version, listed = parse_table(TABLE.read_text(encoding="utf-8"))
    problems = compare(found, listed, version == listed_version)
    if problems:
        problems.append(f"{TABLE.relative_to(ROOT)}: write it again if this is as it should be")
    print("\n".join(problems) or f"kernels: {len(found)}, as {TABLE.relative_to(ROOT)} has them")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
