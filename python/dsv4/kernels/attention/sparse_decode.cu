// Sparse decode attention on Hopper: one token's 64 heads against its window and compressed rows (sparse_decode.py says
// what is computed; docs/notes/attention.md why it is cut this way).
//
//     global rows ─▶ producer warps ─▶ ring of stages, 64 keys of bf16 ─▶ two consumer groups ─▶ out
//                    E4M3 x scale                      full ─▶   ◀─ empty
//
// A consumer group owns half of its block's channels of the result, O [64, 128 BLOCKS'] in registers. Per stage:
//
//     S = Q Kᵀ, half of it per group ─▶ halves exchanged ─▶ P = 2^(c S - c m), m the running maximum ─▶ O = α O + P K
//
// Both groups hold all of S and compute the same P, which goes to the second product from registers.
//
// BLOCKS = 1: a block has all 512 channels; each group takes 256 of them through both products.
// BLOCKS = 2: two blocks of a cluster have 256 channels each, convert only these, and add what the other sends them.
//
// A score is (channels 0..255) + (channels 256..511), each summed in one chain, and keys are taken in order, in both:
// how many blocks share a token changes no bit of its result.
//
// Channels of the E4M3 part lie in shared memory as 0 2 1 3, 4 6 5 7, ...: even and odd bytes of a word become pairs
// with fewer instructions. Q is permuted when it is loaded, O when it is stored; the rotary part is in order.
#include "machine.cuh"

using namespace machine;

constexpr u32 KEYS = 64;           // of a stage, and of a unit of work
constexpr u32 WINDOW = 128;
constexpr u32 TILE = 8192;         // 64 rows of 64 channels
constexpr u32 THREADS = 384;       // two consumer groups, one producer group
constexpr u32 ROW = 576, CODES = 448, SCALES = 8;
constexpr float LOG2E = 1.4426950408889634f;

enum Kind : i32 { NONE, SELECTED, VISIBLE };

struct Arguments {
    const u16* q;                  // [T, H, 512] bf16
    const float* sink;             // [H]
    const u8* window_pool;
    i64 window_stride;             // bytes of a page of 64 rows
    const i32* window_slots;       // [T, 128]
    const i32* positions;          // [T]
    const u8* extra_pool;
    i64 extra_stride;              // bytes of a page
    const i32* extra;              // slots [T, most] or block table [B, most / 2]
    i64 extra_row;                 // entries from one row of `extra` to the next
    const i32* token_rows;         // [T], VISIBLE only
    u16* out;                      // [T, H, 512] bf16
    i32 num_tokens;
    i32 groups;                    // of 64 heads
    i32 kind;
    i32 most;                      // compressed rows that `extra` can name
    i32 ratio;
    i32 page_shift;                // log2 of the rows of a compressed page
    float scale;                   // of scores, times log2 e
    i32 unused;
    u32* timeline;                 // [3 groups, 256 stages, 4 events], with -DTIMELINE alone
};

// Clocks of the first block, to see who waits for whom; not in the kernel that serves.
#ifdef TIMELINE
#define MARK(group, n, event)                                                              \
    if (thread % 128 == 0 && block_index() == 0 && (n) < 256) {                            \
        store_word(a.timeline + ((group) * 256 + (n)) * 4 + (event), ticks());             \
    }
#else
#define MARK(group, n, event)
#endif

template <u32 BLOCKS> struct Layout {
    static constexpr u32 TILES = 8 / BLOCKS;
    static constexpr u32 STAGES = BLOCKS == 1 ? 2 : 4;
    static constexpr u32 STAGE = TILES * TILE;
    static constexpr u32 SCORES = 32 / BLOCKS;                        // a thread's part of S before the exchange
    static constexpr u32 GROUP_SCORES = SCORES * 4 * 128;             // bytes of one group's part
    static constexpr u32 Q = 0;
    static constexpr u32 K = STAGE;
    static constexpr u32 EXCHANGE = K + STAGES * STAGE;               // [2 groups]
    static constexpr u32 ARRIVING = EXCHANGE + 2 * GROUP_SCORES;      // [2 turns, 2 groups], from the other block
    static constexpr u32 FULL = ARRIVING + (BLOCKS == 2 ? 4 * GROUP_SCORES : 0);
    static constexpr u32 EMPTY = FULL + 8 * STAGES;                   // [stages, 2 halves]
    static constexpr u32 ARRIVED = EMPTY + 16 * STAGES;               // [2 turns, 2 groups]
    static constexpr u32 BYTES = ARRIVED + 32;
};

