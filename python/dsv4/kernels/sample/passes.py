# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"
# ruff: noqa: ANN001, ANN201, ANN202 - jitted functions pass blocks and pointers; only launchers have types
"""The kernels of the sampler. A row is cut into segments of SEGMENT logits; a program holds one segment of one row.

    scan       penalties, bias, masks ─▶ maximum, its lowest id, finite or not       every row; greedy rows end here
    mass       w = exp((l - max) / T) ─▶ its sum; how many fall into each bin        rows that draw
    settle     whole segments, or the few candidates that top-k and top-p leave      rows that draw
    logprobs   rank and likeliest ids of the unmodified logits                       rows that asked

What programs leave for each other is added by the last one to arrive, in the order of the segments; every number is
made of one row alone. Float64 after the masks, as in the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl

SEEN, HIDDEN, ALLOWED = tl.constexpr(1), tl.constexpr(2), tl.constexpr(4)
DRAWN, NOT_FINITE, UNDECIDED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
BINS = tl.constexpr(256)
PER_UNIT = tl.constexpr(8)  # bins per unit of (max - logit) / temperature
NEVER = tl.constexpr(2147483647)


@triton.jit
def _edited(x, ids, live, logits, masked, row, entries, flags, counts, bias, starts, restricted, penalties, first,
            SEGMENT: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """The segment after penalties, bias and masks; rows without entries are left as they are."""
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    only = tl.load(restricted + row) != 0
    if (end > begin) | only:
        repetition = tl.load(penalties + row * 3)
        presence = tl.load(penalties + row * 3 + 1)
        frequency = tl.load(penalties + row * 3 + 2)
        tl.store(masked + ids, tl.where(only, float("-inf"), x), mask=live)
        tl.debug_barrier()
        for at in range(begin, end, CHUNK):
            entry = at + tl.arange(0, CHUNK)
            there = entry < end
            token = tl.load(entries + entry, mask=there, other=-1)
            there = there & (token >= first) & (token < first + SEGMENT)
            v = tl.load(logits + token, mask=there, other=0.0)
            kind = tl.load(flags + entry, mask=there, other=0)
            count = tl.load(counts + entry, mask=there, other=0.0)
            penalised = tl.where(v > 0, tl.div_rn(v, repetition), v * repetition)
            v = tl.where((kind & SEEN) != 0, penalised, v)
            v = tl.where(count > 0, v - (frequency * count + presence), v)
            v = v + tl.load(bias + entry, mask=there, other=0.0)
            v = tl.where(only & ((kind & ALLOWED) == 0), float("-inf"), v)
            v = tl.where((kind & HIDDEN) != 0, float("-inf"), v)
            tl.store(masked + token, v, mask=there)
        tl.debug_barrier()
        x = tl.load(masked + ids, mask=live, other=float("-inf"), cache_modifier=".cg")
    return x


@triton.jit
def scan(
    logits, logits_row, masked, V, entries, flags, counts, bias, starts, restricted, penalties, num_logprobs,
    seg_max, seg_arg, seg_bad, seg_top, seg_sum, arrivals, row_max, row_norm, tokens, status,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, SP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid (B, SEGMENTS)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = segment * SEGMENT
    ids = first + tl.arange(0, SEGMENT)
    live = ids < V
    logits += row * logits_row
    masked += row * V
    raw = tl.load(logits + ids, mask=live, other=float("-inf"))
    fine = (tl.abs(raw) < float("inf")) | (ids >= V)
    place = row * SEGMENTS + segment
    tl.store(seg_bad + place, tl.max((fine == 0).to(tl.int32), 0))
    wants = tl.load(num_logprobs + row) >= 0
    if wants:
        top = tl.max(raw, 0)
        tl.store(seg_top + place, top)
        tl.store(seg_sum + place, tl.sum(tl.exp(raw.to(tl.float64) - top.to(tl.float64)), 0))
    x = _edited(raw, ids, live, logits, masked, row, entries, flags, counts, bias, starts, restricted, penalties,
                first, SEGMENT, CHUNK)  # fmt: skip
    best = tl.max(x, 0)
    tl.store(seg_max + place, best)
    tl.store(seg_arg + place, tl.min(tl.where((x == best) & live, ids, NEVER), 0))
    tl.debug_barrier()
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel") == SEGMENTS - 1:
        s = tl.arange(0, SP)
        inside = s < SEGMENTS
        at = row * SEGMENTS + s
        bad = tl.max(tl.load(seg_bad + at, mask=inside, other=0, cache_modifier=".cg"), 0)
        largest = tl.load(seg_max + at, mask=inside, other=float("-inf"), cache_modifier=".cg")
        best = tl.max(largest, 0)
        args = tl.load(seg_arg + at, mask=inside, other=NEVER, cache_modifier=".cg")
        token = tl.min(tl.where(largest == best, args, NEVER), 0)
        tl.store(row_max + row, best)
        tl.store(tokens + row, tl.where(bad != 0, 0, token))
        tl.store(status + row, tl.where(bad != 0, NOT_FINITE, DRAWN))
        if wants:
            tops = tl.load(seg_top + at, mask=inside, other=float("-inf"), cache_modifier=".cg").to(tl.float64)
            sums = tl.load(seg_sum + at, mask=inside, other=0.0, cache_modifier=".cg")
            top = tl.max(tops, 0)
            tl.store(row_norm + row, top + tl.log(tl.sum(tl.where(inside, sums * tl.exp(tops - top), 0.0), 0)))
        tl.store(arrivals + row, 0)


@triton.jit
def _source(logits, logits_row, masked, V, starts, restricted, row):
    """Where the row is read after its edits."""
    edited = (tl.load(starts + row + 1) > tl.load(starts + row)) | (tl.load(restricted + row) != 0)
    return tl.where(edited, masked + row * V, logits + row * logits_row)


@triton.jit
def _distance(x, top, temperature):
    """(max - logit) / temperature in float64; infinite for what is masked."""
    return (top.to(tl.float64) - x.to(tl.float64)) / tl.maximum(temperature, 1e-30)


@triton.jit
def _bin(distance):
    return tl.minimum(distance * PER_UNIT, BINS - 1.0).to(tl.int32)


@triton.jit
def mass(
    logits, logits_row, masked, V, starts, restricted, temperatures, top_ks, top_ps, min_ps, row_max, status,
    seg_mass, seg_bins,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """Grid (B, SEGMENTS)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if (temperature == 0.0) | (tl.load(status + row) != DRAWN):
        return
    k = tl.load(top_ks + row)
    filtered = ((k > 0) & (k < V)) | (tl.load(top_ps + row) < 1.0)
    ids = segment * SEGMENT + tl.arange(0, SEGMENT)
    live = ids < V
    source = _source(logits, logits_row, masked, V, starts, restricted, row)
    x = tl.load(source + ids, mask=live, other=float("-inf"))
    distance = _distance(x, tl.load(row_max + row), temperature)
    w = tl.exp(-distance)
    place = row * SEGMENTS + segment
    if filtered:
        counts = tl.histogram(_bin(distance), BINS, mask=live)
        tl.store(seg_bins + place * BINS + tl.arange(0, BINS), counts)
    else:
        w = tl.where(w < tl.load(min_ps + row), 0.0, w)
    tl.store(seg_mass + place, tl.sum(tl.where(live, w, 0.0), 0))


