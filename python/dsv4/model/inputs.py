"""What one step hands to the model: views of the arrays that the core filled (see the step layout)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = torch.empty(0, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The arrays of one step, all int32, on the model's device. T tokens, B requests, R sampled rows.

    Tokens of one request are contiguous and in order of position; `block` ids start at 1, id 0 is the poison block.

    token_ids         [T]
    positions         [T]        0-based position of each token in its request
    token_rows        [T]        which request (row of the tables) each token belongs to
    query_starts      [B + 1]    tokens of request b are query_starts[b]..query_starts[b + 1]
    seq_lens          [B]        tokens of the request after this step
    block_table_full  [B, F]     entry i is the block of positions 256 i .. 256 i + 255; 0 where there is none
    block_table_swa   [B, S]     entry i is the block of window positions (swa_first_block[b] + i) * 64 ..; 0 where none
    swa_first_block   [B]
    swa_slots         [T]        where each token's window row goes: block * 64 + position % 64
    state_slots       [B]        the request's slot in the state group
    state_resets      [B]        1: nothing precedes this step, whatever the slot holds is stale
    c4_tokens         [num_c4]   index in 0..T of each token that closes a C4 group in this step
    c4_slots          [num_c4]   where its C4 row and its index row go: full block * 64 + (position // 4) % 64
    c128_tokens       [num_c128] likewise for C128
    c128_slots        [num_c128] full block * 2 + (position // 128) % 2
    sample_tokens     [R]        index in 0..T of each token whose logits are wanted
    state_banks       [B]        the bank of the slot that holds the C128 state before the request's tokens
    bank_writes       [T]        the bank that takes the C128 state behind this token, -1: none does. The last tokens of
                                 a request have one each, 0, 1, ..: the token that counts for certain, then its drafts

    The last two are empty where nothing is drafted: bank 0 is read, and written behind the last token.
    """

    token_ids: Tensor
    positions: Tensor
    token_rows: Tensor
    query_starts: Tensor
    seq_lens: Tensor
    block_table_full: Tensor
    block_table_swa: Tensor
    swa_first_block: Tensor
    swa_slots: Tensor
    state_slots: Tensor
    state_resets: Tensor
    c4_tokens: Tensor
    c4_slots: Tensor
    c128_tokens: Tensor
    c128_slots: Tensor
    sample_tokens: Tensor
    state_banks: Tensor = NOTHING
    bank_writes: Tensor = NOTHING