static_assert(Layout<1>::BYTES == 229456);  // hopper.py asks for so much
static_assert(Layout<2>::BYTES == 213120);

enum Named : u32 { QUERIES = 1, WRITTEN = 2, READ = 3 };              // READ + g: group g's part has been read

// ---------------------------------------------------------------------------------------------- the keys of a token

// Unit u of a token is window keys 64 u.. for u < 2 and compressed rows 64 (u - 2).. from there.
struct Token {
    i64 t;
    i32 head;                      // the first of 64
    i32 position;
    i32 count;                     // compressed rows
    i32 first, last;               // units

    DEVICE Token(const Arguments& a, i32 item, i32 at) : t(item / a.groups), head(item % a.groups * 64), position(at) {
        count = a.kind == NONE ? 0 : (position + 1) / a.ratio;
        if (a.kind == SELECTED && count > a.most) count = a.most;
        const i32 unseen = i32(WINDOW) - 1 - position;
        first = unseen > 0 ? unseen / i32(KEYS) : 0;
        last = i32(WINDOW / KEYS) + (count + i32(KEYS) - 1) / i32(KEYS);
        if (last == first) last++;  // position -1, a row that is idle: one unit without keys
    }

    // Keys low..high of a unit exist.
    DEVICE i32 low(i32 u) const {
        const i32 unseen = i32(WINDOW) - 1 - position - u * i32(KEYS);
        return u < 2 && unseen > 0 ? unseen : 0;
    }
    DEVICE i32 high(i32 u) const {
        const i32 left = count - (u - 2) * i32(KEYS);
        return u < 2 || left > i32(KEYS) ? i32(KEYS) : left;
    }
};

DEVICE i32 position_of(const Arguments& a, i32 item) { return i32(load_word(a.positions + item / a.groups)); }

struct Work {                      // which tokens a block, or a pair of blocks, takes
    i32 first, step, end;
};

template <u32 BLOCKS> DEVICE Work work_of(const Arguments& a) {
    return {i32(block_index() / BLOCKS), i32(num_blocks() / BLOCKS), a.num_tokens * a.groups};
}

// ---------------------------------------------------------------------------------------------- producer

// Where a row lies; nothing of a row that does not exist is read.
struct Row {
    const u8* data;
    const u8* scales;
    bool exists;
};

// One row per thread and half unit: slot x 4, + 2 if compressed, + 1 if it exists. Slots have 28 bits at most: more rows
// of 576 bytes are in no device's memory.
using Entry = u32;
constexpr Entry END = 0x80000000;  // no half unit is left

// Walks the half units of all tokens of a block, ahead of the loads.
struct Walk {
    const Arguments& a;
    Work work;
    i32 item, unit, half, lane_row;
    Token token;
    i32 coming;                    // the position of the token after this one
    const i32* window;
    const i32* extra;

    DEVICE Walk(const Arguments& arguments, Work todo, i32 row)
        : a(arguments), work(todo), item(todo.first), unit(0), half(0), lane_row(row),
          token(arguments, todo.first, position_of(arguments, todo.first)) {
        enter();
    }

    DEVICE void enter() {
        coming = item + work.step < work.end ? position_of(a, item + work.step) : 0;
        unit = token.first;
        window = a.window_slots + token.t * WINDOW;
        const i64 row = a.kind == VISIBLE ? i64(i32(load_word(a.token_rows + token.t))) : token.t;
        extra = a.extra + row * a.extra_row;
    }

    DEVICE bool over() const { return item >= work.end; }