@triton.jit
def _uniform(seed, choice, position):
    """Philox4x32-10 of counter (position, choice, 0, 0) and the seed as key: a multiple of 2^-53 in [0, 1)."""
    LOW: tl.constexpr = 0xFFFFFFFF
    low = tl.full([], LOW, tl.uint64)
    m0, m1 = tl.full([], 0xD2511F53, tl.uint64), tl.full([], 0xCD9E8D57, tl.uint64)
    w0, w1 = tl.full([], 0x9E3779B9, tl.uint64), tl.full([], 0xBB67AE85, tl.uint64)
    key = seed.to(tl.uint64, bitcast=True)
    k0, k1 = key & low, key >> 32
    c0, c1 = position.to(tl.uint64, bitcast=True), choice.to(tl.uint64, bitcast=True)
    c2, c3 = tl.full([], 0, tl.uint64), tl.full([], 0, tl.uint64)
    for _ in tl.static_range(10):
        p0, p1 = m0 * c0, m1 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & low, (p0 >> 32) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + w0) & low, (k1 + w1) & low
    return ((c0 << 21) | (c1 >> 11)).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _found(w, before, target, places):
    """First place at which the running sum passes the target; if rounding passed it by, the last that weighs."""
    reached = before + tl.cumsum(w, 0)
    at = tl.min(tl.where(reached > target, places, NEVER), 0)
    return tl.where(at == NEVER, tl.max(tl.where(w > 0.0, places, -1), 0), at)


