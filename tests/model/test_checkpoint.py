"""Opening a checkpoint: every tensor is accounted for, no file is believed, and what is read is what was written."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.making import (
    FLAVOURS,
    DictSource,
    config_json,
    float_weights,
    published,
    quantise_fp8,
    stored,
    write_model,
    write_shard,
    write_sparse_model,
)
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.config.shards import DTYPE_BITS, INDEX, read_header, read_tensors
from dsv4.errors import CheckpointError
from dsv4.kernels.quant.reference import dequantise_fp8, dequantise_mxfp4
from dsv4.model.checkpoint import CheckpointSource, open_checkpoint
from dsv4.model.progress import Progress
from dsv4.model.schema import Flavour, expected, layout


def reopen(directory: Path, *, drafts: bool = False) -> CheckpointSource:
    return open_checkpoint(directory, ModelConfig.load(directory), drafts=drafts)


def edited(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> str:
    """Rewrites a small checkpoint as one shard without index, with `change` made, and returns the refusal's text."""
    paths = sorted(directory.glob("*.safetensors"))
    tensors = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    config = ModelConfig.load(directory)
    for path in (*paths, directory / INDEX):
        path.unlink()
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory, config)
    return str(caught.value)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_taken_is_what_was_written_bit_for_bit(tmp_path: Path, flavour: Flavour) -> None:
    write_model(tmp_path, config_json(), flavour, seed=3, num_mtp=1)
    written = {n: t for path in tmp_path.glob("*.safetensors") for n, t in load_file(path).items()}
    with reopen(tmp_path, drafts=True) as source:
        names = list(source.names())
        assert set(names) == set(written)
        random.Random(1).shuffle(names)
        for name in names:
            tensor = source.take(name)
            assert tensor.dtype is written[name].dtype, name
            assert torch.equal(tensor.view(torch.uint8), written[name].view(torch.uint8)), name


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_rounded_weights_read_back_within_the_format(flavour: Flavour) -> None:
    config = ModelConfig.parse(config_json(hidden_size=192, moe_intermediate_size=160))
    weights = float_weights(config, seed=5)
    source = DictSource(dict(stored(weights, config, flavour)))
    for name in expected(config):
        tensor, scale = source.take(name), name.removesuffix(".weight") + ".scale"
        if source.has(scale) and tensor.dtype is torch.float8_e4m3fn:
            value, worst = dequantise_fp8(tensor, source.take(scale)), 2.0**-4
        elif source.has(scale):
            value, worst = dequantise_mxfp4(tensor, source.take(scale)), 0.5
        else:
            value, worst = tensor.float(), 2.0**-8
        original = weights[name].float()
        assert value.shape == original.shape, name
        coarse = original.abs().amax() if worst == 0.5 else original.abs()
        assert bool(((value - original).abs() <= worst * coarse + 1e-3 * original.abs().amax()).all()), name


def test_an_fp8_block_gets_the_smallest_power_of_two_that_fits() -> None:
    weight = torch.zeros(130, 129)
    weight[0, 0], weight[129, 0], weight[0, 128], weight[129, 128] = 448.0, 449.0, -7.0, 2.0**-20
    _, exponents = quantise_fp8(weight)
    assert exponents.tolist() == [[127, 121], [128, 105]]  # 448, 2 x 448, 448 / 64, the floor 1e-4


def test_drafts_are_absent_while_drafting_is_off(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "official", num_mtp=1)
    with reopen(tmp_path) as off, reopen(tmp_path, drafts=True) as on:
        assert on.has("mtp.0.e_proj.weight")
        assert not off.has("mtp.0.e_proj.weight")
        assert off.num_bytes < on.num_bytes
        with pytest.raises(CheckpointError, match="no tensor mtp"):
            off.take("mtp.0.e_proj.weight")


