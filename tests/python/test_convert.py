"""`forerun convert` against what transformers makes of the same GGUF files."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from corpus import TEXTS
from gguf_files import llama_metadata, llama_tensors, write_gguf
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from forerun.checkpoints.convert import convert
from forerun.checkpoints.convert.weights import round_to_bf16
from forerun.errors import CheckpointError, InvalidArgumentError

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and gguf's own


@pytest.fixture(autouse=True)
def _read_each_gguf_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """gguf's reader, which transformers calls many times, takes long over a vocabulary."""
    monkeypatch.setattr(gguf, "GGUFReader", cached_reader)


cached_reader = functools.lru_cache(maxsize=1)(gguf.GGUFReader)


@functools.lru_cache(maxsize=1)
def transformers_config(path: Path) -> Any:
    return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def transformers_tensors(path: Path) -> dict[str, torch.Tensor]:
    config = transformers_config(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    return loaded["tensors"]


def assert_same_tensors(gguf_path: Path, directory: Path) -> None:
    expected = transformers_tensors(gguf_path)
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(expected)
        for name, tensor in expected.items():
            ours = file.get_tensor(name)
            assert ours.dtype == torch.bfloat16
            assert torch.equal(ours, tensor.to(torch.bfloat16)), name


def assert_same_config(gguf_path: Path, directory: Path) -> None:
    expected = transformers_config(gguf_path).to_dict()
    ours = AutoConfig.from_pretrained(directory).to_dict()
    # A GGUF says nothing of these, and stores the epsilon as the nearest float32.
    for name in ("_model_name_or_path", "_name_or_path", "architectures", "dtype", "unk_token_id"):
        expected.pop(name, None)
        ours.pop(name, None)
    epsilon = expected.pop("rms_norm_eps")
    assert np.float32(ours.pop("rms_norm_eps")) == np.float32(epsilon)
    assert ours == expected


def transformers_tokenizer(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def assert_same_ids(reference: Any, directory: Path, texts: list[str] = TEXTS) -> None:
    ours = Tokenizer.from_file(str(directory / "tokenizer.json"))
    through_transformers = AutoTokenizer.from_pretrained(directory)
    for text in texts:
        expected = reference(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert through_transformers(text)["input_ids"] == expected, text
        assert ours.decode(expected, skip_special_tokens=False) == reference.decode(expected)


def test_smollm_tensors_and_config_equal_those_of_transformers(
    smollm_gguf: Path, smollm_dir: Path
) -> None:
    assert_same_tensors(smollm_gguf, smollm_dir)
    assert_same_config(smollm_gguf, smollm_dir)


def test_gemma_tensors_and_config_equal_those_of_transformers(
    gemma_gguf: Path, gemma_dir: Path
) -> None:
    assert_same_tensors(gemma_gguf, gemma_dir)
    assert_same_config(gemma_gguf, gemma_dir)


def test_smollm_token_ids_equal_those_of_transformers(smollm_gguf: Path, smollm_dir: Path) -> None:
    reference = transformers_tokenizer(smollm_gguf)
    # transformers does not know the pre-tokenizer "smollm" and cuts as GPT-2 does. The model was
    # trained with every digit apart, which shows where a digit follows a run of spaces.
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    assert_same_ids(reference, smollm_dir)


def test_gemma_token_ids_equal_those_of_transformers(gemma_gguf: Path, gemma_dir: Path) -> None:
    assert_same_ids(transformers_tokenizer(gemma_gguf), gemma_dir)


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-2", "default"])
def test_byte_level_token_ids_equal_those_of_transformers(pre: str, tmp_path: Path) -> None:
    metadata = llama_metadata(tokenizer__ggml__pre=pre, tokenizer__ggml__add_bos_token=True)
    path = write_gguf(tmp_path / "tiny.gguf", metadata, llama_tensors())
    directory = convert(path, tmp_path / "out", progress=False)
    texts = [*TEXTS, "<|endoftext|>the low <|end|> the 123 12345    the", "Hello    lowllo"]
    assert_same_ids(transformers_tokenizer(path), directory, texts)


def test_sentencepiece_token_ids_equal_those_of_sentencepiece_and_transformers(
    tmp_path: Path,
) -> None:
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    lines = [line for text in TEXTS for line in text.splitlines() if line.strip()]
    corpus.write_text("\n".join(lines * 3), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "sp"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    size = model.vocab_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(size)
    ]
    metadata = llama_metadata(
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre=None,
        tokenizer__ggml__merges=None,
        tokenizer__ggml__tokens=[model.id_to_piece(i) for i in range(size)],
        tokenizer__ggml__scores=[float(model.get_score(i)) for i in range(size)],
        tokenizer__ggml__token_type=kinds,
        tokenizer__ggml__bos_token_id=model.bos_id(),
        tokenizer__ggml__eos_token_id=model.eos_id(),
        tokenizer__ggml__unknown_token_id=model.unk_id(),
    )
    path = write_gguf(tmp_path / "sp.gguf", metadata, llama_tensors(vocab_size=size))
    directory = convert(path, tmp_path / "out", progress=False)
    assert_same_ids(transformers_tokenizer(path), directory)

    ours = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in TEXTS:
        # transformers, whose way a tokenizer.json follows, puts no second space before a first
        # one, and reads the text of control tokens as those tokens.
        if not text.strip() or text.startswith(" ") or "<s>" in text or "▁" in text:
            continue
        assert ours.encode(text).ids == [model.bos_id(), *model.encode(text)], text


def quantized(kind: gguf.GGMLQuantizationType, values: Any, rng: Any) -> Any:
    """Blocks of the kind: packed from values where gguf can, else random bits with tame scales."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        shape = (values.shape[0], values.shape[1] // block * block_bytes)
        # A byte of 0x2? as the upper half of any float16 scale keeps it small and finite.
        return rng.integers(0x20, 0x30, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "kind",
    [
        "F32",
        "F16",
        "BF16",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "IQ3_S",
    ],
)
def test_every_quantization_unpacks_as_in_transformers(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    type_ = gguf.GGMLQuantizationType[kind]
    tensors: dict[str, Any] = llama_tensors()
    types = {name: type_ for name, values in tensors.items() if values.ndim == 2}
    for name in types:
        tensors[name] = quantized(type_, tensors[name], rng)
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors, types)
    assert_same_tensors(path, convert(path, tmp_path / "out", progress=False))


def test_bf16_rounds_as_torch_does() -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint32) << 16 | 0x8000
    values = np.concatenate([bits, halves]).view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    ours = torch.from_numpy(round_to_bf16(values).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours.isnan(), expected.isnan())
    same = ours.view(torch.int16) == expected.view(torch.int16)
    assert bool((same | expected.isnan()).all())


def test_llama3_rope_scaling_is_recovered_from_its_divisors(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=8,
        head_dim=32,
        rope_parameters={"rope_theta": 500000.0, **scaling},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** (-np.arange(16) / 16)
    tensors = llama_tensors()
    tensors["rope_freqs.weight"] = (plain / scaled.numpy()).astype(np.float32)
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), tensors)
    directory = convert(path, tmp_path / "out", progress=False)
    assert json.loads((directory / "config.json").read_text())["rope_scaling"] == scaling


def test_end_of_turn_tokens_of_the_template_end_generation(tmp_path: Path) -> None:
    metadata = llama_metadata()
    metadata["tokenizer.ggml.tokens"][0] = "<|eot_id|>"
    metadata["tokenizer.chat_template"] = "{{ messages }}<|eot_id|>"
    metadata["general.sampling.temp"] = 0.25
    path = write_gguf(tmp_path / "tiny.gguf", metadata, llama_tensors())
    directory = convert(path, tmp_path / "out", progress=False)
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [267, 0]
    assert generation["temperature"] == 0.25
    assert (directory / "chat_template.jinja").read_text() == "{{ messages }}<|eot_id|>"


BAD_FILES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"llama__attention__sinks": 3}, "llama.attention.sinks: got 3"),
    "experts": ({"llama__expert_count": 8}, "llama.expert_count: got 8"),
    "no layers": ({"llama__block_count": None}, "llama.block_count: got nothing"),
    "zero layers": ({"llama__block_count": 0}, "llama.block_count: got 0"),
    "three layers": ({"llama__block_count": 3}, "block_count: got 3; expected 2"),
    "one layer": ({"llama__block_count": 1}, "block_count: got 1; expected 2"),
    "heads": ({"llama__attention__head_count": 16}, "blk.0.attn_k.weight: shape"),
    "rope": (
        {"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 4.0},
        "longrope",
    ),
    "partial rotary": ({"llama__rope__dimension_count": 16}, "expected 32"),
    "split": ({"split__count": 2}, "split.count: got 2"),
    "pre": ({"tokenizer__ggml__pre": "viking"}, "tokenizer.ggml.pre: got viking; expected one of"),
    "model": ({"tokenizer__ggml__model": "bert"}, "tokenizer.ggml.model: got bert"),
    "merges": ({"tokenizer__ggml__merges": ["q q"]}, "tokenizer.ggml.merges"),
    "no tokens": ({"tokenizer__ggml__tokens": None}, "tokenizer.ggml.tokens: got nothing"),
    "bos": ({"tokenizer__ggml__bos_token_id": 9999}, "bos_token_id: got 9999"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_unsupported_values_are_refused_by_name(case: str, tmp_path: Path) -> None:
    changes, message = BAD_FILES[case]
    path = write_gguf(tmp_path / "bad.gguf", llama_metadata(**changes), llama_tensors())
    with pytest.raises(CheckpointError) as error:
        convert(path, tmp_path / "out", progress=False)
    assert message in str(error.value)
    assert os.listdir(tmp_path) == ["bad.gguf"], "nothing half-made remains"


def test_an_unknown_tensor_is_refused_by_name(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"blk.0.attn_sinks.weight": np.zeros(8, np.float32)}
    path = write_gguf(tmp_path / "bad.gguf", llama_metadata(), tensors)
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_sinks\.weight"):
        convert(path, tmp_path / "out", progress=False)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "bad.gguf", {}, llama_tensors(), arch="mamba")
    with pytest.raises(CheckpointError, match="got mamba; expected one of llama, gemma3"):
        convert(path, tmp_path / "out", progress=False)


def test_a_file_cut_anywhere_is_a_checkpoint_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), llama_tensors()).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [0, 3, 4, 8, 20, 24, 40, 200, 3000, 6000, 8000, len(whole) // 2, len(whole) - 64]:
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            convert(cut, tmp_path / "out", progress=False)


def test_other_files_are_a_checkpoint_error(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    with pytest.raises(CheckpointError, match="no such file"):
        convert(other, tmp_path / "out")
    other.write_bytes(b"PK\x03\x04" * 100)
    with pytest.raises(CheckpointError, match="begins with b'GGUF'"):
        convert(other, tmp_path / "out")
    other.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(CheckpointError, match="version: got 1"):
        convert(other, tmp_path / "out")


def test_an_existing_directory_is_never_overwritten(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama_metadata(), llama_tensors())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InvalidArgumentError, match="a new or empty directory"):
        convert(path, tmp_path / "out", progress=False)
    assert os.listdir(tmp_path / "out") == ["precious"]