@triton.jit
def _ordered(x):
    """float32 -> uint32 that compares alike; -0 equals 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def _threshold(keys, amounts, needed):
    """The largest v such that the amounts of keys >= v reach what is needed; 0 if nothing does."""
    v = tl.full([], 0, tl.uint32)
    for bit in range(32):
        trial = v | (tl.full([], 1, tl.uint32) << (31 - bit))
        enough = tl.sum(tl.where(keys >= trial, amounts, 0), 0) >= needed
        v = tl.where(enough, trial, v)
    return v


@triton.jit
def _filtered(x, w, there, all_mass, k, top_p, min_p, V):
    """Weights after top-k, top-p and min-p; candidates in the order of their ids, and all that can survive is here."""
    keys = tl.where(there, _ordered(x), 0)
    total = all_mass
    if (k > 0) & (k < V):
        v = _threshold(keys, there.to(tl.int32), k)
        level = (there & (keys == v)).to(tl.int32)
        spare = k - tl.sum((there & (keys > v)).to(tl.int32), 0)
        w = tl.where((keys > v) | ((level > 0) & (tl.cumsum(level, 0) <= spare)), w, 0.0)
        keys = tl.where(w > 0.0, keys, 0)
        total = tl.sum(w, 0)
    if top_p < 1.0:
        target = top_p * total
        v = _threshold(keys, w, target)
        level = ((w > 0.0) & (keys == v)).to(tl.int32)
        each = tl.max(tl.where(level > 0, w, 0.0), 0)
        short = target - tl.sum(tl.where(keys > v, w, 0.0), 0)
        many = tl.maximum(tl.ceil(tl.minimum(short / tl.maximum(each, 1e-300), 1e9)), 1.0)
        w = tl.where((keys > v) | ((level > 0) & (tl.cumsum(level, 0) <= many)), w, 0.0)
    return tl.where(w < min_p, 0.0, w)


@triton.jit
def _last_bin(counts, k, top_p, all_mass, V):
    """The bin below which nothing survives: it holds the k-th, or what is under it weighs less than 1 - top_p."""
    bins = tl.arange(0, BINS)
    if (k > 0) & (k < V):
        last = tl.sum((tl.cumsum(counts, 0) < k).to(tl.int32), 0)
    else:
        most = counts.to(tl.float64) * tl.exp(-bins.to(tl.float64) / PER_UNIT)
        under = tl.cumsum(most, 0, reverse=True) - most
        last = tl.sum((under + 1e-12 * all_mass > (1.0 - top_p) * all_mass).to(tl.int32), 0)
    return tl.minimum(last, BINS - 1)


@triton.jit
def settle(
    logits, logits_row, masked, V, starts, restricted, temperatures, top_ks, top_ps, min_ps, seeds, choices, positions,
    row_max, seg_mass, seg_bins, left_logits, left_ids, arrivals, tokens, status,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, SP: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Grid (B, SEGMENTS)."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if (temperature == 0.0) | (tl.load(status + row) == NOT_FINITE):
        return
    k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
    top = tl.load(row_max + row)
    uniform = _uniform(tl.load(seeds + row), tl.load(choices + row), tl.load(positions + row))
    s = tl.arange(0, SP)
    masses = tl.load(seg_mass + row * SEGMENTS + s, mask=s < SEGMENTS, other=0.0)
    all_mass = tl.sum(masses, 0)
    ids = segment * SEGMENT + tl.arange(0, SEGMENT)
    live = ids < V
    source = _source(logits, logits_row, masked, V, starts, restricted, row)
    if ((k <= 0) | (k >= V)) & (top_p >= 1.0):
        target = uniform * all_mass
        if _found(masses, 0.0, target, s) == segment:
            before = tl.sum(tl.where(s < segment, masses, 0.0), 0)
            x = tl.load(source + ids, mask=live, other=float("-inf"))
            w = tl.exp(-_distance(x, top, temperature))
            w = tl.where(live & (w >= min_p), w, 0.0)
            tl.store(tokens + row, _found(w, before, target, ids))
        return
    bins = tl.arange(0, BINS)
    place = seg_bins + (row * SEGMENTS + s)[:, None] * BINS + bins[None, :]
    table = tl.load(place, mask=(s < SEGMENTS)[:, None], other=0)
    last = _last_bin(tl.sum(table, 0), k, top_p, all_mass, V)
    survivors = tl.sum(tl.where(bins[None, :] <= last, table, 0), 1)
    number = tl.sum(survivors, 0)
    if number > CANDIDATES:
        if segment == 0:
            tl.store(status + row, UNDECIDED)
        return
    left_logits += row * CANDIDATES
    left_ids += row * CANDIDATES
    x = tl.load(source + ids, mask=live, other=float("-inf"))
    taken = live & (_bin(_distance(x, top, temperature)) <= last)
    at = tl.sum(tl.where(s < segment, survivors, 0), 0) + tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(left_logits + at, x, mask=taken)
    tl.store(left_ids + at, ids, mask=taken)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel") == SEGMENTS - 1:
        c = tl.arange(0, CANDIDATES)
        there = c < number
        x = tl.load(left_logits + c, mask=there, other=float("-inf"), cache_modifier=".cg")
        w = tl.where(there, tl.exp(-_distance(x, top, temperature)), 0.0)
        w = _filtered(x, w, there, all_mass, k, top_p, min_p, V)
        chosen = _found(w, 0.0, uniform * tl.sum(w, 0), c)
        tl.store(tokens + row, tl.load(left_ids + chosen, cache_modifier=".cg"))
        tl.store(arrivals + row, 0)


@triton.jit
def logprobs(
    logits, logits_row, V, num_logprobs, tokens, status, row_norm,
    seg_rank, best_logits, best_ids, arrivals, out_logprobs, out_ranks, top_logprobs, top_ids,
    SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, SP: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Grid (B, SEGMENTS). `MOST` alternatives have room; a row gets as many as it asked for."""
    row, segment = tl.program_id(0).to(tl.int64), tl.program_id(1)
    many = tl.load(num_logprobs + row)
    if (many < 0) | (tl.load(status + row) != DRAWN):
        return
    logits += row * logits_row
    token = tl.load(tokens + row)
    value = tl.load(logits + token)
    ids = segment * SEGMENT + tl.arange(0, SEGMENT)
    x = tl.load(logits + ids, mask=ids < V, other=float("-inf"))
    ahead = (x > value) | ((x == value) & (ids < token))
    place = row * SEGMENTS + segment
    tl.store(seg_rank + place, tl.sum(ahead.to(tl.int32), 0))
    for j in range(many):
        best = tl.max(x, 0)
        which = tl.min(tl.where(x == best, ids, NEVER), 0)
        tl.store(best_logits + place * MOST + j, best)
        tl.store(best_ids + place * MOST + j, which)
        x = tl.where(ids == which, float("-inf"), x)
    tl.debug_barrier()
    if tl.atomic_add(arrivals + row, 1, sem="acq_rel") == SEGMENTS - 1:
        s = tl.arange(0, SP)
        ranks = tl.load(seg_rank + row * SEGMENTS + s, mask=s < SEGMENTS, other=0, cache_modifier=".cg")
        norm = tl.load(row_norm + row).to(tl.float32)
        tl.store(out_ranks + row, 1 + tl.sum(ranks, 0))
        tl.store(out_logprobs + row, value - norm)
        column = tl.arange(0, MOST)
        at = (row * SEGMENTS + s)[:, None] * MOST + column[None, :]
        inside = (s < SEGMENTS)[:, None] & (column < many)[None, :]
        y = tl.load(best_logits + at, mask=inside, other=float("-inf"), cache_modifier=".cg")
        which = tl.load(best_ids + at, mask=inside, other=NEVER, cache_modifier=".cg")
        for j in range(many):
            best = tl.max(tl.max(y, 1), 0)
            chosen = tl.min(tl.min(tl.where(y == best, which, NEVER), 1), 0)
            tl.store(top_logprobs + row * MOST + j, best - norm)
            tl.store(top_ids + row * MOST + j, chosen)
            y = tl.where(which == chosen, float("-inf"), y)
        tl.store(arrivals + row, 0)
