"""Mutated files of every kind, loaded as their users load them, in processes that may die.

Each case is a function of its number: a valid model, drafter or GGUF file is copied, one of its
files is changed (a value of its JSON, a field of its header, an opcode of its pickle, some bytes,
or the file as a whole), and LLM, inspect or convert read it, or LLM as a drafter. Anything but
success or an error of Forerun's own is a finding: another exception, a hang, a crash.

    python tests/python/file_fuzzer.py --first 0 --cases 10000 --findings findings.txt
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 30  # of a case, on a machine that does other things too
BYTES = 6 << 30  # of address space

Rng = random.Random
NASTY: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        7,
        2**16,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**63,
        2**64,
        2**200,
    ),
    *(0.0, -0.5, 1e-320, 1e38, 1e308, float("nan"), float("inf"), 1e400),
    *("", "x", "0", "\x00", "../x", "llama", "eagle3", "\ud83d", "x" * 5000, "{{ x", "model"),
    *([], {}, [[]], [None], {"a": 1}, [1, 2, 3], ["a"], [-1], [2**40], [{}], {"": {}}),
]
NUMBERS = [
    0,
    1,
    2,
    8,
    31,
    255,
    2**16,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
]


def change_bytes(data: bytes, rng: Rng, near: int | None = None) -> bytes:
    """Flips, cuts, repeats or overwrites with numbers; `near` ends the interesting part."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = max(1, min(len(out), near or len(out)))
        at = rng.randrange(end)
        how = rng.randrange(7)
        if how == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif how == 1:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 2:
            del out[at : at + rng.randrange(1, 17)]
        elif how == 3:
            del out[at:]
        elif how == 4:
            out[at:at] = out[at : at + rng.randrange(1, 65)]
        elif how == 5:
            part = struct.pack("<Q", rng.choice(NUMBERS))[: rng.choice((1, 2, 4, 8))]
            out[at : at + len(part)] = part
        else:
            out[at : at + 4] = rng.randbytes(4)
    return bytes(out)


