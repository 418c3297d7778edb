"""The Rust core of dsv4: owner of every block of KV memory, and planner of every step."""

# ruff: noqa: PYI021  (this stub is the reference manual)

from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

_Int32s: TypeAlias = Buffer | NDArray[np.int32]  # before Python 3.12 checkers do not know that arrays are buffers

__all__ = [
    "Band",
    "Core",
    "Errands",
    "Field",
    "Geometry",
    "Limits",
    "MemoryPlan",
    "Message",
    "Outcome",
    "Plan",
    "PoolSizes",
    "Posting",
    "Recipe",
    "Replay",
    "RoomEvent",
    "StepDone",
    "Stopped",
    "Tick",
    "Transfer",
    "__version__",
    "build_info",
    "check_sampling",
    "plan_memory",
    "replay_trace",
]

__version__: str
build_info: str

@final
class Geometry:
    """What one model needs per block, per slot and per request; derived from the checkpoint's config.

    ratios             compression ratio per layer, main layers first, then draft layers; each 0, 4 or 128
    window             tokens of sliding window (W)
    kv_data_bytes, kv_scale_bytes, kv_page_multiple   a KV row (576, 8, 576 for fp8_ds_mla at head_dim 512)
    index_data_bytes, index_scale_bytes               an index row (64, 4 for FP4; 128, 4 for FP8)
    c4_state_bytes, index_state_bytes, c128_state_bytes   state of one slot in one layer
    block_tokens       256; a multiple of the least common multiple of the ratios
    swa_block_tokens   64
    draft_tokens       draft tokens of one request that a state slot has room for, at most 15
    hc_mult, hidden_size   residual streams, and values of each: a draft layer starts from all of them

    State bytes are given without drafts: C4 and index rings of 8 rows, one C128 state. With drafts a slot has `c4_ring`
    rows and `c128_banks` states, one that is committed and one behind each draft.
    """

    def __new__(
        cls,
        *,
        ratios: Sequence[int],
        window: int,
        kv_data_bytes: int,
        kv_scale_bytes: int,
        kv_page_multiple: int,
        index_data_bytes: int,
        index_scale_bytes: int,
        c4_state_bytes: int,
        index_state_bytes: int,
        c128_state_bytes: int,
        block_tokens: int = 256,
        swa_block_tokens: int = 64,
        draft_tokens: int = 0,
        hc_mult: int = 0,
        hidden_size: int = 0,
    ) -> Geometry: ...
    @property
    def full_block_bytes(self) -> int: ...
    @property
    def swa_block_bytes(self) -> int: ...
    @property
    def state_slot_bytes(self) -> int: ...
    @property
    def c4_ring(self) -> int: ...
    @property
    def c128_banks(self) -> int: ...
    @property
    def swa_page_bytes(self) -> int: ...
    @property
    def c4_page_bytes(self) -> int: ...
    @property
    def c128_page_bytes(self) -> int: ...
    @property
    def index_page_bytes(self) -> int: ...
    @property
    def bytes_per_token(self) -> float: ...
    @property
    def request_fixed_bytes(self) -> int: ...

@final
class PoolSizes:
    """How many blocks of each group there are; id 0 of each group, the poison block, comes on top."""

    def __new__(cls, *, full_blocks: int, swa_blocks: int, state_slots: int) -> PoolSizes: ...
    @property
    def full_blocks(self) -> int: ...
    @property
    def swa_blocks(self) -> int: ...
    @property
    def state_slots(self) -> int: ...