    DEVICE void next() {
        if (over()) return;
        half ^= 1;
        if (half || ++unit < token.last) return;
        item += work.step;
        if (over()) return;
        token = Token(a, item, coming);
        enter();
        const u16* q = a.q + (token.t * a.groups * 64 + token.head) * 512;   // its turn comes soon
        UNROLL for (u32 i = 0; i < 4; i++) prefetch(q + (thread_index() % 128 + 128 * i) * 64);
    }

    DEVICE bool exists() const {
        const i32 row = half * 32 + lane_row;
        return !over() && row >= token.low(unit) && row < token.high(unit);
    }

    // What `guess` says of the first window slot is taken without asking again.
    DEVICE Entry entry_of(u32 slot) const { return slot << 2 | u32(unit >= 2) << 1 | u32(exists()); }

    DEVICE Entry entry() const {
        if (over()) return END;
        if (!exists()) return 0;
        const i32 key = unit * i32(KEYS) + half * 32 + lane_row;
        if (unit < 2) return entry_of(load_word(window + key));
        const i32 row = key - i32(WINDOW);
        if (a.kind == SELECTED) return entry_of(load_word(extra + row));
        return entry_of(load_word(extra + (row >> 1)) * 2 + (row & 1));
    }

    DEVICE Entry advance() {
        next();
        return entry();
    }
};

DEVICE Row locate(const Arguments& a, Entry e) {
    const bool compressed = e & 2;
    const u32 slot = (e & ~END) >> 2, shift = compressed ? a.page_shift : 6;
    const i64 page = slot >> shift;
    const u32 at = slot & ((1u << shift) - 1);
    const u8* start = compressed ? a.extra_pool + page * a.extra_stride : a.window_pool + page * a.window_stride;
    return {start + at * ROW, start + (ROW << shift) + at * SCALES, (e & 1) != 0};
}

DEVICE Words zeros() { return {{0, 0, 0, 0}}; }
DEVICE float minus_infinity() { return real(0xFF800000); }

// Four E4M3 codes -> bf16 of channels 0 2 and 1 3. The bits s eeee mmm at the places s 0000 eeee mmm 0000 of a bf16
// are the value times 2^-120, subnormals included; the scale makes it exact.
DEVICE void unpack(u32 codes, u32 scale, u32& even, u32& odd) {
    even = product_of_pairs(((codes << 4) & 0x07F007F0) | ((codes << 8) & 0x80008000), scale);
    odd = product_of_pairs(((codes >> 4) & 0x07F007F0) | (codes & 0x80008000), scale);
}

// 2^(e - 127 + 120) as bf16 in both halves; what no store writes (and 255, NaN) is a NaN.
DEVICE u32 scale_of(Pair scales, u32 tile) {
    const u32 e = ((tile < 4 ? scales.x[0] : scales.x[1]) >> (8 * (tile % 4))) & 0xFF;
    return e > 134 ? 0x7FFF7FFF : (e + 120) * 0x00800080;
}

DEVICE void put_codes(u32 at, Words codes, u32 scale) {
    UNROLL for (u32 i = 0; i < 2; i++) {
        Words w;
        unpack(codes.x[2 * i], scale, w.x[0], w.x[1]);
        unpack(codes.x[2 * i + 1], scale, w.x[2], w.x[3]);
        store_shared(at ^ (16 * i), w);
    }
}

// A thread has a quarter of a row: 16 of every 64 channels.
template <u32 TILES> struct Quarter {
    Words codes[TILES];
    Words second;                  // rotary channels are twice as many bytes
    Pair scales;
};

template <u32 TILES> DEVICE void fetch(Quarter<TILES>& x, const Row& row, u32 k, u32 tile, u32 quarter) {
    if (k + 1 < TILES || tile < 7) {
        x.codes[k] = row.exists ? load_words(row.data + tile * 64 + quarter * 16) : zeros();
    } else {
        const u8* at = row.data + CODES + quarter * 32;
        x.codes[k] = row.exists ? load_words(at) : zeros();
        x.second = row.exists ? load_words(at + 16) : zeros();
    }
}

DEVICE Pair scales_of(const Row& row) { return row.exists ? load_pair(row.scales) : Pair{{0, 0}}; }

