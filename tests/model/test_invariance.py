"""A request's logits and cache rows, bit for bit: however it is cut into steps, and whatever runs beside it."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator

import pytest
import torch
from tests.model.oracle import model_config
from tests.model.stepping import Planner, chunks, make_caches, owned
from torch import Tensor

from dsv4.model.caches import Caches
from dsv4.model.dummy import DummySource
from dsv4.model.model import DeepseekV4
from dsv4.model.numerics import FLOAT32, Numerics

CONFIG = model_config(
    hidden_size=128,
    num_hidden_layers=4,
    compress_ratios=(0, 4, 128, 4),
    q_lora_rank=128,
    o_lora_rank=64,
    index_topk=16,
    moe_intermediate_size=64,
    num_hash_layers=1,
)
NUMERICS = {
    "float32": FLOAT32,
    "fp8 rows, fp4 index": Numerics("bfloat16", "fp8_ds_mla", "fp4"),
    "fp8 rows, fp8 index": Numerics("bfloat16", "fp8_ds_mla", "fp8"),
    "bf16 rows, float32 index": Numerics("bfloat16", "bf16", "float32"),
}
EVERY_FORMAT = pytest.mark.parametrize("numerics", NUMERICS.values(), ids=NUMERICS.keys())


@functools.cache
def model(numerics: Numerics) -> DeepseekV4:
    return DeepseekV4(CONFIG, DummySource(CONFIG, 7, flavour="fp32" if numerics is FLOAT32 else "official"), numerics)


def fresh(numerics: Numerics) -> tuple[Planner, Caches]:
    planner = Planner(CONFIG.sliding_window, full=40, swa=120, slots=34)
    return planner, make_caches(CONFIG, numerics, planner)


def prompt(length: int, seed: int) -> list[int]:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.vocab_size, (length,), generator=g).tolist()


def alone(numerics: Numerics, ids: list[int], sizes: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    planner, caches = fresh(numerics)
    pieces = chunks(ids, sizes)
    parts = [model(numerics).forward(planner.step([("a", piece)], sample="all"), caches).logits for piece in pieces]
    return torch.cat(parts), owned(planner, caches, "a")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, rows in left.items():
        assert torch.equal(rows, right[name]), name


@EVERY_FORMAT
def test_any_split_leaves_the_same_logits_and_rows(rng: random.Random, seed: int, numerics: Numerics) -> None:
    ids = prompt(275, seed)
    logits, rows = alone(numerics, ids, [275])
    assert logits.isfinite().all()
    for _ in range(3):
        sizes: list[int] = []
        while sum(sizes) < 270:
            sizes.append(min(rng.choice((1, 2, 3, 4, 5, 31, 64, 100, 129)), 275 - sum(sizes)))
        got, got_rows = alone(numerics, ids, sizes)
        assert torch.equal(got, logits), sizes
        same(got_rows, rows)


@EVERY_FORMAT
def test_token_by_token_is_prefill(seed: int, numerics: Numerics) -> None:
    ids = prompt(150, seed)
    logits, rows = alone(numerics, ids, [150])
    got, got_rows = alone(numerics, ids, [100])
    assert torch.equal(got, logits)
    same(got_rows, rows)
    first, _ = alone(numerics, ids[:20], [])
    assert torch.equal(first, logits[:20])


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def among_others(rng: random.Random, seed: int, numerics: Numerics, num_others: int, sizes: list[int]) -> None:
    """Requests come and go, prefill in chunks beside others' decoding, in any order of rows."""
    ids = prompt(sum(sizes), seed)
    logits, rows = alone(numerics, ids, [len(ids)])
    planner, caches = fresh(numerics)
    others = {f"b{i}": prompt(rng.choice((3, 9, 40, 150)), seed + i) for i in range(num_others)}
    done, got = dict.fromkeys(others, 0), []
    for i, piece in enumerate(chunks(ids, sizes)):
        work: list[tuple[str, list[int]]] = [("a", list(piece))]
        for name, theirs in others.items():
            count = rng.choice((0, 1, 1, 17)) if i else 2
            if theirs[done[name] :] and count:
                work.append((name, theirs[done[name] : done[name] + count]))
                done[name] += len(work[-1][1])
        rng.shuffle(work)
        out = model(numerics).forward(planner.step(work, sample="all"), caches).logits
        got.append(out[torch.tensor([name == "a" for name, tokens in work for _ in tokens])])
    assert torch.equal(torch.cat(got), logits)
    same(owned(planner, caches, "a"), rows)


@EVERY_FORMAT
def test_alone_or_among_31_others(rng: random.Random, seed: int, numerics: Numerics) -> None:
    among_others(rng, seed, numerics, 31, [1, 60, 2, 30, 40, 1, 1, 1, 1, 1])


