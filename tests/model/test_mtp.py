"""The plain MTP block against a straightforward implementation: one sequence, dense masks, loops over experts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tests.model.oracle import model_config
from tests.model.stepping import Planner, chunks, make_caches, owned
from torch import Tensor

from dsv4.config.model import ModelConfig
from dsv4.kernels.quant.reference import fake_fp8, unpack_nibbles
from dsv4.model.dummy import DummySource
from dsv4.model.model import DeepseekV4
from dsv4.model.mtp import MtpBlock
from dsv4.model.numerics import FLOAT32, Numerics

CONFIG = model_config(
    num_hidden_layers=2, compress_ratios=(0, 4), num_hash_layers=1, num_mtp_layers=1, draft="mtp", sliding_window=24
)
EPS = 1e-6


class Plain:
    """The MTP block from the equations; in bf16 with every rounding of the official code, where it has it."""

    def __init__(self, config: ModelConfig, source: DummySource, *, bf16: bool = False) -> None:
        self.c, self.source, self.bf16 = config, source, bf16

    def r(self, x: Tensor) -> Tensor:
        return x.bfloat16().float() if self.bf16 else x

    def q8(self, x: Tensor, block: int = 128) -> Tensor:
        return fake_fp8(x, block) if self.bf16 else x

    def __call__(self, streams: Tensor, next_ids: Tensor) -> tuple[Tensor, Tensor]:
        e = self.norm(self.t("embed.weight")[next_ids], "mtp.0.enorm")
        h = self.norm(streams, "mtp.0.hnorm")
        x = self.r(self.lin8(e, "e_proj")[:, None] + self.lin8(h, "h_proj"))
        x = self.site(x, "attn", lambda u: self.attention(self.norm(u, "mtp.0.attn_norm")))
        x = self.site(x, "ffn", lambda u: self.moe(self.norm(u, "mtp.0.ffn_norm")))
        weight = torch.sigmoid(self.mixes(x, "hc_head") * self.t("mtp.0.hc_head_scale") + self.t("mtp.0.hc_head_base"))
        y = self.norm(self.r(((weight + EPS)[..., None] * x).sum(1)), "mtp.0.norm")
        return y @ self.t("head.weight").T, x

    def t(self, name: str) -> Tensor:
        return self.source.take(name).float()

    def w(self, name: str) -> Tensor:
        weight = self.source.take(f"mtp.0.{name}.weight")
        if not self.source.has(f"mtp.0.{name}.scale"):
            return weight.float()
        scale = 2.0 ** (self.source.take(f"mtp.0.{name}.scale").view(torch.uint8).float() - 127)
        if weight.dtype is torch.float8_e4m3fn:
            grid = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            return weight.float() * grid[: weight.shape[0], : weight.shape[1]]
        return unpack_nibbles(weight) * scale.repeat_interleave(32, 1)

    def lin8(self, x: Tensor, name: str) -> Tensor:
        return self.r(self.q8(x) @ self.w(name).T)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return self.r(self.t(f"{name}.weight") * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt())

    def mixes(self, x: Tensor, name: str) -> Tensor:
        v = x.flatten(1)
        return (v @ self.t(f"mtp.0.{name}_fn").T) / (v.square().mean(-1, keepdim=True) + EPS).sqrt()

    def site(self, x: Tensor, name: str, sublayer: object) -> Tensor:
        assert callable(sublayer)
        n, scale, base = self.c.hc_mult, self.t(f"mtp.0.hc_{name}_scale"), self.t(f"mtp.0.hc_{name}_base")
        mixed = self.mixes(x, f"hc_{name}")
        pre = torch.sigmoid(mixed[:, :n] * scale[0] + base[:n]) + EPS
        post = 2 * torch.sigmoid(mixed[:, n : 2 * n] * scale[1] + base[n : 2 * n])
        comb = (mixed[:, 2 * n :] * scale[2] + base[2 * n :]).view(-1, n, n).softmax(-1) + EPS
        comb = comb / (comb.sum(1, keepdim=True) + EPS)
        for _ in range(self.c.hc_sinkhorn_iters - 1):
            comb = comb / (comb.sum(2, keepdim=True) + EPS)
            comb = comb / (comb.sum(1, keepdim=True) + EPS)
        out = sublayer(self.r((pre[..., None] * x).sum(1)))
        return self.r(post[..., None] * out[:, None] + torch.einsum("tjk,tjc->tkc", comb, x))

    def attention(self, x: Tensor) -> Tensor:
        c, T, eps = self.c, len(x), EPS
        R = c.qk_rope_head_dim
        angle = torch.arange(T)[:, None] * c.rope_theta ** (-torch.arange(0, R, 2) / R)
        turn = torch.polar(torch.ones(T, R // 2), angle.float())

        def rope(v: Tensor, by: Tensor) -> Tensor:
            pairs = torch.view_as_complex(v[..., -R:].reshape(*v.shape[:-1], R // 2, 2).contiguous())
            by = by.view(T, *(1,) * (v.dim() - 2), R // 2)
            return self.r(torch.cat((v[..., :-R], torch.view_as_real(pairs * by).flatten(-2)), -1))

        q = self.lin8(self.norm(self.lin8(x, "attn.wq_a"), "mtp.0.attn.q_norm"), "attn.wq_b")
        q = q.view(T, c.num_attention_heads, c.head_dim)
        mean = self.r(self.r(q.square()).mean(-1, keepdim=True))
        q = rope(self.r(q * self.r(self.r(mean + eps).rsqrt())), turn)
        kv = rope(self.norm(self.lin8(x, "attn.wkv"), "mtp.0.attn.kv_norm"), turn)
        kv = torch.cat((self.q8(kv[:, :-R], 64), kv[:, -R:]), 1)
        age = torch.arange(T)[:, None] - torch.arange(T)
        s = torch.einsum("thd,sd->hts", q, kv) / math.sqrt(c.head_dim)
        s = s.masked_fill((age < 0) | (age >= c.sliding_window), -math.inf)
        m = s.amax(-1, keepdim=True)
        p = (s - m).exp()
        total = p.sum(-1, keepdim=True) + (self.t("mtp.0.attn.attn_sink").view(-1, 1, 1) - m).exp()
        o = self.r((self.r(p) @ kv / total).transpose(0, 1))
        o = rope(o, turn.conj()).reshape(T, c.o_groups, -1)
        wo_a = self.w("attn.wo_a").view(c.o_groups, c.o_lora_rank, -1)
        return self.lin8(self.r(torch.einsum("tgi,gri->tgr", o, wo_a)).flatten(1), "attn.wo_b")

    def expert(self, x: Tensor, name: str, weight: Tensor | float = 1.0) -> Tensor:
        limit = self.c.swiglu_limit
        a = self.lin8(x, f"{name}.w1").clamp(max=limit)
        b = self.lin8(x, f"{name}.w3").clamp(-limit, limit)
        return self.lin8(self.r(torch.nn.functional.silu(a) * b * weight), f"{name}.w2")

    def moe(self, x: Tensor) -> Tensor:
        affinity = torch.nn.functional.softplus(x @ self.w("ffn.gate").T).sqrt()
        ids = (affinity + self.t("mtp.0.ffn.gate.bias")).topk(self.c.num_experts_per_tok, -1).indices
        weights = torch.zeros_like(affinity).scatter(1, ids, affinity.gather(1, ids))
        weights = weights / weights.sum(-1, keepdim=True) * self.c.routed_scaling_factor
        out = torch.zeros_like(x)
        for e in range(self.c.n_routed_experts):
            out = out + self.expert(x, f"ffn.experts.{e}", weights[:, e : e + 1])
        return self.r(out + self.expert(x, "ffn.shared_experts"))


def run(model: DeepseekV4, mtp: MtpBlock, ids: list[int], sizes: list[int]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, and the streams that the main model handed over, of ids[:-1] in chunks."""
    planner = Planner(CONFIG.sliding_window, full=2, swa=9, slots=2)
    caches = make_caches(CONFIG, model.numerics, planner, num_draft_layers=1)
    logits, streams, first = [], [], 0
    for piece in chunks(ids[:-1], sizes):
        inputs = planner.step([("a", piece)], sample="all")
        main = model.forward(inputs, caches)
        following = torch.tensor(ids[first + 1 : first + 1 + len(piece)], dtype=torch.int32)
        logits.append(mtp.forward(main.streams, following, inputs, caches).logits)
        streams.append(main.streams)
        first += len(piece)
    return torch.cat(logits), torch.cat(streams), owned(planner, caches, "a")