def change_value(value: Any, rng: Rng) -> Any:
    """The value with one of its parts replaced, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if rng.random() < 0.05:
            return {**value, rng.choice(("", "x" * 300, "dtype", "model", "\ud83d")): value[key]}
        return {**value, key: change_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], change_value(value[at], rng), *value[at + 1 :]]
    return rng.choice(NASTY)


def change_json(data: bytes, rng: Rng) -> bytes:
    how = rng.randrange(10)
    if how < 7:
        value = json.loads(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = change_value(value, rng)
        return json.dumps(value).encode()
    if how == 7:
        depth = rng.choice((60, 129, 1000, 200_000))
        deep = (
            (b"[" * depth + b"]" * depth)
            if rng.random() < 0.5
            else b'{"a":' * depth + b"1" + b"}" * depth
        )
        return b'{"ignored": ' + deep + b", " + data.lstrip()[1:]
    if how == 8:
        return rng.choice(
            (b"", b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), b"\xff" + data)
        )
    return change_bytes(data, rng)


def change_safetensors(data: bytes, rng: Rng) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if rng.random() < 0.4:
        return change_bytes(data, rng, near=8 + length)
    header = change_json(data[8 : 8 + length], rng)
    body = data[8 + length :]
    if rng.random() < 0.1:
        body = change_bytes(body, rng)
    return len(header).to_bytes(8, "little") + header + body


def change_pickle(data: bytes, rng: Rng) -> bytes:
    if rng.random() < 0.2:
        return change_bytes(data, rng)
    with tempfile.TemporaryFile() as old, tempfile.TemporaryFile() as new:
        old.write(data)
        with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith("/data.pkl"):
                    content = change_program(content, rng)
                elif rng.random() < 0.03:
                    content = change_bytes(content, rng)
                target.writestr(entry.filename, content)
        new.seek(0)
        return new.read()


def change_program(data: bytes, rng: Rng) -> bytes:
    how = rng.randrange(5)
    if how == 0:
        return pickle.dumps(rng.choice(NASTY), rng.randrange(6))
    if how < 3:
        return change_bytes(data, rng)
    pieces = [
        b"}b",
        b"0",
        b"2",
        b"R",
        b"b",
        b"s",
        b"h\x00",
        b"K\xff",
        b")\x81",
        b"cos\nsystem\n",
        b"\x86q\x01",
    ]
    at = rng.randrange(len(data))
    return data[:at] + b"".join(rng.choices(pieces, k=rng.randrange(1, 5))) + data[at:]


def change_gguf(data: bytes, rng: Rng) -> bytes:
    return change_bytes(data, rng, near=rng.choice((64, 2000, 12_000)))


CHANGES: dict[str, Callable[[bytes, Rng], bytes]] = {
    ".json": change_json,
    ".safetensors": change_safetensors,
    ".bin": change_pickle,
    ".pt": change_pickle,
    ".gguf": change_gguf,
    ".jinja": change_bytes,
}


def change_file(path: Path, rng: Rng) -> None:
    """Changes the content, or seldom the file as a whole."""
    data = path.read_bytes()
    if rng.random() < 0.95:
        try:
            changed = CHANGES[path.suffix](data, rng)
        except Exception:  # it was changed before, and is whole no more
            changed = change_bytes(data, rng)
        path.write_bytes(changed)
        return
    how = rng.randrange(6)
    path.unlink()
    if how == 0:
        path.mkdir()
    elif how == 1:
        path.symlink_to(path.name)
    elif how == 2:
        os.mkfifo(path)
    elif how == 3:
        path.symlink_to("/dev/zero")
    elif how == 4:
        path.with_name("other" + path.suffix).write_bytes(data)


def write_bases(folder: Path) -> None:
    """Small valid files of every kind, by the way each is loaded."""

    import gguf
    from drafter_checkpoints import (
        Random,
        add_mtp,
        make_eagle,
        make_eagle3,
        make_medusa,
        make_mlp_speculator,
        make_speculators,
        make_target,
    )
    from gguf_files import llama_metadata, write_gguf
    from quantized_layers import awq, compressed, gptq, quantize_model

    make_target().checkpoint.write(folder / "plain")
    for name, options in {"one": {}, "shards": {"num_files": 2}}.items():
        made = make_target().checkpoint.stored_as(**options)
        add_texts(made.write(folder / f"model {name}"))
    made = make_target()
    write_pickle_model = made.checkpoint.stored_as(file="pytorch_model.bin")
    add_texts(write_pickle_model.write(folder / "model pickled"))
    for write, fields in (
        (gptq, {"group_size": 8}),
        (awq, {"group_size": 32}),
        (compressed, {"group_size": 32, "zero": 8}),
    ):
        to_quantize = make_target().checkpoint.write(folder / f"model {write.__name__}")
        quantize_model(add_texts(to_quantize), write, fields)
    made = make_target("mimo")
    add_mtp(made, "mimo", Random(1))
    made.checkpoint.write(folder / "mtp")
    makers = [make_eagle, make_eagle3, make_speculators, make_medusa, make_mlp_speculator]
    for make in makers:
        name = make.__name__.removeprefix("make_")
        make(make_target(), Random(3)).write(folder / f"drafter {name}")
        pickled = make(make_target(), Random(3)).stored_as(file="head.pt")
        pickled.write(folder / f"drafter {name} pickled")
    size, hidden = 268, 64
    sizes = {
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.block_count": 1,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    shapes = {"token_embd": (size, hidden), "output_norm": (hidden,)}
    layer = {
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
        "attn_q": (64, hidden),
        "attn_k": (32, hidden),
    }
    layer |= {"attn_v": (32, hidden), "attn_output": (hidden, 64), "ffn_gate": (64, hidden)}
    layer |= {"ffn_up": (64, hidden), "ffn_down": (hidden, 64)}
    shapes |= {f"blk.0.{name}": shape for name, shape in layer.items()}
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    kinds = {"blk.0.ffn_up.weight": "Q8_0", "blk.0.ffn_down.weight": "Q4_1"}
    types = {name: gguf.GGMLQuantizationType[kind] for name, kind in kinds.items()}
    for name, type_ in types.items():
        tensors[name] = gguf.quantize(tensors[name], type_)
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf" / "tiny.gguf", llama_metadata() | sizes, tensors, types)


def add_texts(directory: Path) -> Path:
    """A tokenizer of 64 tokens and what else is read beside a model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:62]
    vocab = {token: index for index, token in enumerate([*alphabet, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {"62": {"content": "<s>", "special": True}, "63": {"content": "</s>", "special": True}}
    for name, value in {
        "generation_config": {"eos_token_id": [63], "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        "tokenizer_config": {
            "bos_token": "<s>",
            "eos_token": {"content": "</s>", "special": True},
            "added_tokens_decoder": added,
            "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
        },
        "special_tokens_map": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"},
        "added_tokens": {"<s>": 62},
    }.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    return directory


def load(base: str, path: Path, plain: Path, rng: Rng) -> None:
    """What a user does with such a directory."""
    from forerun import LLM, SamplingParams
    from forerun.checkpoints.convert import convert
    from forerun.checkpoints.inspection import inspect

    options: dict[str, Any] = {
        "num_threads": 1,
        "max_num_seqs": 2,
        "max_model_len": rng.choice((None, 64)),
        "kv_cache_memory_bytes": 1 << 22,
    }
    params = SamplingParams(max_tokens=4, temperature=0)
    if base == "gguf":
        file = path / "tiny.gguf"
        if rng.random() < 0.5:
            convert(file, path / "out", progress=False)
        elif rng.random() < 0.3:
            inspect(file)
        LLM(file, **options).generate(["hi"], use_tqdm=False, sampling_params=params)
        return
    if rng.random() < 0.3:
        inspect(path)
    if base.startswith("drafter"):
        method = rng.choice((None, None, base.split()[1]))
        config = {"model": path, "method": method}
        llm = LLM(plain, speculative_config=config, skip_tokenizer_init=True, **options)
        llm.generate([[1, 2, 3]], params, use_tqdm=False)
        return
    speculative: dict[str, Any] | None = {"method": "mtp"} if base == "mtp" else None
    if base.startswith("model") and rng.random() < 0.2:
        speculative = {"model": path, "method": "draft_model"}
    skip = base in ("mtp", "plain")
    llm = LLM(path, speculative_config=speculative, skip_tokenizer_init=skip, **options)
    llm.generate([[1, 2, 3]] if skip else ["!#", [1, 2]], params, use_tqdm=False)
    if not skip:
        llm.generate(["%"], llm.get_default_sampling_params(), use_tqdm=False)
        llm.chat([{"role": "user", "content": "#"}], params, use_tqdm=False)


def run_case(number: int, bases: Path, scratch: Path) -> None:
    """One case; whatever it raises but errors of Forerun's is a finding."""
    from forerun import ForerunError

    rng = Rng(number)
    names = sorted(path.name for path in bases.iterdir())
    # Kinds of files count alike, however many drafters there are.
    weights = [4 if name == "gguf" or name.startswith("model") else 1 for name in names]
    [base] = rng.choices(names, weights)
    path = scratch / "case"
    shutil.copytree(bases / base, path)
    try:
        files = sorted(path.iterdir())
        for _ in range(rng.choice((1, 1, 1, 2))):
            file = rng.choice(files)
            if file.is_file() and not file.is_symlink():
                change_file(file, rng)
        load(base, path, bases / "plain", rng)
    except ForerunError as error:
        if "\n" in error.field:
            raise AssertionError(f"{error.field!r} is no name") from error
    except MemoryError as error:
        if str(error) in ("", "std::bad_alloc"):  # no name of what was too large
            raise
    finally:
        shutil.rmtree(path, ignore_errors=True)
        shutil.rmtree(scratch / "cache", ignore_errors=True)


def work(first: int, last: int, bases: Path, state: Path, findings: Path) -> None:
    """Runs cases until one kills the process; `state` has the number of the case that runs."""
    import logging
    import warnings

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FORERUN_CACHE"] = str(Path(scratch) / "cache")
        for number in range(first, last):
            state.write_text(f"{number}")
            signal.alarm(SECONDS)  # ends the process, as a hang in C++ should
            try:
                run_case(number, bases, Path(scratch))
            except BaseException:
                with findings.open("a") as file:
                    file.write(f"case {number}: {traceback.format_exc()}\n")
        signal.alarm(0)
    state.write_text(f"{last}")


def fuzz(first: int, cases: int, findings: Path) -> list[str]:
    """Runs cases in a process that is replaced when it dies; returns what was found."""
    findings.write_text("")
    with tempfile.TemporaryDirectory() as folder:
        bases, state = Path(folder) / "bases", Path(folder) / "state"
        bases.mkdir()
        write_bases(bases)
        number, last = first, first + cases
        while number < last:
            state.write_text(f"{number}")
            context = multiprocessing.get_context("spawn")
            process = context.Process(target=work, args=(number, last, bases, state, findings))
            process.start()
            process.join()
            ended = int(state.read_text())
            if ended < last:
                reason = f"ended by signal {-(process.exitcode or 0)}"
                with findings.open("a") as file:
                    file.write(f"case {ended}: {reason}\n")
                number = ended + 1
            else:
                number = last
    return [line for line in findings.read_text().splitlines() if line.startswith("case ")]


def main() -> int:
    """The cases of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--findings", type=Path, default=Path("findings.txt"))
    options = parser.parse_args()
    found = fuzz(options.first, options.cases, options.findings)
    print(f"{options.cases} cases, {len(found)} findings in {options.findings}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