def test_a_dspark_checkpoint_serves_its_target_model(tmp_path: Path) -> None:
    raw = config_json(compress_ratios=[0, 4, 128, 4, 0, 0, 0], dspark_block_size=5, dspark_noise_token_id=7,
                      dspark_target_layer_ids=[1, 2, 3], dspark_markov_rank=16)  # fmt: skip
    write_model(tmp_path, raw, "official")
    assert ModelConfig.load(tmp_path).draft == "dspark"
    with reopen(tmp_path) as source:
        assert source.has("layers.3.attn.wkv.weight")
        assert not any(name.startswith("mtp.") for name in source.names())
    text = edited(tmp_path, lambda tensors: tensors.__delitem__("mtp.2.markov_head.markov_w1.weight"))
    assert "missing, 1: mtp.2.markov_head.markov_w1.weight" in text


def test_every_problem_is_listed_by_name_in_one_error(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "official")

    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["layers.0.attn.wkv.weight"]
        del tensors["layers.1.attn.wkv.scale"]
        tensors["layers.1.attn.sinks"] = torch.zeros(4)
        tensors["norm.weight"] = torch.ones(65, dtype=torch.bfloat16)
        tensors["layers.2.attn.wq_a.scale"] = torch.ones(2, 1, dtype=torch.uint8)
        tensors["layers.3.attn.attn_sink"] = torch.zeros(4, dtype=torch.float64)
        tensors["layers.3.ffn.experts.5.w1.scale"] = torch.ones(32, 2)

    text = edited(tmp_path, damage)
    assert "missing, 2: layers.0.attn.wkv.weight, layers.1.attn.wkv.scale (of F8_E4M3 layers.1.attn.wkv.wei" in text
    assert "unexpected, 1: layers.1.attn.sinks" in text
    assert "misshapen, 2: norm.weight is [65], not [64] (BF16), layers.2.attn.wq_a.scale is [2, 1], not [1, 1]" in text
    assert "wrong dtype, 2: layers.3.attn.attn_sink is F64, not F32 or BF16, layers.3.ffn.experts.5.w1.sca" in text


def test_a_long_list_is_cut_and_counted(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "bf16")

    def without_experts(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            del tensors[name]

    text = edited(tmp_path, without_experts)
    assert "missing, 96: layers.0.ffn.experts.0.w1.weight, " in text
    assert "and 76 more" in text
    assert len(text) < 2000


def test_experts_of_two_formats_in_one_block_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "bf16")

    def mix(tensors: dict[str, Tensor]) -> None:
        tensors["layers.1.ffn.experts.2.w3.weight"] = torch.zeros(32, 64).to(torch.float8_e4m3fn)
        tensors["layers.1.ffn.experts.2.w3.scale"] = torch.ones(1, 1)

    assert "layers.1.ffn.experts.2.w3.weight is fp8 among plain experts" in edited(tmp_path, mix)


def test_a_config_of_another_size_lists_what_does_not_fit(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "official")
    with pytest.raises(CheckpointError, match=r"missing, \d+: .*layers\.4\.attn"):
        open_checkpoint(
            tmp_path, ModelConfig.parse(config_json(num_hidden_layers=5, compress_ratios=[0, 4, 128, 4, 0, 0]))
        )
    with pytest.raises(CheckpointError, match=r"unexpected, \d+: layers\.3\.attn"):
        open_checkpoint(tmp_path, ModelConfig.parse(config_json(num_hidden_layers=3, compress_ratios=[0, 4, 128, 0])))
    with pytest.raises(CheckpointError, match=r"misshapen, \d+: embed\.weight is \[96, 64\], not \[97, 64\]"):
        open_checkpoint(tmp_path, ModelConfig.parse(config_json(vocab_size=97)))


def test_int32_tables_and_byte_scales_are_accepted(tmp_path: Path) -> None:
    config = ModelConfig.parse(config_json())
    tensors = dict(stored(float_weights(config), config, "official"))
    for name in list(tensors):
        if name.endswith("tid2eid"):
            tensors[name] = tensors[name].to(torch.int32)
        elif name.endswith(".scale") or ".experts." in name:
            tensors[name] = tensors[name].view(torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path, config) as source:
        assert source.take("layers.0.ffn.gate.tid2eid").dtype is torch.int32
        assert source.take("layers.0.ffn.experts.0.w1.scale").dtype is torch.uint8