def test_the_mtp_block_is_the_equations(seed: int) -> None:
    source = DummySource(CONFIG, seed, flavour="fp32")
    model = DeepseekV4(CONFIG, source, FLOAT32)
    ids = torch.randint(CONFIG.vocab_size, (101,)).tolist()
    logits, streams, _ = run(model, MtpBlock(model, source), ids, [100])
    want, _ = Plain(CONFIG, source)(streams.clone(), torch.tensor(ids[1:]))
    assert want.std() > 0.1
    assert (logits - want).abs().max() <= 1e-4


def test_bf16_rounds_where_the_official_code_does(seed: int) -> None:
    """FP8 and FP4 weights, FP8 inputs, packed rows. Only a sum at the edge of a rounding may fall to the other side,
    and what such a value touches; a rounding too many or too few would move nearly everything.
    """
    config = dataclasses.replace(CONFIG, hidden_size=128, moe_intermediate_size=64, q_lora_rank=128)
    source = DummySource(config, seed)
    model = DeepseekV4(config, source, Numerics("bfloat16", "fp8_ds_mla", "fp4"))
    planner = Planner(config.sliding_window, full=1, swa=3, slots=1)
    caches = make_caches(config, model.numerics, planner, num_draft_layers=1)
    ids = torch.randint(config.vocab_size, (41,))
    inputs = planner.step([("a", ids[:-1].tolist())], sample="all")
    streams = model.forward(inputs, caches).streams
    got = MtpBlock(model, source).forward(streams, ids[1:], inputs, caches)
    logits, want = Plain(config, source, bf16=True)(streams.clone(), ids[1:])
    assert torch.equal(got.streams, got.streams.bfloat16().float())
    assert (got.streams == want).float().mean() > 0.9
    assert (got.logits - logits).abs().mean() < 0.02 * logits.std()