template <u32 TILES> DEVICE void fetch_all(Quarter<TILES>& x, const Row& row, u32 first_tile, u32 quarter) {
    x.scales = scales_of(row);
    UNROLL for (u32 k = 0; k < TILES; k++) fetch(x, row, k, first_tile + k, quarter);
}

template <u32 TILES> DEVICE void put(u32 at, const Quarter<TILES>& x, u32 k, u32 tile, Pair scales) {
    if (k + 1 < TILES || tile < 7) {
        put_codes(at, x.codes[k], scale_of(scales, tile));
    } else {
        store_shared(at, x.codes[k]);
        store_shared(at ^ 16, x.second);
    }
}

// Asks for this thread's share of the lines that its block reads of a row: five, or three of each half, and the scales'.
template <u32 BLOCKS> DEVICE void to_l2(const Row& row, u32 first_tile, u32 quarter) {
    if (!row.exists) return;
    prefetch(row.data + first_tile * 64 + quarter * (128 / BLOCKS + (BLOCKS == 2 ? 32 : 0)));
    if (quarter == 0) prefetch(row.scales);
    if (BLOCKS == 1 && quarter == 1) prefetch(row.data + 512);
}

// Half a stage at a time: unpack what has come, ask for the next half, and only then for what lies further ahead. A warp
// has six scoreboards, so who waits for one of its loads waits for later ones too: nothing loaded is looked at between
// the request of a half and its unpacking, and rows come to L2 a half before they are loaded to make that wait short.
template <u32 BLOCKS> DEVICE void produce(const Arguments& a, u32 base, u32 thread) {
    using L = Layout<BLOCKS>;
    const u32 warp = thread / 32, lane = thread % 32, quarter = lane % 4;
    const u32 lane_row = warp * 8 + lane / 4;
    const u32 first_tile = BLOCKS == 1 ? 0 : cluster_rank() * L::TILES;
    const u32 place = base + L::K + lane_row * 128 + (((2 * quarter) ^ (lane_row & 7)) << 4);
    const Work work = work_of<BLOCKS>(a);
    if (work.first >= work.end) return;

    // Most tokens start with the first window slot: it need not wait for the position.
    const u32 guess = load_word(a.window_slots + i64(work.first / a.groups) * WINDOW + lane_row);
    Walk walk(a, work, i32(lane_row));
    Quarter<L::TILES> x;
    fetch_all(x, locate(a, walk.unit == 0 ? walk.entry_of(guess) : walk.entry()), first_tile, quarter);
    Entry soon = walk.advance(), later = walk.advance();   // half units after the one in x
    for (u32 n = 0;; n++) {
        const u32 stage = n % L::STAGES, at = place + stage * L::STAGE;
        UNROLL for (u32 half = 0; half < 2; half++) {
            MARK(2, n, half * 2);
            wait(base + L::EMPTY + 16 * stage + 8 * half, (n / L::STAGES + 1) % 2);
            UNROLL for (u32 k = 0; k < L::TILES; k++) put(at + half * 4096 + k * TILE, x, k, first_tile + k, x.scales);
            MARK(2, n, half * 2 + 1);
            const Row next = locate(a, soon), ahead = locate(a, later);
            if (half == 1) {
                fence_matrix_reads();
                sync_warp();
                if (lane == 0) arrive(base + L::FULL + 8 * stage);
                if (soon == END) return;
            }
            fetch_all(x, next, first_tile, quarter);
            to_l2<BLOCKS>(ahead, first_tile, quarter);
            soon = later;
            later = walk.advance();
        }
    }
}

// ---------------------------------------------------------------------------------------------- consumers