def test_f4_experts_are_read_as_bytes(tmp_path: Path) -> None:
    config = ModelConfig.parse(config_json())
    tensors = dict(stored(float_weights(config), config, "official"))
    names = [name for name in tensors if ".experts." in name and name.endswith(".weight")]
    save_file(tensors, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for name in names:
        rows, columns = header[name]["shape"]
        header[name] |= {"dtype": "F4", "shape": [rows, 2 * columns]}
    write_shard(path, header, content[8 + length :])
    with open_checkpoint(tmp_path, config) as source:
        assert torch.equal(source.take(names[0]), tensors[names[0]].view(torch.uint8))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("layers.0.ffn.gate.tid2eid", torch.full((96, 3), 8), r"expert ids 8\.\.8; the model has experts 0\.\.7"),
        ("layers.0.ffn.gate.tid2eid", torch.full((96, 3), -1), r"expert ids -1\.\.-1"),
        ("layers.0.attn.wkv.scale", torch.full((1, 1), 3.0), "no powers of two"),
        ("layers.0.attn.wkv.scale", torch.full((1, 1), float("nan")), "no powers of two"),
        ("layers.0.attn.wkv.scale", torch.full((1, 1), -2.0), "no powers of two"),
        ("layers.0.attn.wkv.scale", torch.full((1, 1), 255, dtype=torch.uint8), "byte 255"),
    ],
)
def test_a_value_that_would_answer_nonsense_is_refused_when_it_is_read(
    tmp_path: Path, name: str, value: Tensor, problem: str
) -> None:
    config = ModelConfig.parse(config_json())
    tensors = dict(stored(float_weights(config), config, "official")) | {name: value}
    save_file(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path, config) as source, pytest.raises(CheckpointError, match=problem):
        source.take(name)


