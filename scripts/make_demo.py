"""Makes the checkpoint that the package carries: DeepSeek-V4's format and row geometry, small, with its own tokenizer.

    python scripts/make_demo.py            writes python/dsv4/demo
    python scripts/make_demo.py --check    makes it again elsewhere and compares

The weights are random (seeded, the same bytes on every machine); the tokenizer is byte-level BPE, trained on
tests/data/corpus with DeepSeek's pre-tokeniser and control tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dsv4.config.model import ModelConfig
from dsv4.model.dummy import DummySource
from dsv4.model.writing import write_checkpoint

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "python" / "dsv4" / "demo"
CORPUS = ROOT / "tests" / "data" / "corpus"
SEED = 4
VOCAB = 4096
CONTEXT = 65536

# Rows, windows, ratios and block sizes are DeepSeek-V4's; widths and counts are small.
CONFIG = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 256,
    "index_head_dim": 128,
    "index_n_heads": 16,
    "index_topk": 128,
    "initializer_range": 0.02,
    "max_position_embeddings": CONTEXT,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 128,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 6,
    "num_hash_layers": 2,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 2,
    "o_lora_rank": 128,
    "q_lora_rank": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCAB,
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, 4, 128, 4, 128, 0],
}
GENERATION_CONFIG = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
}
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
CONTROL = (
    "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>",
    "<｜action｜>", "<｜query｜>", "<｜authority｜>", "<｜domain｜>",
    "<｜title｜>", "<｜extracted_url｜>", "<｜read_url｜>",
)  # fmt: skip
SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
README = """# The embedded demo checkpoint

A small checkpoint in DeepSeek-V4's official format, which `python -m dsv4.serve demo` serves on any machine. **It is
not trained: its weights are random, and what it writes means nothing.** It is there to run every part of the engine:
window, C4 and C128 layers, hash and score routing, FP8 and MXFP4 weights, an MTP block, rows of 512 with 64 rotated.

The tokenizer is byte-level BPE with DeepSeek's pre-tokeniser and control tokens, 4,096 entries, trained on
public-domain English (tests/data/corpus). Everything here is written by scripts/make_demo.py.
"""


def train_tokenizer() -> Tokenizer:
    """BOS, EOS and PAD are 0, 1, 2; the other control tokens are the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(CONTROL),
        special_tokens=[AddedToken(text, special=True) for text in (BOS, EOS, PAD)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([path.read_text(encoding="utf-8") for path in sorted(CORPUS.glob("*.txt"))], trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    if tokenizer.get_vocab_size() != VOCAB:
        sys.exit(f"the tokenizer has {tokenizer.get_vocab_size()} entries, not {VOCAB}: the corpus is too small")
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Like the official one: no automatic BOS or EOS, padding by EOS."""
    plain = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": plain | {"content": BOS},
        "clean_up_tokenization_spaces": False,
        "eos_token": plain | {"content": EOS},
        "legacy": True,
        "model_max_length": CONTEXT,
        "pad_token": plain | {"content": EOS},
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def make(directory: Path) -> None:
    """Writes the whole checkpoint into an existing directory."""
    config = ModelConfig.parse(CONFIG, num_mtp_layers=1)
    source = DummySource(config, SEED)
    write_checkpoint(directory, config, ((name, source.take(name)) for name in source.names()))
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION_CONFIG),
        ("tokenizer_config.json", tokenizer_config()),
    ):
        (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(train_tokenizer().to_str(pretty=True) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(README, encoding="utf-8")


def difference(made: Path, kept: Path) -> list[str]:
    """Files that are in one directory only, or differ."""
    names = sorted({path.name for directory in (made, kept) for path in directory.iterdir()})
    return [name for name in names if _content(made / name) != _content(kept / name)]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def main() -> None:
    """Writes the demo, or compares it with what this script makes now."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing; status 1 if anything differs")
    if parser.parse_args().check:
        with tempfile.TemporaryDirectory() as made:
            make(Path(made))
            if differing := difference(Path(made), DEMO):
                sys.exit(f"{DEMO} is not what this script makes: {', '.join(differing)}")
        print(f"{DEMO} is what this script makes, byte for byte")
        return
    DEMO.mkdir(exist_ok=True)
    for old in DEMO.iterdir():
        old.unlink()
    make(DEMO)
    print(f"{DEMO}: {sum(path.stat().st_size for path in DEMO.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