@final
class Limits:
    """The largest legal step and queue. Everything is sized from these at start.

    prefix_cache        blocks outlive their requests; the runtime must then copy state as plans say
    checkpoint_tokens   tokens between window checkpoints inside a prompt; 0: only where it forks and ends
    max_steps_in_flight with 2, a request is planned again while its token is being sampled: `token_sources` of a step
                        says which sample of the step before each token is
    max_draft_tokens    tokens behind the next one that a decoding request brings to be verified, at most as many as the
                        geometry has room for; then nothing is forwarded, and a request is in one step at a time
    """

    def __new__(
        cls,
        *,
        max_model_len: int,
        max_num_requests: int,
        max_num_tokens: int,
        max_queued_requests: int,
        max_queued_tokens: int,
        vocab_size: int,
        max_steps_in_flight: int = 1,
        aging_steps: int = 256,
        prefix_cache: bool = False,
        checkpoint_tokens: int = 0,
        max_draft_tokens: int = 0,
    ) -> Limits: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def max_num_requests(self) -> int: ...
    @property
    def max_num_tokens(self) -> int: ...
    @property
    def max_queued_requests(self) -> int: ...
    @property
    def max_queued_tokens(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_steps_in_flight(self) -> int: ...
    @property
    def aging_steps(self) -> int: ...
    @property
    def prefix_cache(self) -> bool: ...
    @property
    def checkpoint_tokens(self) -> int: ...
    @property
    def max_draft_tokens(self) -> int: ...

@final
class Band:
    """What holds from some number of requests, running or waiting, on."""

    def __new__(
        cls, *, name: str, min_requests: int, max_num_requests: int, max_num_tokens: int, max_draft_tokens: int = 0
    ) -> Band: ...
    @property
    def name(self) -> str: ...
    @property
    def min_requests(self) -> int: ...
    @property
    def max_num_requests(self) -> int: ...
    @property
    def max_num_tokens(self) -> int: ...
    @property
    def max_draft_tokens(self) -> int:
        """Most drafts of a request that are verified in one step."""

@final
class Recipe:
    """Limits per concurrency; the first band holds from one request on, and none asks for more than `Limits`.

    More requests switch up at once; fewer switch down after dwell_steps steps in a row that are margin_percent below
    the band's edge. Checked by `Core`.
    """

    def __new__(
        cls, *, name: str, bands: Sequence[Band], dwell_steps: int = 16, margin_percent: int = 25
    ) -> Recipe: ...
    @property
    def name(self) -> str: ...
    @property
    def bands(self) -> list[Band]: ...
    @property
    def dwell_steps(self) -> int: ...
    @property
    def margin_percent(self) -> int: ...

@final
class MemoryPlan:
    """Outcome of `plan_memory`: pool sizes, their bytes, and what they serve."""

    @property
    def sizes(self) -> PoolSizes: ...
    @property
    def full_bytes(self) -> int: ...
    @property
    def swa_bytes(self) -> int: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def transient_swa_blocks(self) -> int: ...
    @property
    def max_request_tokens(self) -> int:
        """The longest request (prompt and output) that these pools can hold alone."""
    def capacity(self, context: int) -> int:
        """Requests of `context` tokens that run at once."""

def plan_memory(geometry: Geometry, limits: Limits, total_bytes: int) -> MemoryPlan:
    """How many blocks of each group fit in `total_bytes`, poison blocks included.

    One state slot and the window blocks that window + in_flight - 1 tokens can touch per running request, in_flight
    being (1 + max_draft_tokens) * max_steps_in_flight, one transient term of window blocks per step in flight, and full
    blocks for the rest. Fewer than max_num_requests run at once where full
    blocks would be left for less than one request of max_model_len, or for less than 1024 tokens each.
    Raises ConfigError with the numbers.
    """

@final
class Field:
    """One array of a step inside the lent buffer."""

    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]:
        """Capacity; a step uses the leading part. Always int32, always at a multiple of 64 bytes."""