@pytest.mark.usefixtures("two_threads")
def test_alone_or_among_others_with_two_threads(rng: random.Random, seed: int) -> None:
    among_others(rng, seed, NUMERICS["fp8 rows, fp4 index"], 7, [1, 100, 28, 1, 1, 1])


def test_a_reused_slot_and_reused_blocks_remember_nobody(seed: int) -> None:
    """Stale state was read by a prompt under 4 tokens after another conversation; a C128 group began half full."""
    ids = prompt(140, seed)
    logits, rows = alone(FLOAT32, ids, [140])
    planner = Planner(CONFIG.sliding_window, full=1, swa=4, slots=1)
    caches = make_caches(CONFIG, FLOAT32, planner)
    for length in (137, 2, 6):
        model(FLOAT32).forward(planner.step([("before", prompt(length, seed + length))]), caches)
        planner.finish("before")
    pieces = chunks(ids, [2, 1, 50, 60])
    got = [model(FLOAT32).forward(planner.step([("a", piece)], sample="all"), caches).logits for piece in pieces]
    assert torch.equal(torch.cat(got), logits)
    same(owned(planner, caches, "a"), rows)


def test_stale_nan_state_does_not_outlive_its_request(seed: int) -> None:
    """A request that went non-finite leaves NaN in its slot and blocks: the next owner is as good as new."""
    ids = prompt(135, seed)
    logits, _ = alone(FLOAT32, ids, [135])
    planner, caches = fresh(FLOAT32)
    name = "a"
    model(FLOAT32).forward(planner.step([(name, [1, 2])]), caches)
    planner.finish(name)
    for layer in caches.layers:
        for state in (layer.c4_state, layer.index_state, layer.c128_state):
            if state is not None:
                state.fill_(torch.nan)
    got = model(FLOAT32).forward(planner.step([(name, ids)], sample="all"), caches).logits
    assert torch.equal(got, logits)


def test_a_step_of_no_tokens_touches_nothing() -> None:
    planner, caches = fresh(FLOAT32)
    before = [layer.swa.clone() for layer in caches.layers]
    inputs = planner.step([])
    out = model(FLOAT32).forward(inputs, caches)
    assert out.logits.shape == (0, CONFIG.vocab_size)
    assert all(torch.equal(layer.swa, old) for layer, old in zip(caches.layers, before, strict=True))


def test_a_step_may_want_no_logits(seed: int) -> None:
    planner, caches = fresh(FLOAT32)
    inputs = planner.step([("a", prompt(5, seed))])
    none = type(inputs)(**{n: getattr(inputs, n) for n in inputs.__slots__} | {"sample_tokens": inputs.positions[:0]})
    assert model(FLOAT32).forward(none, caches).logits.shape == (0, CONFIG.vocab_size)


@EVERY_FORMAT
def test_poison_blocks_are_never_read_nor_written(seed: int, numerics: Numerics) -> None:
    """Every row that was not written is NaN in these caches (see make_caches), and block 0 stays as it was."""
    planner, caches = fresh(numerics)
    for piece in chunks(prompt(140, seed), [130]):
        assert model(numerics).forward(planner.step([("a", piece)], sample="all"), caches).logits.isfinite().all()
    for layer in caches.layers:
        for pool in (layer.swa, layer.c4, layer.index, layer.c128):
            assert pool is None or bool((pool[0] == 0xFF).all())
        for state in (layer.c4_state, layer.index_state, layer.c128_state):
            assert state is None or bool(state[0].isnan().all())


@pytest.mark.parametrize("numerics", [FLOAT32, NUMERICS["fp8 rows, fp4 index"]], ids=["float32", "packed"])
def test_a_request_that_goes_non_finite_harms_no_other(seed: int, numerics: Numerics) -> None:
    """NaN in the embedding of one token id: its request is lost, the other rows keep their bits, earlier tokens too."""
    planner, caches = fresh(numerics)
    work = [("a", prompt(40, seed)), ("bad", [5, 7, 9]), ("b", prompt(9, seed + 1)), ("c", [3])]
    work = [(name, [t if t != 9 or name == "bad" else 8 for t in tokens]) for name, tokens in work]
    clean = model(numerics).forward(planner.step(work, sample="all"), caches).logits
    embedding = model(numerics).embedding
    kept = embedding[9].clone()
    try:
        embedding[9] = torch.nan
        planner, caches = fresh(numerics)
        spoilt = model(numerics).forward(planner.step(work, sample="all"), caches).logits
        again = model(numerics).forward(planner.step([(name, [4]) for name, _ in work]), caches).logits
    finally:
        embedding[9] = kept
    assert spoilt[42].isnan().all()
    others = torch.arange(len(spoilt)) != 42
    assert torch.equal(spoilt[others], clean[others])
    assert again[1].isnan().all()
    assert again[[0, 2, 3]].isfinite().all()