// Rows g and g + 8 of a warp's 16 belong to a thread; of every eight columns, two.
template <u32 BLOCKS> struct Consumer {
    using L = Layout<BLOCKS>;
    static constexpr u32 COLUMNS = 128 / BLOCKS;   // of O, per thread: two rows of 64 / BLOCKS pairs

    const Arguments& a;
    u32 base, group, thread, lane;
    u32 stage_count;               // stages taken so far, over all tokens
    float o[COLUMNS];
    float s[L::SCORES];
    float m[2], sum[2];            // the running maximum of scores; this thread's part of the denominator

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(index / 128), thread(index % 128), lane(index % 32), stage_count(0) {}

    DEVICE u32 stage(u32 n) const { return base + L::K + n % L::STAGES * L::STAGE; }

    DEVICE u32 head_row(u32 r) const { return thread / 32 * 16 + lane / 4 + 8 * r; }

    DEVICE void begin() {
        UNROLL for (u32 j = 0; j < COLUMNS; j++) o[j] = 0;
        UNROLL for (u32 r = 0; r < 2; r++) {
            m[r] = -1e30f;         // no score yet; below all, and finite, so that a token without keys gets zeros
            sum[r] = 0;
        }
    }

    // Q [64, 512 / BLOCKS] of an item to shared memory, by both groups; the products of the item before have read theirs.
    DEVICE void load_queries(i32 item) {
        constexpr u32 PIECES = 64 * L::TILES * 8 / 256, BATCH = 8;   // of 16 bytes, per thread
        const u32 first_tile = BLOCKS == 1 ? 0 : cluster_rank() * L::TILES;
        const u16* q = a.q + i64(item) * 64 * 512 + first_tile * 64;
        UNROLL for (u32 from = 0; from < PIECES; from += BATCH) {
            Words x[BATCH];
            UNROLL for (u32 i = 0; i < BATCH; i++) {
                const u32 piece = group * 128 + thread + 256 * (from + i);
                x[i] = load_words(q + piece / (8 * L::TILES) * 512 + piece % (8 * L::TILES) * 8);
            }
            UNROLL for (u32 i = 0; i < BATCH; i++) {
                const u32 piece = group * 128 + thread + 256 * (from + i);
                const u32 head = piece / (8 * L::TILES), chunk = piece % (8 * L::TILES), tile = chunk / 8;
                const u32 at = base + L::Q + tile * TILE + head * 128 + (((chunk % 8) ^ (head & 7)) << 4);
                store_shared(at, first_tile + tile < 7 ? paired(x[i]) : x[i]);
            }
        }
        fence_matrix_reads();
    }

    // Channels in order -> 0 2 1 3 of every four, and back: the permutation is its own inverse.
    DEVICE static Words paired(Words x) {
        return {{bytes_of(x.x[0], x.x[1], 0x5410), bytes_of(x.x[0], x.x[1], 0x7632),
                 bytes_of(x.x[2], x.x[3], 0x5410), bytes_of(x.x[2], x.x[3], 0x7632)}};
    }

    // Starts s = Q Kᵀ: 256 channels of all keys (BLOCKS = 1), or of this group's 32 keys (BLOCKS = 2).
    DEVICE void start_scores(u32 n) {
        wait(base + L::FULL + 8 * (n % L::STAGES), n / L::STAGES % 2);
        const Operand q(unknown(base) + L::Q + (BLOCKS == 1 ? group * 4 * TILE : 0), 16, 1024);
        const Operand k(stage(n) + group * (BLOCKS == 1 ? 4 * TILE : 32 * 128), 16, 1024);
        matrix_fence();
        UNROLL for (u32 i = 0; i < 16; i++) {
            const u32 on = i / 4 * TILE + i % 4 * 32;
            product(s, q.after(on), k.after(on), i > 0);
        }
        matrix_commit();
    }

    DEVICE void put(u32 at, const float* x, u32 count) const {
        UNROLL for (u32 j = 0; j < count / 4; j++) {
            const Words w = {{bits(x[4 * j]), bits(x[4 * j + 1]), bits(x[4 * j + 2]), bits(x[4 * j + 3])}};
            store_shared(at + j * 2048 + thread * 16, w);
        }
    }

    DEVICE u32 arriving(u32 n) const { return base + L::ARRIVING + (n % 2 * 2 + group) * L::GROUP_SCORES; }
    DEVICE u32 arrived(u32 n) const { return base + L::ARRIVED + (n % 2 * 2 + group) * 8; }

    // This block's part of the scores of 32 keys, on its way to the other block's same group. The other block has read
    // what lay there two stages ago: it says so by the part of the stage between, which is received before.
    DEVICE void send(u32 n) {
        const u32 peer = cluster_rank() ^ 1, there = remote(arriving(n), peer), signal = remote(arrived(n), peer);
        if (thread == 0) expect_bytes(arrived(n), L::GROUP_SCORES);
        UNROLL for (u32 j = 0; j < L::SCORES / 4; j++) {
            const Words w = {{bits(s[4 * j]), bits(s[4 * j + 1]), bits(s[4 * j + 2]), bits(s[4 * j + 3])}};
            store_remote(there + j * 2048 + thread * 16, w, signal);
        }
    }

    // The other block's part of the same keys, added.
    DEVICE void receive(u32 n, float (&x)[L::SCORES]) {
        wait_for_remote(arrived(n), n / 2 % 2);
        UNROLL for (u32 j = 0; j < L::SCORES / 4; j++) {
            const Words w = load_shared(arriving(n) + j * 2048 + thread * 16);
            UNROLL for (u32 i = 0; i < 4; i++) x[4 * j + i] += real(w.x[i]);
        }
    }

    // All scores of the stage, x [2 rows, 64 keys], from both groups' parts. `last`: no stage follows.
    DEVICE void exchange(u32 n, bool last, const float (&part)[L::SCORES], float (&x)[32]) {
        const u32 mine = base + L::EXCHANGE + group * L::GROUP_SCORES, other = group ^ 1;
        if (n > 0) sync_named(READ + group, 256);
        put(mine, part, L::SCORES);
        sync_named(WRITTEN, 256);
        const u32 theirs = base + L::EXCHANGE + other * L::GROUP_SCORES;
        UNROLL for (u32 j = 0; j < L::SCORES / 4; j++) {
            const Words w = load_shared(theirs + j * 2048 + thread * 16);
            UNROLL for (u32 i = 0; i < 4; i++) {
                const u32 at = 4 * j + i;
                if (BLOCKS == 1) {
                    x[at] = part[at] + real(w.x[i]);
                } else {  // group 0 has keys 0..31
                    x[at] = group == 0 ? part[at] : real(w.x[i]);
                    x[(at + 16) % 32] = group == 0 ? real(w.x[i]) : part[at];
                }
            }
        }
        if (!last) arrive_named(READ + other, 256);
    }

    DEVICE void hide(float (&x)[32], i32 low, i32 high) const {
        UNROLL for (u32 j = 0; j < 32; j++) {
            const i32 key = i32(j / 4 * 8 + lane % 4 * 2 + j % 2);
            if (key < low || key >= high) x[j] = minus_infinity();
        }
    }

    // Scores become weights; the denominator goes to the new maximum, and O has to, by `factor`.
    DEVICE void weigh(float (&x)[32], float (&factor)[2]) {
        UNROLL for (u32 r = 0; r < 2; r++) {
            float top = m[r];
            UNROLL for (u32 j = 0; j < 16; j++) top = larger(top, x[j / 2 * 4 + r * 2 + j % 2]);
            top = larger(top, real(shuffle_xor(bits(top), 1)));
            top = larger(top, real(shuffle_xor(bits(top), 2)));
            factor[r] = power_of_2((m[r] - top) * a.scale);
            m[r] = top;
            const float offset = -(top * a.scale);
            float added = 0;
            UNROLL for (u32 j = 0; j < 8; j++) {
                UNROLL for (u32 i = 4 * j + 2 * r; i < 4 * j + 2 * r + 2; i++) {
                    x[i] = power_of_2(fused(x[i], a.scale, offset));
                    added += x[i];
                }
            }
            sum[r] = fused(sum[r], factor[r], added);
        }
    }

    // What weighing left to do while products still run: O to the new maximum, P as pairs of bf16.
    DEVICE void apply(const float (&x)[32], const float (&factor)[2], u32 (&p)[16]) {
        UNROLL for (u32 j = 0; j < 16; j++) p[j] = pair_of_bf16(x[2 * j], x[2 * j + 1]);
        if (any_lane(factor[0] != 1 || factor[1] != 1)) {
            UNROLL for (u32 j = 0; j < COLUMNS; j++) o[j] *= factor[j / 2 % 2];
        }
    }

    // Starts O += P K over this group's channels, for 32 keys of a stage.
    DEVICE void start_values(u32 n, u32 half, const u32 (&p)[16]) {
        const Operand k(stage(n) + group * (4 / BLOCKS) * TILE, TILE, 1024);
        matrix_fence();
        UNROLL for (u32 i = 2 * half; i < 2 * half + 2; i++) {
            product_of_registers(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], k.after(i * 2048));
        }
        matrix_commit();
    }

    // All scores of stage n, which is unit u, from this group's part of them.
    DEVICE void collect(
        const Token& token, i32 u, u32 n, bool last, const float (&part)[L::SCORES], float (&x)[32]
    ) {
        MARK(group, n, 0);
        exchange(n, last && u + 1 == token.last, part, x);
        MARK(group, n, 1);
        if (token.low(u) > 0 || token.high(u) < i32(KEYS)) hide(x, token.low(u), token.high(u));
    }

    DEVICE void release(u32 n, u32 half) {
        if (lane == 0) arrive(base + L::EMPTY + 16 * (n % L::STAGES) + 8 * half);
    }

    DEVICE void finish_products() {
        matrix_wait<0>();
        settled(o);
        settled(s);
    }

    // The values of the last unit; the queries of the next item, if there is one, come meanwhile.
    DEVICE void end_token(u32 n, const u32 (&p)[16], i32 next) {
        start_values(n, 0, p);
        start_values(n, 1, p);
        if (next >= 0) load_queries(next);
        finish_products();
        release(n, 0);
        release(n, 1);
        stage_count = n + 1;
    }

    // All units of a token, by one block. The matrix units have the first half of a unit's values, the scores of the
    // next unit, and then, while those are weighed, the second half of the values. P is made after the products: ptxas
    // lets none run behind the program that fills registers which a later one reads.
    DEVICE void units(const Token& token, i32 next) {
        const bool last = next < 0;
        u32 p[16];
        float x[32], factor[2];
        u32 n = stage_count;
        start_scores(n);
        finish_products();
        collect(token, token.first, n, last, s, x);
        weigh(x, factor);
        apply(x, factor, p);
        for (i32 u = token.first + 1; u < token.last; u++, n++) {
            start_values(n, 0, p);
            start_scores(n + 1);
            start_values(n, 1, p);
            matrix_wait<2>();
            release(n, 0);
            matrix_wait<1>();
            settled(s);
            collect(token, u, n + 1, last, s, x);
            weigh(x, factor);
            MARK(group, n + 1, 2);
            weighed();
            matrix_wait<0>();
            settled(o);
            MARK(group, n, 3);
            release(n, 1);
            apply(x, factor, p);
        }
        end_token(n, p, next);
    }

    // Always true, which the compiler does not know: what the sums are made of is computed here, and not after a wait.
    DEVICE void weighed() const {
        if (sum[0] + sum[1] < 0) stop();
    }

    // By two blocks: scores are two units ahead. While the matrix units have them and the values of the unit before, the
    // next unit is received, exchanged and weighed; a part travels for as long as it takes to weigh and to multiply.
    DEVICE void units_of_two(const Token& token, i32 next) {
        const bool last = next < 0;
        u32 p[16];
        float part[L::SCORES], x[32], factor[2];
        u32 n = stage_count;
        start_scores(n);
        finish_products();
        send(n);
        copy(s, part);
        if (token.first + 1 < token.last) {
            start_scores(n + 1);
            finish_products();
        }
        receive(n, part);
        if (token.first + 1 < token.last) send(n + 1);
        collect(token, token.first, n, last, part, x);
        weigh(x, factor);
        apply(x, factor, p);
        copy(s, part);
        i32 u = token.first + 1;
        for (; u + 1 < token.last; u++, n++) {
            start_scores(n + 2);
            start_values(n, 0, p);
            start_values(n, 1, p);
            receive(n + 1, part);
            collect(token, u, n + 1, last, part, x);
            matrix_wait<2>();
            settled(s);
            send(n + 2);
            weigh(x, factor);
            MARK(group, n + 1, 2);
            weighed();
            matrix_wait<0>();
            settled(o);
            MARK(group, n, 3);
            release(n, 0);
            release(n, 1);
            apply(x, factor, p);
            copy(s, part);
        }
        if (u < token.last) {      // the last unit: no scores are to come
            start_values(n, 0, p);
            start_values(n, 1, p);
            receive(n + 1, part);
            collect(token, u, n + 1, last, part, x);
            weigh(x, factor);
            weighed();
            matrix_wait<0>();
            settled(o);
            release(n, 0);
            release(n, 1);
            apply(x, factor, p);
            n++;
        }
        end_token(n, p, next);
    }

    DEVICE static void copy(const float (&from)[L::SCORES], float (&to)[L::SCORES]) {
        UNROLL for (u32 j = 0; j < L::SCORES; j++) to[j] = from[j];
    }

    // O over its denominator; four lanes give each other eight channels each of four column groups.
    DEVICE void store(const Token& token) {
        UNROLL for (u32 r = 0; r < 2; r++) {
            sum[r] += real(shuffle_xor(bits(sum[r]), 1));
            sum[r] += real(shuffle_xor(bits(sum[r]), 2));
            const float sink = real(load_word(a.sink + token.head + head_row(r)));
            const float inverse = reciprocal(sum[r] + power_of_2(fused(sink, LOG2E, -(m[r] * a.scale))));
            const u32 channel = (BLOCKS == 1 ? 0 : cluster_rank() * 256) + group * (256 / BLOCKS);
            u16* out = a.out + (token.t * a.groups * 64 + token.head + head_row(r)) * 512 + channel;
            UNROLL for (u32 j = 0; j < COLUMNS / 16; j++) {
                Words w;
                UNROLL for (u32 i = 0; i < 4; i++) {
                    const u32 at = (4 * j + i) * 4 + 2 * r;
                    w.x[i] = pair_of_bf16(o[at] * inverse, o[at + 1] * inverse);
                }
                w = turned(w, lane);
                if (channel + j * 32 < 448) w = paired(w);
                store_words(out + j * 32 + lane % 4 * 8, w);
            }
        }
    }

    DEVICE void run() {
        const Work work = work_of<BLOCKS>(a);
        if (work.first < work.end) load_queries(work.first);
        for (i32 item = work.first; item < work.end; item += work.step) {
            const Token token(a, item, position_of(a, item));
            const i32 next = item + work.step < work.end ? item + work.step : -1;
            begin();
            sync_named(QUERIES, 256);
            if constexpr (BLOCKS == 1) {
                units(token, next);
            } else {
                units_of_two(token, next);
            }
            store(token);
        }
    }
};

