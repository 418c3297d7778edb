"""Bytes of DeepSeek-V4-Flash's cache, from the published formulas; `check` compares them with the published totals.

full block   256 tokens: 64 C4 rows and 64 index rows in each C4 layer, 2 C128 rows in each C128 layer
window       128 rows in every layer: what a prefix hit needs besides the compressed rows
checkpoint   window as two SWA blocks of 64 (with the draft layer) and the C4 overlap rows
state        per running request: C4 rings of 8, the C128 accumulators
"""

from __future__ import annotations

P = 256  # tokens per full block
W = 128  # window
SWA_TOKENS = 64  # tokens per SWA block
NUM_SWA_ONLY, NUM_C4, NUM_C128, NUM_DRAFT = 2, 21, 20, 1
NUM_LAYERS = NUM_SWA_ONLY + NUM_C4 + NUM_C128
ROW = 584  # 448 e4m3 + 64 bf16 + 7 scales + 1 pad
INDEX_ROW = {"fp8": 132, "fp4": 68}
C4_STATE_ROW = 8192 + 2048  # kv and score, both overlap halves, fp32: 512 and 128 wide
C128_ONLINE_ROW = 3 * 512 * 4  # (m, s, a), fp32
RING = 8

VLLM_STRIDE = 1_002_240  # one block of its single pool: the largest of its groups' pages, fp8 index
GB = 10**9


def full_block_bytes(index: str = "fp8") -> int:
    """One full block, unpadded."""
    return NUM_C4 * (P // 4) * (ROW + INDEX_ROW[index]) + NUM_C128 * (P // 128) * ROW


def window_bytes() -> int:
    """The window rows of one boundary, no draft layer, unpadded: the least that any hit needs."""
    return NUM_LAYERS * W * ROW


def padded(size: int) -> int:
    """A page's stride: the next multiple of 576."""
    return -(-size // 576) * 576


def swa_block_bytes() -> int:
    """One 64-token SWA block of every layer and the draft."""
    return (NUM_LAYERS + NUM_DRAFT) * padded(SWA_TOKENS * ROW)


def overlap_bytes() -> int:
    """First halves of the last four C4 rows, attention and indexer."""
    return NUM_C4 * 4 * C4_STATE_ROW // 2


def checkpoint_bytes() -> int:
    """What dsv4 keeps at a boundary where a hit may resume."""
    return W // SWA_TOKENS * swa_block_bytes() + overlap_bytes()


def state_bytes() -> int:
    """The state slot of one running request."""
    return NUM_C4 * RING * C4_STATE_ROW + NUM_C128 * C128_ONLINE_ROW


def running_bytes(chunk: int = 2048) -> int:
    """What one running request needs besides full blocks: SWA of a chunk and the window before it, a state slot."""
    return (chunk // SWA_TOKENS + W // SWA_TOKENS + 1) * swa_block_bytes() + state_bytes()


def sglang_token_bytes(ratio: float) -> float:
    """SGLang's bytes per full token at an SWA ratio, online C128."""
    compressed = NUM_C4 * (ROW + INDEX_ROW["fp8"]) / 4 + NUM_C128 * ROW / 128
    swa = (NUM_LAYERS + NUM_DRAFT) * ROW
    states = RING / 128 * NUM_C4 * C4_STATE_ROW + NUM_C128 * C128_ONLINE_ROW / 128
    return compressed + ratio * (swa + states)


def sglang_swa_bytes(ratio: float) -> float:
    """The share of SGLang's pool that its SWA side takes, 0 … 1."""
    return 1.0 - sglang_token_bytes(0.0) / sglang_token_bytes(ratio)


def check() -> None:
    """Raises ValueError where a formula misses its published total."""
    totals = (
        ("bytes per token, fp4 index", full_block_bytes("fp4") // P, 3_514),
        ("bytes per token, fp8 index", full_block_bytes("fp8") // P, 3_850),
        ("window, hundredths of a MiB", round(100 * window_bytes() / 2**20), 307),
        ("three SWA blocks, 10 kB", round(3 * swa_block_bytes() / 10**4), 494),
        ("state slot, 10 kB", round(state_bytes() / 10**4), 184),
        ("checkpoint, 10 kB", round(checkpoint_bytes() / 10**4), 372),
        ("SGLang bytes per token at ratio 0.1, tenths", int(10 * sglang_token_bytes(0.1) + 0.5), 78_599),
    )
    for name, ours, published in totals:
        if ours != published:
            raise ValueError(f"{name}: {ours} by formula, {published} published")
