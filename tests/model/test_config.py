"""config.json: the published ones, the refusal of other architectures by key, and whatever else may stand there."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.model.making import config_json, published, write_model, write_shard

from dsv4.config.directory import MAX_JSON_BYTES, parse_json, resolve_model
from dsv4.config.model import ModelConfig, RopeScaling
from dsv4.errors import CheckpointError, UnsupportedModel

ABSENT = object()


def changed(key: str, value: object, raw: dict[str, object] | None = None) -> dict[str, object]:
    """A small config with one key ("a.b" is nested) set, or removed."""
    raw = config_json() if raw is None else json.loads(json.dumps(raw))
    inner, _, last = key.rpartition(".")
    section = raw
    for name in inner.split(".") if inner else ():
        nested = section[name]
        assert isinstance(nested, dict)
        section = nested
    if value is ABSENT:
        del section[last]
    else:
        section[last] = value
    return raw


@pytest.mark.parametrize(
    ("name", "hidden", "ratios", "draft", "generation"),
    [
        ("V4-Flash.config", 4096, (0, 0, *(4, 128) * 20, 4), "none", "preview"),
        ("V4-Pro.config", 7168, (128, 128, *(4, 128) * 29, 4), "none", "preview"),
        ("V4-Flash-0731", 4096, (0, 0, *(4, 128) * 20, 4), "dspark", "0731"),
        ("V4-Pro-0813", 7168, (128, 128, *(4, 128) * 29, 4), "dspark", "0731"),
    ],
)
def test_published_configs_are_read(
    name: str, hidden: int, ratios: tuple[int, ...], draft: str, generation: str
) -> None:
    config = ModelConfig.parse(published(name))
    assert (config.hidden_size, config.compress_ratios) == (hidden, ratios)
    assert (config.draft, config.generation, config.num_mtp_layers) == (draft, generation, 0)
    assert config.rope_scaling == RopeScaling(
        factor=16.0, beta_fast=32.0, beta_slow=1.0, original_max_position_embeddings=65536
    )
    assert (config.rope_theta, config.compress_rope_theta) == (10000.0, 160000.0)
    if config.dspark is not None:
        last = config.num_hidden_layers - 1
        assert config.dspark.target_layer_ids == (last - 2, last - 1, last)
        assert (config.dspark.num_stages, config.dspark.block_size) == (3, 5)
        assert config.dspark.markov_rank == (256 if hidden == 4096 else 512)


def test_v41_is_refused_by_its_model_type() -> None:
    with pytest.raises(UnsupportedModel, match=r"model_type is 'deepseek_v41_text': DeepSeek-V4\.1 is a different"):
        ModelConfig.parse(published("V4.1-Flash"))


@pytest.mark.parametrize(
    "key",
    ["kv_source_layer_ids", "index_source_layer_ids", "candidate_source_layer_id", "candidate_topk_blocks",
     "candidate_block_size", "engram_layer_ids", "engram_head_dim", "dspark_n_routed_experts"],
)  # fmt: skip
def test_each_key_of_v41_alone_is_refused_by_name(key: str) -> None:
    value = published("V4.1-Flash")[key]
    with pytest.raises(UnsupportedModel, match=rf"{key} is .*V4\.1 is a different architecture.*V4-Flash-0731"):
        ModelConfig.parse(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model_type", "deepseek_v41", "model_type"),
        ("model_type", "deepseek_v3", "model_type"),
        ("model_type", ABSENT, "model_type"),
        ("text_config", {"model_type": "deepseek_v41_text"}, r"text_config\.model_type"),
        ("architectures", ["DeepseekV41ForCausalLM"], "architectures"),
        ("architectures", ["DeepseekV4ForConditionalGeneration"], "architectures"),
        ("architectures", ABSENT, "architectures"),
        ("vision_config", {"depth": 32}, "vision_config"),
        ("image_token_id", 7, "image_token_id"),
        ("compress_ratios", [0, 2, 128, 4, 0], r"compress_ratios\[1\] is 2"),
        ("compress_ratios", [0, 4, 128, 1, 0], r"compress_ratios\[3\] is 1"),
        ("compress_ratios", [0, 4, 128, -4, 0], r"compress_ratios\[3\] is -4"),
        ("quantization_config.weight_block_size", [32, 32], r"weight_block_size is \[32, 32\].*V4\.1"),
        ("quantization_config.quant_method", "awq", r"quant_method"),
        ("quantization_config.activation_scheme", "static", r"activation_scheme"),
        ("quantization_config", "fp8", "quantization_config"),
        ("scoring_func", "sigmoid", "scoring_func"),
        ("topk_method", "greedy", "topk_method"),
        ("norm_topk_prob", False, "norm_topk_prob"),
        ("hidden_act", "gelu", "hidden_act"),
        ("n_shared_experts", 2, "n_shared_experts"),
        ("num_key_value_heads", 8, "num_key_value_heads"),
        ("attention_bias", True, "attention_bias"),
        ("tie_word_embeddings", True, "tie_word_embeddings"),
        ("n_group", 8, "n_group"),
        ("rope_scaling.type", "linear", r"rope_scaling\.type"),
        ("rope_scaling.attention_factor", 1.277, r"attention_factor"),
        ("rope_scaling.mscale", 0.707, r"mscale"),
        ("first_k_dense_replace", 3, "first_k_dense_replace"),
        ("layer_scale_init", 0.1, "layer_scale_init"),
    ],
)
def test_another_architecture_is_refused_by_the_offending_key(key: str, value: object, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        ModelConfig.parse(changed(key, value))


@pytest.mark.parametrize(
    ("key", "value"),
    [("first_k_dense_replace", 0), ("vocab_padding", None), ("use_mla", False), ("_name_or_path", "x"),
     ("quantization_config", None), ("expert_dtype", "anything"), ("num_nextn_predict_layers", 3),
     ("rope_scaling.attention_factor", 1.0)],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(key: str, value: object) -> None:
    assert ModelConfig.parse(changed(key, value)) == ModelConfig.parse(config_json())


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("hidden_size", ABSENT, "hidden_size is missing"),
        ("hidden_size", "64", "hidden_size is '64', not an integer"),
        ("hidden_size", 64.0, r"hidden_size is 64\.0, not an integer"),
        ("hidden_size", True, "hidden_size is True, not an integer"),
        ("hidden_size", 0, "hidden_size is 0; it must lie in"),
        ("hidden_size", -64, "hidden_size is -64"),
        ("hidden_size", 1 << 40, "hidden_size is 1099511627776"),
        ("rms_norm_eps", 0, "rms_norm_eps is 0; it must lie in"),
        ("rms_norm_eps", "1e-6", "not a number"),
        ("routed_scaling_factor", -1.5, "routed_scaling_factor"),
        ("compress_ratios", ABSENT, "compress_ratios is missing"),
        ("compress_ratios", 4, "compress_ratios is 4, not a list"),
        ("compress_ratios", [0, 4, 128], r"compress_ratios has 3 entries; 4 layers need 4, 5 or 7"),
        ("compress_ratios", [0, 4, 128, 4, 0, 0], r"compress_ratios has 6 entries"),
        ("compress_ratios", [0, 4, 128, 4, 4], r"compress_ratios ends in \[4\]"),
        ("compress_ratios", [0, 4.0, 128, 4, 0], r"compress_ratios\[1\] is 4\.0"),
        ("num_attention_heads", 5, "num_attention_heads is 5, which o_groups 2 does not divide"),
        ("num_experts_per_tok", 9, "num_experts_per_tok is 9 of n_routed_experts 8"),
        ("num_hash_layers", 5, "num_hash_layers is 5 of num_hidden_layers 4"),
        ("n_routed_experts", 1 << 16, "n_routed_experts is 65536 in 4 layers; at most 131072"),
        ("index_head_dim", 96, "index_head_dim is 96; it must be a power of two"),
        ("qk_rope_head_dim", 63, "qk_rope_head_dim is 63"),
        ("qk_rope_head_dim", 128, "leaves 0 of head_dim 128"),
        ("eos_token_id", 96, "eos_token_id is 96, outside vocab_size 96"),
        ("eos_token_id", [1, 2], "eos_token_id"),
        ("rope_scaling", ABSENT, "rope_scaling is missing"),
        ("rope_scaling", [], "rope_scaling is .*not an object"),
        ("rope_scaling.factor", ABSENT, "rope_scaling: factor is missing"),
        ("rope_scaling.beta_slow", 64, "beta_slow is 64, above beta_fast 32"),
        ("dspark_block_size", 5, "dspark_target_layer_ids is missing"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_key(key: str, value: object, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem) as caught:
        ModelConfig.parse(changed(key, value))
    assert not isinstance(caught.value, UnsupportedModel)


def test_no_value_of_any_key_raises_anything_but_checkpoint_error() -> None:
    nasty: list[object] = [None, True, False, -1, 0, 1, 3, 2**31, 2**70, -0.5, 1e300, "", "x" * 500, [], [[]], [None],
                           {}, {"a": {}}, [0, 4, 128, 4, True], ["DeepseekV4ForCausalLM", 1]]  # fmt: skip
    raw = changed("compress_ratios", [0, 4, 128, 4, 0, 0, 0], published("V4-Flash-0731") | config_json())
    raw["dspark_target_layer_ids"] = [1, 2, 3]
    raw["dspark_noise_token_id"] = 9
    assert ModelConfig.parse(raw).draft == "dspark"
    refusals = []
    for key in raw:
        for value in nasty:
            try:
                ModelConfig.parse(changed(key, value, raw))
            except CheckpointError as error:
                refusals.append(str(error))
    assert len(refusals) > 500
    assert max(map(len, refusals)) < 900


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "holds a JSON list"),
        (b'"x"', "holds a JSON str"),
        (b"null", "holds a JSON NoneType"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "contains NaN"),
        (b'{"a": -Infinity}', "contains -Infinity"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
    ],
    ids=[
        "empty",
        "open",
        "list",
        "string",
        "null",
        "latin1",
        "nan",
        "infinity",
        "twice",
        "deep",
        "deep_list",
        "digits",
    ],
)
def test_a_broken_config_file_is_a_checkpoint_error(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        ModelConfig.load(tmp_path)


def test_random_damage_to_a_config_file_is_a_checkpoint_error_or_harmless() -> None:
    seed = 20260
    rng = random.Random(seed)
    good = json.dumps(config_json()).encode()
    refused = 0
    for _ in range(2000):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            ModelConfig.parse(parse_json(bytes(damaged), "config.json"))
        except CheckpointError:
            refused += 1
    assert refused > 1000, (seed, refused)


def test_a_model_directory_that_is_not_one_is_named_with_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "DeepSeek-V4-Flash").mkdir()
    (tmp_path / "DeepSeek-V4-Flash" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"does not exist; beside it: DeepSeek-V4-Flash"):
        resolve_model(str(tmp_path / "DeepSeek-V4-Flahs"))
    with pytest.raises(CheckpointError, match=r"no config\.json; did you mean one of its folders: DeepSeek-V4-Flash"):
        resolve_model(str(tmp_path))
    with pytest.raises(CheckpointError, match="is a file, not a directory"):
        resolve_model(str(tmp_path / "DeepSeek-V4-Flash" / "config.json"))
    for impossible in ("", "\0", "x" * 5000, "~nobody-of-this-name/model"):
        with pytest.raises(CheckpointError):
            resolve_model(impossible)
    assert resolve_model(str(tmp_path / "DeepSeek-V4-Flash")) == tmp_path / "DeepSeek-V4-Flash"


def test_a_huge_config_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match="bytes; at most"):
        ModelConfig.load(tmp_path)


def test_a_config_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere.json").write_text(json.dumps(config_json()))
    (tmp_path / "model" / "config.json").symlink_to("../elsewhere.json")
    with pytest.raises(CheckpointError, match="outside the model directory"):
        ModelConfig.load(tmp_path / "model")


def test_the_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0123").write_text(json.dumps(config_json()))
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    assert ModelConfig.load(snapshot) == ModelConfig.parse(config_json())


@pytest.mark.parametrize("index", [True, False])
def test_mtp_is_detected_from_the_tensors_and_not_from_the_config(tmp_path: Path, index: bool) -> None:
    write_model(tmp_path, config_json(num_nextn_predict_layers=0), "official", num_mtp=1)
    if not index:
        (tmp_path / "model.safetensors.index.json").unlink()
    config = ModelConfig.load(tmp_path)
    assert (config.draft, config.num_mtp_layers) == ("mtp", 1)


def test_a_directory_with_a_config_alone_has_no_draft(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    assert ModelConfig.load(tmp_path).draft == "none"


def test_mtp_blocks_with_a_gap_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    write_shard(tmp_path / "model.safetensors", {"mtp.1.e_proj.weight": entry}, b"0000")
    with pytest.raises(CheckpointError, match=r"numbered \[1\]"):
        ModelConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("encoder", "generation"),
    [
        ('DEFAULT_REASONING_EFFORT = "low"\nEFFORTS = {"low": "", "high": "a", "max": "b"}\n', "0731"),
        ("DEFAULT_REASONING_EFFORT: str = 'low'\nEFFORTS = {'low': '', 'high': 'a', 'max': 'b'}\n", "0731"),
        ('REASONING_EFFORT_MAX = "Reasoning Effort: ..."\nassert effort in ["max", None, "high"]\n', "preview"),
        (None, "preview"),
    ],
)
def test_the_generation_is_that_of_the_encoder_beside_the_weights(
    tmp_path: Path, encoder: str | None, generation: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    if encoder is not None:
        (tmp_path / "encoding").mkdir()
        (tmp_path / "encoding" / "encoding_dsv4.py").write_text(encoder)
    assert ModelConfig.load(tmp_path).generation == generation
    assert ModelConfig.load(tmp_path, generation="0731").generation == "0731"
    assert ModelConfig.load(tmp_path, generation="preview").generation == "preview"


@pytest.mark.filterwarnings("ignore")
def test_a_config_saved_by_transformers_keeps_its_yarn(tmp_path: Path) -> None:
    from transformers import DeepseekV4Config

    for name in ("V4-Flash.config", "V4-Pro.config"):
        DeepseekV4Config(**published(name)).save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert "rope_scaling" not in saved
        assert "compress_ratios" not in saved
        assert ModelConfig.parse(saved) == ModelConfig.parse(published(name))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("rope_parameters.compress", ABSENT, "rope_parameters: compress is missing"),
        ("rope_parameters.compress.rope_type", "default", "compressed layers use 'yarn'"),
        ("rope_parameters.compress.factor", ABSENT, "factor is missing"),
        ("rope_parameters.compress.attention_factor", 1.277, "no attention factor"),
        ("rope_parameters.main.rope_type", "yarn", "window layers are never scaled"),
        ("rope_parameters", ABSENT, "is missing"),
        ("rope_theta", 5e5, "10000 here and 500000.0 outside"),
        ("compress_rates", {"compressed_sparse_attention": 2, "heavily_compressed_attention": 128}, "is 2"),
        ("layer_types", ["sliding_attention", "full_attention"], "full_attention is missing"),
        ("mlp_layer_types", ["moe", "hash_moe"], "mlp_layer_types must be"),
    ],
)
def test_a_config_saved_by_transformers_is_never_read_without_yarn(key: str, value: object, problem: str) -> None:
    from transformers import DeepseekV4Config

    saved = json.loads(DeepseekV4Config(**published("V4-Flash.config")).to_json_string())
    if key.startswith("rope_parameters.compress.rope_type"):
        del saved["rope_parameters"]["compress"]["type"]
    with pytest.raises(CheckpointError, match=problem):
        ModelConfig.parse(changed(key, value, saved))