def test_out_of_memory_when_the_hidden_state_is_sized_by_one_stream(seed: int) -> None:
    """What MTP reads is all N streams of every token, before the mHC head; sized by d it broke other engines."""
    source = DummySource(CONFIG, seed, flavour="fp32")
    model = DeepseekV4(CONFIG, source, FLOAT32)
    _, streams, _ = run(model, MtpBlock(model, source), list(range(9)), [8])
    assert streams.shape == (8, CONFIG.hc_mult, CONFIG.hidden_size)
    assert (streams[:, 0] - streams[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "numerics", [FLOAT32, Numerics("bfloat16", "fp8_ds_mla", "fp4")], ids=["float32", "fp8 rows, fp4 index"]
)
def test_its_window_is_its_own_and_bit_equal_at_any_split(seed: int, numerics: Numerics) -> None:
    source = DummySource(CONFIG, seed, flavour="fp32" if numerics is FLOAT32 else "official")
    model = DeepseekV4(CONFIG, source, numerics)
    mtp = MtpBlock(model, source)
    ids = torch.randint(CONFIG.vocab_size, (81,)).tolist()
    logits, _, rows = run(model, mtp, ids, [80])
    for sizes in ([1, 30, 2, 40], [64, 10]):
        got, _, got_rows = run(model, mtp, ids, sizes)
        assert torch.equal(got, logits)
        assert all(torch.equal(got_rows[name], rows[name]) for name in rows)
    assert not torch.equal(rows["2 window"], rows["0 window"])


def test_a_step_of_no_tokens_touches_nothing(seed: int) -> None:
    source = DummySource(CONFIG, seed, flavour="fp32")
    model = DeepseekV4(CONFIG, source, FLOAT32)
    planner = Planner(CONFIG.sliding_window, full=1, swa=3, slots=1)
    caches = make_caches(CONFIG, FLOAT32, planner, num_draft_layers=1)
    inputs = planner.step([])
    main = model.forward(inputs, caches)
    out = MtpBlock(model, source).forward(main.streams, inputs.token_ids, inputs, caches)
    assert out.logits.shape == (0, CONFIG.vocab_size)
