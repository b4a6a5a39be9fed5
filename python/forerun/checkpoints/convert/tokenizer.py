"""GGUF vocabulary -> tokenizer.json, tokenizer_config.json and the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from forerun.checkpoints.convert.reader import GgufFile
from forerun.errors import CheckpointError
from forerun.util.interrupts import pass_on_interrupt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

# How text is cut before merging, by the name a GGUF gives it.
_GPT2 = None  # the pattern built into the byte-level pre-tokenizer
_DIGITS = "digits"  # each digit alone, then as GPT-2
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_MARKS}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_SPLITS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "mpt": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "exaone": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
# Vocabularies with words that no chain of merges reaches; they match whole.
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}
_LONGEST_TOKEN = 4096  # merges are found by cutting tokens everywhere
_BOS_UNLESS_TOLD = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}


def write_tokenizer(file: GgufFile, arch: str, directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and, where present, the chat templates."""
    import json

    tokens: list[str] = file.items("tokenizer.ggml.tokens", str, [])
    if not tokens:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens", "nothing", "a vocabulary")
    if (longest := max(map(len, tokens))) > _LONGEST_TOKEN:
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.tokens",
            f"a token of {longest} characters",
            f"at most {_LONGEST_TOKEN}",
        )
    kind = file.text("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(file, tokens, is_gemma=arch.startswith("gemma"))
    else:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.model", kind, "gpt2 or llama")
    named = _named_tokens(file, tokens)
    _add_tokens(tokenizer, file, tokens, named)
    bos, eos = _adds(file, kind)
    _set_post_processor(tokenizer, named, bos, eos)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)

    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bos,
        "add_eos_token": eos,
        "clean_up_tokenization_spaces": False,
        **named,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    template = file.text("tokenizer.chat_template")
    if template:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = file.text("tokenizer.ggml.pre", "default")
    if name not in _SPLITS:
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.pre", name, f"one of {', '.join(sorted(_SPLITS))}"
        )
    merges = file.items("tokenizer.ggml.merges", str)
    if not merges:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.merges", "nothing", "a list of merges")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.merges", "no space in a merge", "two tokens in each"
        )
    tokenizer = Tokenizer(
        _model(
            file,
            models.BPE,
            vocab={token: index for index, token in enumerate(tokens)},
            merges=pairs,
            fuse_unk=False,
            ignore_merges=name in _WHOLE_WORDS,
        )
    )
    split = _SPLITS[name]
    if split is _GPT2:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif split is _DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str], is_gemma: bool) -> Tokenizer:
    """SentencePiece as BPE with byte fallback: the best-scored pair merges first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    scores: list[float] = file.items("tokenizer.ggml.scores", float, [])
    if is_gemma:
        # Runs of spaces are stored raw, and scores do not follow the order of the merges, which
        # is the order of the vocabulary.
        tokens = ["▁" * len(token) if token.strip(" ") == "" else token for token in tokens]
        scores = [-float(index) for index in range(len(tokens))]
    if len(scores) != len(tokens):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.scores", f"{len(scores)} values", f"{len(tokens)}"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = _named_tokens(file, tokens).get("unk_token")
    tokenizer = Tokenizer(
        _model(
            file,
            models.BPE,
            vocab=vocab,
            merges=_merges_by_score(vocab, dict(zip(tokens, scores, strict=True))),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if is_gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    else:
        prefix = file.flag("tokenizer.ggml.add_space_prefix", True)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement="▁", prepend_scheme="first" if prefix else "never", split=False
        )
        if prefix:
            decoder.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(decoder)
    return tokenizer


def _merges_by_score(vocab: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every way to make a piece from two pieces; best piece first, then the longer left part."""
    merges = []
    for piece, score in scores.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocab and right in vocab:
                merges.append((-score, -cut, cut - len(piece), left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(left, right) for *_, left, right in merges]


def _model(file: GgufFile, make: Any, **arguments: Any) -> Any:
    try:
        return make(**arguments)
    except Exception as error:
        pass_on_interrupt(error)
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.merges", str(error), "merges of tokens in the vocabulary"
        ) from error


def _named_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    """bos_token, eos_token, unk_token and pad_token, where the file names them."""
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {}
    for ours, theirs in keys.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        token = file.integer(key, most=len(tokens) - 1)
        if token is None:
            continue
        named[f"{ours}_token"] = tokens[token]
    return named


def _add_tokens(
    tokenizer: Tokenizer, file: GgufFile, tokens: list[str], named: dict[str, str]
) -> None:
    """Control tokens become special, user-defined ones plain: both are matched whole in text."""
    from tokenizers import AddedToken

    types: list[int] = file.items("tokenizer.ggml.token_type", int, [])
    vocab = tokenizer.get_vocab()
    special, plain = dict.fromkeys(named.values()), []
    for token, token_type in zip(tokens, types, strict=False):
        if token_type == _CONTROL:
            special[token] = None
        elif token_type == _USER_DEFINED and token in vocab and token not in special:
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    tokenizer.add_tokens(plain)


def _adds(file: GgufFile, kind: str) -> tuple[bool, bool]:
    by_default = kind == "llama" or file.text("tokenizer.ggml.pre") in _BOS_UNLESS_TOLD
    bos: bool = file.flag("tokenizer.ggml.add_bos_token", by_default)
    return bos, file.flag("tokenizer.ggml.add_eos_token", False)


def _set_post_processor(
    tokenizer: Tokenizer, named: dict[str, str], add_bos: bool, add_eos: bool
) -> None:
    from tokenizers import processors

    bos, eos = named.get("bos_token"), named.get("eos_token")
    template = ([bos] if add_bos and bos else []) + ["$A"] + ([eos] if add_eos and eos else [])
    if len(template) == 1:
        return
    ids = [(token, tokenizer.token_to_id(token)) for token in template if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(template), pair=None, special_tokens=ids
    )
