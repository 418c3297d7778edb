"""The embedded demo checkpoint: in the official format, of V4's row geometry, made by its script, and runnable."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from scripts.make_demo import CONTROL, make
from tests.model.making import CONFIGS, published
from tests.model.stepping import Planner, make_caches
from tokenizers import Tokenizer

from dsv4.config.directory import DEMO, resolve_model
from dsv4.config.model import ModelConfig
from dsv4.config.shards import read_tensors
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import Numerics

CORPUS = Path(__file__).parents[1] / "data" / "corpus"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelConfig.load(resolve_model("demo"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def test_it_has_v4_row_geometry_and_every_layer_kind(config: ModelConfig) -> None:
    assert (config.head_dim, config.qk_rope_head_dim, config.index_head_dim) == (512, 64, 128)
    assert (config.sliding_window, config.hc_mult) == (128, 4)
    assert set(config.compress_ratios) == {0, 4, 128}
    assert 0 < config.num_hash_layers < config.num_hidden_layers
    assert config.index_n_heads >= 16
    assert config.max_position_embeddings >= 16384
    assert (config.draft, config.num_mtp_layers, config.generation) == ("mtp", 1, "preview")
    assert set(json.loads((DEMO / "config.json").read_text())) <= set(published("V4-Flash.config"))


def test_it_is_at_most_24_megabytes_and_says_that_it_is_not_trained() -> None:
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 24_000_000
    assert "not trained" in (DEMO / "README.md").read_text()


def test_its_shards_are_official_in_names_and_formats(config: ModelConfig) -> None:
    names = sorted(path.name for path in DEMO.glob("*.safetensors"))
    assert names == [f"model-{i:05}-of-00009.safetensors" for i in range(1, 10)]  # embed, 6 layers, head, mtp
    stored = read_tensors(DEMO)
    assert stored["layers.2.attn.wq_a.weight"].dtype == "F8_E4M3"
    assert stored["layers.2.attn.wq_a.scale"].dtype == "F8_E8M0"
    assert stored["layers.2.ffn.experts.0.w1.weight"].dtype == "I8"
    assert stored["layers.0.ffn.gate.tid2eid"].dtype == "I64"
    assert stored["layers.3.attn.wkv.weight"].path.name == "model-00005-of-00009.safetensors"
    counts = Counter(re.sub(r"\d+", "N", name) for name in stored)
    assert counts["layers.N.ffn.experts.N.wN.weight"] == 6 * 16 * 3
    with open_checkpoint(DEMO, config, drafts=True) as source:
        assert source.num_bytes == sum(tensor.num_bytes for tensor in stored.values())


def test_the_script_makes_it(tmp_path: Path) -> None:
    make(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in DEMO.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "README.md"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name
    # What libraries write around the content may change with their versions; the content must not.
    made, kept = (json.loads((path / "tokenizer.json").read_text()) for path in (tmp_path, DEMO))
    for part in ("model", "added_tokens", "pre_tokenizer"):
        assert made[part] == kept[part], part
    config = ModelConfig.load(DEMO)
    with open_checkpoint(tmp_path, config, drafts=True) as new, open_checkpoint(DEMO, config, drafts=True) as old:
        assert list(new.names()) == list(old.names())
        for name in old.names():
            assert torch.equal(new.take(name).view(torch.uint8), old.take(name).view(torch.uint8)), name


def test_control_tokens_are_single_tokens_and_ids_are_v4s_where_they_can_be(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == 4096
    first = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
    assert [tokenizer.token_to_id(text) for text in first] == [0, 1, 2]
    assert [tokenizer.token_to_id(text) for text in CONTROL] == list(range(4096 - len(CONTROL), 4096))
    for text in (*first, *CONTROL):
        encoded = tokenizer.encode(f"a{text}b", add_special_tokens=False)
        assert len(encoded.ids) == 3
        assert encoded.ids[1] == tokenizer.token_to_id(text)
    tags = tokenizer.encode("<｜DSML｜invoke", add_special_tokens=False).tokens
    assert tags[:2] == ["<", "｜DSML｜"]


def test_nothing_is_added_and_every_text_comes_back(tokenizer: Tokenizer) -> None:
    corpus = (CORPUS / "shakespeare-hamlet.txt").read_text()[:20_000]
    texts = (
        "",
        corpus,
        "12345 1234",
        "  two  spaces\n\n\n\ttab \r\n",
        "漢字かなカナ 한국어 עברית हिन्दी",
        "🙂🏳️‍🌈 \u0000\u200d",
        "def f(x): return {'a': [x]}",
        "".join(map(chr, range(0x20, 0x2000))),
    )
    for text in texts:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(tokenizer.encode(corpus).ids) < len(corpus) / 2.8


def test_the_pre_tokeniser_splits_as_deepseeks_does(tokenizer: Tokenizer) -> None:
    def pieces(text: str) -> list[str]:
        return [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    assert pieces("1234567890") == ["123", "456", "789", "0"]
    assert pieces("hello world  ") == ["hello", " world", "  "]
    assert pieces("Hello, world!\n\nNext") == ["Hello", ",", " world", "!\n\n", "Next"]
    assert pieces("x.append(漢字かな)") == ["x", ".append", "(", "漢字かな", ")"]
    assert pieces("a   b") == ["a", "  ", " b"]


def test_its_tokenizer_config_is_the_official_one_but_for_the_context() -> None:
    official = json.loads((CONFIGS / "tokenizer_config.json").read_text())
    ours = json.loads((DEMO / "tokenizer_config.json").read_text())
    assert ours == official | {"model_max_length": 65536}
    generation = json.loads((CONFIGS / "generation_config.json").read_text())
    assert json.loads((DEMO / "generation_config.json").read_text()).items() <= generation.items()


def test_it_runs_and_its_answer_depends_on_the_context(config: ModelConfig, tokenizer: Tokenizer) -> None:
    numerics = Numerics("bfloat16", "fp8_ds_mla", "fp4")
    with open_checkpoint(DEMO, config) as source:
        model = DeepseekV4(config, source, numerics)
    text = (CORPUS / "austen-persuasion.txt").read_text()
    prompt = tokenizer.encode(text[3000:6000]).ids[:700]  # index top-k 128 binds from token 515
    planner = Planner(config.sliding_window, full=8, swa=40, slots=2)
    caches = make_caches(config, numerics, planner)
    logits = model.forward(planner.step([("a", prompt)], sample="all"), caches).logits
    assert bool(logits.isfinite().all())
    assert 2 < float(logits.std(1).mean()) < 3.2
    assert len(set(logits.argmax(1).tolist())) > 300
    other = [*tokenizer.encode(text[9000:10000]).ids[:199], prompt[-1]]
    elsewhere = model.forward(planner.step([("b", other)]), caches).logits[0]
    assert float(torch.corrcoef(torch.stack((logits[-1], elsewhere)))[0, 1]) < 0.95