def test_a_truncated_shard_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "official")
    config, path = ModelConfig.load(tmp_path), tmp_path / "model-00003-of-00006.safetensors"
    size = path.stat().st_size
    for keep in (size - 1, size // 2, 100, 8, 3, 0):
        os.truncate(path, keep)
        with pytest.raises(CheckpointError, match=rf"{path.name} is truncated: {keep} bytes"):
            open_checkpoint(tmp_path, config)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of 6 shards: {path.name}"):
        open_checkpoint(tmp_path, config)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 6 shards: number 3"):
        open_checkpoint(tmp_path, config)


def test_a_shard_that_is_cut_after_opening_is_an_error_and_no_crash(tmp_path: Path) -> None:
    write_model(tmp_path, config_json(), "bf16")
    with reopen(tmp_path) as source:
        os.truncate(tmp_path / "model-00001-of-00006.safetensors", 200)
        with pytest.raises(CheckpointError, match=r"ended within embed\.weight"):
            source.take("embed.weight")


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "length", "problem"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, b"0" * 12, None, "b at byte .* overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, b"0" * 12, None, "b at byte .* hole"),
        ({"a": entry(4, 8)}, b"0" * 8, None, "a at byte .* hole"),
        ({"a": entry(0, 4)}, b"0" * 9, None, "bytes that belong to no tensor"),
        ({"a": entry(0, 9)}, b"0" * 4, None, "is truncated"),
        ({"a": entry(0, 1 << 62)}, b"0" * 4, None, "is truncated"),
        ({"a": entry(0, 4, [3])}, b"0" * 4, None, r"lies about its shape: U8 \[3\] needs 3 bytes.* hold 4"),
        ({"a": entry(0, 4, [1 << 40, 1 << 40])}, b"0" * 4, None, "lies about its shape"),
        ({"a": entry(0, 4, [2, -2])}, b"0" * 4, None, "list of sizes"),
        ({"a": entry(0, 4, [4.0])}, b"0" * 4, None, "list of sizes"),  # type: ignore[list-item]
        ({"a": entry(0, 4) | {"shape": "4"}}, b"0" * 4, None, "list of sizes"),
        ({"a": entry(0, 4) | {"data_offsets": [4, 0]}}, b"0" * 4, None, "data_offsets"),
        ({"a": entry(0, 4) | {"data_offsets": [0]}}, b"0" * 4, None, "data_offsets"),
        ({"a": entry(0, 4) | {"dtype": "F8_E3M4"}}, b"0" * 4, None, "has the dtype 'F8_E3M4'"),
        ({"a": entry(0, 4) | {"dtype": ["U8"]}}, b"0" * 4, None, "has the dtype"),
        ({"a": [0, 4]}, b"0" * 4, None, "not dtype, shape and data_offsets"),
        ({"a": {"dtype": "U8"}}, b"0" * 4, None, "not dtype, shape and data_offsets"),
        ([], b"", None, "holds a JSON list"),
        (b"not json", b"", None, "not JSON"),
        (b'{"a": \xff}', b"", None, "not UTF-8"),
        (b'{"a":' * 50_000 + b"0" + b"}" * 50_000, b"", None, "nested too deeply"),
        (b'{"a": {}, "a": {}}', b"", None, "'a' twice"),
        (b"{}", b"", 1 << 40, "truncated"),
        (b"{}", b"", (1 << 64) - 1, "truncated"),
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, header: object, data: bytes, length: int | None, problem: str
) -> None:
    path = tmp_path / "model.safetensors"
    write_shard(path, header, data, length)
    with pytest.raises(CheckpointError, match=problem):
        read_tensors(tmp_path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_shard(path, b"", length=1 << 30)
    os.truncate(path, (1 << 30) + 8)  # sparse
    with pytest.raises(CheckpointError, match="has a header of 1073741824 bytes; at most"):
        read_tensors(tmp_path)


def test_random_damage_to_a_header_is_refused_or_harmless(tmp_path: Path) -> None:
    seed = 77
    rng = random.Random(seed)
    path = tmp_path / "model.safetensors"
    save_file({f"layers.{i}.x": torch.zeros(3, i + 1) for i in range(4)}, path)
    good = path.read_bytes()
    end, refused = 8 + int.from_bytes(good[:8], "little"), 0
    for _ in range(1500):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_header(tmp_path, path)
        except CheckpointError:
            refused += 1
    assert refused > 750, (seed, refused)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}.safetensors", {"norm.weight": entry(0, 4)}, b"0000")
    with pytest.raises(CheckpointError, match=r"norm\.weight is in two shards: a\.safetensors and b\.safetensors"):
        read_tensors(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"a": "missing.safetensors"}, "lacks 1 of 1 shards: missing.safetensors"),
        ({"a": "../outside.safetensors"}, "no name of a shard"),
        ({"a": "/etc/passwd"}, "no name of a shard"),
        ({"a": "sub/model.safetensors"}, "no name of a shard"),
        ({"a": 7}, "no name of a shard"),
        ({"a": "x\0.safetensors"}, "no name of a shard"),
        ([], "weight_map is"),
        (None, "weight_map is"),
        ({"a": "model.safetensors", "b": "model.safetensors"}, r"disagrees .* 1: b .*shards: nowhere"),
        ({}, "has no"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_refused(tmp_path: Path, weight_map: object, problem: str) -> None:
    (tmp_path / "model").mkdir()
    for place in ("model/model", "outside"):
        write_shard(tmp_path / f"{place}.safetensors", {"a": entry(0, 4)}, b"0000")
    (tmp_path / "model" / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=problem):
        read_tensors(tmp_path / "model")


def test_a_tensor_that_the_index_leaves_out_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a": entry(0, 4), "b": entry(4, 8)}, b"0" * 8)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"disagrees .* 1: b \(index: nowhere"):
        read_tensors(tmp_path)


def test_shards_that_are_no_files_of_the_directory_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors"):
        read_tensors(model)
    shard = model / "model.safetensors"
    write_shard(tmp_path / "outside.safetensors", {"a": entry(0, 4)}, b"0000")
    shard.symlink_to("../outside.safetensors")
    with pytest.raises(CheckpointError, match="outside the model directory"):
        read_tensors(model)
    shard.unlink()
    shard.symlink_to("model.safetensors")
    with pytest.raises(CheckpointError, match="lacks 1 of 1 shards"):
        read_tensors(model)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_tensors(model)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_tensors(model)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bytes_and_time_left_at_most_ten_times_a_second() -> None:
    now, screen = [100.0], Terminal()
    progress = Progress(4 << 30, "loading demo", screen, lambda: now[0])
    for _ in range(1000):
        now[0] += 0.004
        progress.add(1 << 20)
    updates = screen.getvalue().split("\r")[1:]
    assert 30 <= len(updates) <= 41
    assert updates[-1].startswith("loading demo [#######....")
    assert "1000.0 MiB of 4.0 GiB, 250.0 MiB/s, 0:12 left" in progress.line(now[0])
    progress.add(3096 << 20)
    progress.close()
    progress.close()
    assert screen.getvalue().endswith("100% 4.0 GiB of 4.0 GiB in 4.0 s\x1b[K\n")
    assert screen.getvalue().count("\n") == 1


def test_a_log_file_gets_whole_lines_every_five_seconds() -> None:
    now, log = [0.0], io.StringIO()
    progress = Progress(100, "loading demo", log, lambda: now[0])
    for _ in range(12):
        now[0] += 1.0
        progress.add(8)
    progress.close()
    lines = log.getvalue().splitlines()
    assert [line.split()[-2:] for line in lines[:2]] == [["0:07", "left"], ["0:02", "left"]]
    assert len(lines) == 3
    assert "\r" not in log.getvalue()


def test_loading_with_progress_ends_at_all_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path, config_json(), "official", num_mtp=1)
    with open_checkpoint(tmp_path, ModelConfig.load(tmp_path), progress=True) as source:
        for name in source.names():
            source.take(name)
            source.take(name)
    assert f"loading {tmp_path.name} [{'#' * 30}] 100%" in capsys.readouterr().err


MEASURE = """
import gc, sys
from pathlib import Path
import torch
from dsv4.config.model import ModelConfig
from dsv4.model.checkpoint import open_checkpoint
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import FLOAT32
torch.set_num_threads(1)

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

def load(directory, kept):
    config = ModelConfig.load(directory)
    with open_checkpoint(directory, config) as source:
        if kept == "model":
            return DeepseekV4(config, source, FLOAT32)
        return [source.take(name) for name in source.names()]

load(Path(sys.argv[3]), sys.argv[2])            # a small one first: what code itself needs is no part of the weights
before = status("VmRSS")
held = load(Path(sys.argv[1]), sys.argv[2])
peak = status("VmHWM")                           # of this program alone; getrusage's also counts what its parent had
storages = [t.untyped_storage() for t in gc.get_objects() if type(t) is torch.Tensor]
print(sum({s.data_ptr(): s.nbytes() for s in storages}.values()), peak - before)
"""


@pytest.mark.parametrize("kept", ["stored", "model"])
def test_peak_memory_is_at_most_one_and_a_quarter_of_the_loaded_weights(tmp_path: Path, kept: str) -> None:
    raw = config_json(hidden_size=2048, moe_intermediate_size=512, vocab_size=4096, n_routed_experts=32)
    if kept == "model":  # in float32, eight times as large
        raw |= {"n_routed_experts": 6}
    held = {
        name: (dtype, DTYPE_BITS[dtype] // 8 * torch.Size(shape).numel(), shape)
        for name, (dtype, shape) in layout(ModelConfig.parse(raw), "official").items()
    }
    large, small = tmp_path / "large", tmp_path / "small"
    large.mkdir()
    small.mkdir()
    write_sparse_model(large, raw, held)
    write_model(small, config_json(), "official")
    command = [sys.executable, "-c", MEASURE, str(large), kept, str(small)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    weights, growth = map(int, output.split())
    assert weights > 200e6
    assert 0.9 * weights <= growth <= 1.25 * weights, f"{weights / 1e6:.0f} MB of weights, {growth / 1e6:.0f} MB more"


def test_headers_of_a_whole_flash_checkpoint_are_accounted_for(tmp_path: Path) -> None:
    raw = published("V4-Flash.config")
    config = ModelConfig.parse(raw, num_mtp_layers=1)
    held = {
        name: (dtype, DTYPE_BITS[dtype] // 8 * torch.Size(shape).numel(), shape)
        for name, (dtype, shape) in layout(config, "official").items()
    }
    write_sparse_model(tmp_path, raw, held)
    assert ModelConfig.load(tmp_path) == config
    with open_checkpoint(tmp_path, config, drafts=True) as source:
        assert source.num_bytes == 159_609_485_896
        assert source.take("layers.42.attn.wkv.weight").shape == (512, 4096)