@final
class Plan:
    """One decided step. Its arrays are in the lent buffer; these are the scalars."""

    @property
    def step_id(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_requests(self) -> int: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_c4(self) -> int: ...
    @property
    def num_c128(self) -> int: ...
    @property
    def num_prefill_tokens(self) -> int: ...
    @property
    def num_forwarded(self) -> int:
        """Tokens that the step before samples; `token_sources` says which sample each is."""
    @property
    def num_draft_tokens(self) -> int:
        """Tokens that are drafts, to be verified: the last `draft_widths[b]` of row b."""
    @property
    def max_seq_len(self) -> int: ...
    @property
    def band(self) -> int:
        """Place in the recipe of the band under which the step was chosen."""
    @property
    def num_restores(self) -> int:
        """State slots to copy before the step's kernels, from `restore_sources` to `restore_targets`."""
    @property
    def num_saves(self) -> int:
        """State slots to copy after the step's kernels, from `save_sources` to `save_targets`."""
    @property
    def started_request_ids(self) -> list[int]:
        """Requests that start, or start again after a preemption, in this step."""
    @property
    def started_cached_tokens(self) -> list[int]:
        """How many tokens of each of them the prefix cache had."""
    @property
    def request_ids(self) -> list[int]:
        """Request of each row, in row order."""
    @property
    def sample_request_ids(self) -> list[int]:
        """Request of each sample, in the order of `sample_tokens`, in order of position."""
    @property
    def sample_positions(self) -> list[int]:
        """How many tokens the request had generated before each sample (0 for its first), drafts included."""
    @property
    def sample_counts(self) -> list[int]:
        """Samples of each request that has some: one, and one per draft that it brought."""

@final
class StepDone:
    """Event: a step completed. tokens[i] belongs to sample i of that plan; non_finite lists samples with NaN or inf.

    accepted   per request that was sampled (as `Plan.sample_counts`): how many of its drafts are right. Those samples
               repeat the drafts, the one behind the last of them counts too, and what is behind that is dropped.
               Empty: no draft of the step is right
    drafts     per request that was sampled, max_draft_tokens tokens to verify next, -1 from where there are no more.
               Empty: there are none
    """

    def __new__(
        cls,
        step_id: int,
        tokens: Sequence[int] | _Int32s,
        non_finite: Sequence[int] = (),
        accepted: Sequence[int] = (),
        drafts: Sequence[int] | _Int32s = (),
    ) -> StepDone: ...

@final
class Stopped:
    """Event: the text layer found a stop string; the request ends as if by a stop token."""

    def __new__(cls, request_id: int) -> Stopped: ...

@final
class Tick:
    """Event: time passed; microseconds of a monotonic clock."""

    def __new__(cls, now_us: int) -> Tick: ...

@final
class Message:
    """What workers say to each other about rooms: a word, the room it is about, and the word's fields in order.

    Blocks of the other side are (index, life of that index).

    join        num_tokens, hash
    want
    offer       num_tokens, hash, num_fences, num_cached_tokens, full blocks, swa blocks, state block, aux block
    chunk_done  chunk from 1, items, digest
    final       chunks, digest
    commit
    abort       reason
    abort_ack   drained
    refuse      "unknown", "closed", "prompt_mismatch" or "busy"
    beat        count, xor; about no room
    rooms       list of (room, epoch); about no room

    Raises ValueError or TypeError where word and fields do not match.
    """

    def __new__(cls, word: str, room: int = 0, epoch: int = 0, fields: tuple[object, ...] = ()) -> Message: ...
    @property
    def word(self) -> str: ...
    @property
    def room(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def fields(self) -> tuple[object, ...]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

@final
class Transfer:
    """The other side of a request: computed there, or decoded, as this core's side has it.

    room        0 to 2^63 - 1, the same on both sides; used once per epoch
    peer        incarnation of the other worker, 128 bits
    peer_ranks  ranks of it that write to this worker (None: rank 0); a prefill worker is asked by rank 0 and needs none
    on_failure  "recompute" (here, once) or "fail"
    """

    def __new__(
        cls,
        *,
        room: int,
        peer: int,
        epoch: int = 0,
        peer_ranks: Sequence[int] | None = None,
        on_failure: str = "recompute",
    ) -> Transfer: ...

@final
class RoomEvent:
    """Event: something happened to rooms. A key is (room, epoch, incarnation of the peer)."""

    @staticmethod
    def peer(incarnation: int, rank: int, message: Message) -> RoomEvent:
        """A rank of a peer said something."""
    @staticmethod
    def ticket_ended(ticket: int, landed: bool, digest: int = 0) -> RoomEvent:
        """A transfer has landed, or failed. digest: a sum over its items, each with its place in the prompt."""
    @staticmethod
    def inspected(
        key: tuple[int, int, int],
        *,
        first_token: int,
        tag: tuple[int, int, int],
        digests: Sequence[int],
        non_finite: bool = False,
    ) -> RoomEvent:
        """The answer to a check: what the aux row says, and the digest over what landed from each writing rank."""
    @staticmethod
    def peer_gone(incarnation: int, evidence: str | None = None) -> RoomEvent:
        """A peer's process is gone. Without evidence that counts on this transport, quarantine stays."""
    @staticmethod
    def fenced(incarnation: int, evidence: str) -> RoomEvent:
        """This worker cut a peer's way in."""
    @staticmethod
    def reconnected(incarnation: int, num_fences: int) -> RoomEvent:
        """A peer that lives connects anew; to be told before the new connection carries anything.

        num_fences   how often the peer has cut this worker's way in, as the handshake of the connection says
        """

@final
class Posting:
    """A ticket to be posted: (first block here, first block there, how many) per group, state and aux last."""

    @property
    def key(self) -> tuple[int, int, int]: ...
    @property
    def ticket(self) -> int: ...
    @property
    def full(self) -> list[tuple[int, int, int]]: ...
    @property
    def swa(self) -> list[tuple[int, int, int]]: ...
    @property
    def state(self) -> list[tuple[int, int, int]]: ...
    @property
    def aux(self) -> list[tuple[int, int, int]]: ...

@final
class Errands:
    """What there is to do for rooms, in this order."""

    @property
    def resets(self) -> list[tuple[str, int]]:
        """("state", slot) and ("aux", row), to be reset before the messages are sent."""
    @property
    def messages(self) -> list[tuple[int, int, Message]]:
        """Incarnation, rank, and what to say to it."""
    @property
    def postings(self) -> list[Posting]: ...
    @property
    def checks(self) -> list[tuple[int, tuple[int, int, int], int]]:
        """Request, key and aux row of what has landed; to be answered with `RoomEvent.inspected`."""

@final
class Outcome:
    """What `advance` settled: an entry per token that counts and per request that ended without one.

    In order of the events, and of the samples within a step; last, what `plan` had to end.
    """

    @property
    def request_ids(self) -> list[int]: ...
    @property
    def tokens(self) -> list[int]:
        """The token, or -1 where a request ended without one."""
    @property
    def finished(self) -> list[int]:
        """0 goes on, 1 stop token, 2 length, 3 stopped by the text layer, 4 non-finite logits, 5 violation.

        6 its prompt did not come from the other side, or did not get there.
        """
    @property
    def to_zero(self) -> list[tuple[str, int]]:
        """("full" | "swa" | "state", block) of each block to fill with zeros before the next step runs.

        They held what is not finite, and nobody has them now. Told once.
        """
    @property
    def errands(self) -> Errands:
        """What there is to do for rooms."""

@final
class Core:
    """Plan out, events in. Thread-safe; every call is short; no call blocks."""

    def __new__(cls, geometry: Geometry, sizes: PoolSizes, limits: Limits, recipe: Recipe | None = None) -> Core:
        """All blocks are free. Without a recipe the limits hold at every concurrency. Raises ConfigError."""
    @property
    def step_fields(self) -> list[Field]:
        """The step layout: every array, its capacity and offset."""
    @property
    def step_bytes(self) -> int: ...
    @property
    def seed_shape(self) -> tuple[int, int]:
        """Rows of host memory that draft layers start from, and values of a row: all hc_mult * hidden_size of them."""
    @property
    def layout_hash(self) -> str: ...
    def submit(
        self,
        prompt: Sequence[int] | _Int32s,
        *,
        max_tokens: int,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        priority: int = 0,
        cache_salt: str | None = None,
        no_cache: bool = False,
        transfer: Transfer | None = None,
    ) -> int:
        """Validates and enqueues; returns the request id. Raises InvalidRequest or QueueFull, changing nothing.

        priority   lower is earlier; one level is worth aging_steps steps of waiting
        cache_salt shares prefixes with requests of the same salt only; at most 256 bytes
        no_cache   reads nothing of the prefix cache and leaves nothing in it
        transfer   its other side, on a core that was told which one it is itself
        """
    def open_rooms(
        self,
        side: str,
        *,
        transport: str,
        max_rooms: int,
        max_bytes_in_flight: int,
        deadline_ms: int = 300_000,
        dp: tuple[int, int] | None = None,
    ) -> None:
        """From now on requests may have another side; told once, before the first of them.

        side                 "prefill" or "decode"
        transport            "in_process", "tcp", "shared_memory", "nixl_cma", "nixl_tcp" or "nixl_rdma": what counts as
                             evidence that a writer is gone depends on it
        max_rooms            live and remembered ones
        max_bytes_in_flight  to one peer; a single ticket may be larger
        deadline_ms          how long a request waits for its other side, which may never hear of the room
        dp                   which rank of a prefill worker this is, and of how many: it takes rooms with
                             room % size == rank, and refuses all others
        """
    def plan(self, memory: _Int32s) -> Plan | None:
        """Decides the next step and fills `memory` (writable, contiguous, at least step_bytes, aligned to 64).

        None if there is nothing to do now; then `advance` once with what happened, or with (), before waiting for more:
        it tells of requests that this call had to end. The memory is lent for the call alone. Of the block tables, only
        rows that differ from what the core last left in the memory are written: whoever else writes to them overwrites
        its last two words of step_bytes as well, and they are written whole. So they are in a memory that is not one of
        the four it knows. Raises Misuse when max_steps_in_flight steps are not done, EngineClosed after shutdown,
        BufferError for memory that does not fit.
        """
    def advance(self, events: Sequence[StepDone | Stopped | RoomEvent | Tick]) -> Outcome:
        """Applies what happened, in order, or refuses all of it and changes nothing.

        Steps complete in the order in which they were planned. Stopped for a request that has ended is no error.
        A step that failed on the device: abort its requests, then report it done with any tokens; they are nobody's.
        Raises Misuse for a step that is not in flight, samples too many or too few, tokens outside the vocabulary, and
        drafts that were not brought or are not what was sampled.
        """
    def abort(self, request_id: int) -> bool:
        """True if it was waiting or running. Idempotent; an unknown id is False."""
    def stats(self) -> dict[str, int]:
        """Counters and gauges.

        num_running, num_prefilling, num_waiting, num_queued_tokens, num_steps_in_flight, oldest_waiting_us
        num_preemptions    times that a running request gave its blocks back and went back to the queue
        num_stalls         times that nothing could move (0 unless a pool is broken)
        recipe_band, num_recipe_switches   the band in force, and how often it changed
        num_violations     broken invariants found; each cost at most one request
        {full,swa,state}_{free,open,sealed,shared,cached,retired,quarantined}   blocks by state; their sum is _capacity
        {full,swa,state}_reserved   free blocks promised to requests that run
        prefix_queries, prefix_query_tokens, prefix_hit_tokens   requests that were looked up, their tokens, those found
        prefix_miss_{never_seen,evicted_full,evicted_window,salt}_tokens   the others; all of these add up
        num_window_checkpoints      places where a request can start
        num_evicted_blocks, num_evicted_windows   full blocks and checkpoints that had to go
        """
    def explain(self, request_id: int) -> str:
        """What a request is doing and, if it waits, what for: a sentence for people."""
    def explain_recipe(self) -> str:
        """Which band of the recipe is in force, since when and why, and when it changes: a sentence for people."""
    def audit(self) -> None:
        """Raises Violation unless every block is in exactly one place."""
    def record(self) -> None:
        """Records every call from now on, which must be before the first. Raises ConfigError afterwards.

        A trace holds what came in, and checks of what came out: the same calls give the same plans on any machine.
        """
    def take_trace(self) -> bytes:
        """The bytes of the trace since the last time; put together, they are the trace. Empty if none is made."""
    def shutdown(self) -> None:
        """Ends every request, idempotent. Afterwards submit, plan and advance raise EngineClosed; stats still works."""

@final
class Replay:
    """What a replay found: how much was done again, and the first answer that was another."""

    @property
    def num_calls(self) -> int:
        """Calls that were made again, without the one that differs."""
    @property
    def num_requests(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def num_tokens(self) -> int:
        """Tokens of these steps, prompts included."""
    @property
    def is_complete(self) -> bool:
        """The last call is the shutdown: nothing is missing at the end."""
    @property
    def difference(self) -> str | None:
        """The first answer that is not what the trace says, and both; None if all are the same."""

def replay_trace(trace: bytes) -> Replay:
    """Makes the calls of a trace again. Raises TraceError for bytes that are damaged, cut, or none."""

def check_sampling(
    *,
    num_prompt_tokens: int,
    max_model_len: int,
    max_request_tokens: int,
    vocab_size: int,
    max_tokens: int | None,
    min_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    presence_penalty: float,
    frequency_penalty: float,
    repetition_penalty: float,
    logit_bias: Sequence[tuple[int, float]],
    allowed_token_ids: Sequence[int] | None,
    seed: int | None,
    n: int,
    stop: Sequence[str],
    stop_token_ids: Sequence[int],
    logprobs: int | None,
    max_logprobs: int = 20,
) -> int:
    """The one validator behind every door. Returns max_tokens resolved; raises InvalidRequest naming the field."""