template <u32 BLOCKS> DEVICE void attend(const Arguments& a) {
    using L = Layout<BLOCKS>;
    const u32 base = shared_base(), thread = thread_index();
    if (base % 1024) stop();       // the swizzle counts from multiples of this
    if (thread == 0) {
        for (u32 i = 0; i < L::STAGES; i++) {
            init_barrier(base + L::FULL + 8 * i, 4);    // a lane of each warp
            init_barrier(base + L::EMPTY + 16 * i, 8);
            init_barrier(base + L::EMPTY + 16 * i + 8, 8);
        }
        if (BLOCKS == 2) {
            for (u32 i = 0; i < 4; i++) init_barrier(base + L::ARRIVED + 8 * i, 1);
        }
        fence_barrier_init();
    }
    if (BLOCKS == 2) {
        sync_cluster();
    } else {
        sync_block();
    }
    if (thread >= 256) {
        fewer_registers<88>();
        produce<BLOCKS>(a, base, thread - 256);
    } else {
        more_registers<208>();
        Consumer<BLOCKS>(a, base, thread).run();
    }
    if (BLOCKS == 2) sync_cluster();   // a block outlives what the other sends it
}

KERNEL(THREADS) sparse_decode_1(const __grid_constant__ Arguments a) { attend<1>(a); }
KERNEL_OF_PAIRS(THREADS) sparse_decode_2(const __grid_constant__ Arguments a) { attend<2>(a); }

EMULATED(sparse_decode_1, Arguments)
EMULATED(sparse_decode_2, Arguments)
