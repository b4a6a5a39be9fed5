"""The command `forerun memory`: what a suffix memory holds, filling it ahead, emptying it."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidArgumentError
from forerun.util.json_files import parse_json

if TYPE_CHECKING:
    from forerun.text.tokenizer import Tokenizer

_BATCH = 1000


def add_memory(commands: Any) -> None:
    """The command `forerun memory`."""
    parser = commands.add_parser(
        "memory",
        help="show, fill or clear a file of past outputs",
        description="Works on the file of --suffix-memory, from which the drafting methods suffix "
        "and hybrid learn. A running server reads it when it starts.",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    add = actions.add_parser(
        "add",
        help="add texts that a model is expected to write",
        description="Adds texts to a file, which is made where it is missing. Lines of TEXTS.jsonl "
        'are JSON strings, or objects with a "text". Texts at the end count as newest.',
    )
    add.add_argument("file", metavar="FILE")
    add.add_argument("model", metavar="MODEL", help="a directory, a .gguf file or a hub id")
    add.add_argument("texts", metavar="TEXTS.jsonl")
    add.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    add.add_argument("--tokenizer", metavar="DIR", help="another tokenizer than the model's")
    _add_tenant(add, "whose requests may learn from them", default="")
    add.set_defaults(run=_add)

    show = actions.add_parser("show", help="show what a file holds of each tenant")
    show.add_argument("file", metavar="FILE")
    show.set_defaults(run=_show)

    clear = actions.add_parser("clear", help="forget all outputs, or those of a tenant")
    clear.add_argument("file", metavar="FILE")
    _add_tenant(clear, "whose outputs are forgotten (default: all)", default=None)
    clear.set_defaults(run=_clear)


def _add_tenant(parser: argparse.ArgumentParser, what: str, default: str | None) -> None:
    parser.add_argument(
        "--tenant", metavar="SALT", default=default, help=f"the cache_salt of the requests {what}"
    )
    parser.add_argument(
        "--api-key",
        dest="api_keys",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY",
        help="the API keys with which these requests reach `forerun serve`",
    )


def _tenants(options: argparse.Namespace) -> list[str]:
    """The tenants that --tenant and --api-key name together."""
    from forerun.server.tenants import tenant_of, tenant_of_key

    keys = [tenant_of_key(key) for key in options.api_keys]
    return [tenant_of(key, options.tenant) for key in keys or [""]]


def _add(options: argparse.Namespace) -> int:
    from forerun.checkpoints.loading import refuse_drafter, resolve_model
    from forerun.checkpoints.model_identity import identify
    from forerun.engine.memory_file import MemoryFile
    from forerun.text.tokenizer import Tokenizer

    directory = resolve_model(options.model, revision=options.revision)
    refuse_drafter(directory)
    tokenizer = Tokenizer(Path(options.tokenizer or directory))
    texts = _texts(Path(options.texts))
    tenants = _tenants(options)
    num_added = 0
    file = MemoryFile(Path(options.file), identify(options.model, directory))
    try:
        while batch := list(itertools.islice(texts, _BATCH)):
            encoded = [_tokens(tokenizer, text) for text in batch]
            file.add((tenant, tokens) for tenant in tenants for tokens in encoded)
            num_added += len(batch)
        num_kept = sum(tenant.num_outputs for tenant in file.summaries())
    finally:
        file.close()
    print(f"{num_added} texts added; {options.file} holds {num_kept} outputs")
    return 0


def _texts(path: Path) -> Iterator[str]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        expected = f"a file that can be read ({error.strerror})"
        raise InvalidArgumentError("texts", str(path), expected) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        entry = parse_json(line, where, "a line of JSON", InvalidArgumentError)
        match entry:
            case (str() as text) | {"text": str() as text}:
                yield text
            case _:
                raise InvalidArgumentError(where, entry, 'a JSON string or an object with a "text"')


def _tokens(tokenizer: Tokenizer, text: str) -> bytes:
    import numpy as np

    ids = tokenizer.encode(text, add_special_tokens=False)
    return np.asarray(ids, dtype="<i4").tobytes()


def _show(options: argparse.Namespace) -> int:
    from forerun.engine.memory_file import MemoryFile

    file = MemoryFile(Path(options.file))
    try:
        tenants = file.summaries()
    finally:
        file.close()
    total = sum(tenant.num_outputs for tenant in tenants)
    num_tokens = sum(tenant.num_tokens for tenant in tenants)
    print(f"model: {file.identity.name} (weights {file.identity.fingerprint[:8]})")
    print(f"{total} outputs of {num_tokens} tokens; at most {file.max_outputs} outputs are kept")
    for tenant in tenants:
        last = datetime.fromtimestamp(tenant.last_use / 1e6, timezone.utc)
        name = f"tenant {tenant.tenant!r}" if tenant.tenant else "without a tenant"
        print(
            f"  {name}: {tenant.num_outputs} outputs of {tenant.num_tokens} tokens, the newest of "
            f"{last:%Y-%m-%d %H:%M} UTC"
        )
    return 0


def _clear(options: argparse.Namespace) -> int:
    from forerun.engine.memory_file import MemoryFile

    file = MemoryFile(Path(options.file))
    try:
        if options.tenant is None and not options.api_keys:
            count = file.clear()
        else:
            # A key without a salt: all that was kept of it.
            count = sum(
                file.clear(tenant, with_parts=options.tenant is None)
                for tenant in _tenants(options)
            )
    finally:
        file.close()
    print(f"{count} outputs forgotten")
    return 0
