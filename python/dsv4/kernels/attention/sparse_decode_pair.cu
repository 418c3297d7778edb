// Sparse decode attention on Hopper for few tokens: 64 heads against a window and compressed rows (sparse_decode.py says
// what is computed; docs/notes/attention.md why it is cut this way).
//
// A token belongs to two blocks of a cluster; each converts and multiplies 256 of the 512 channels.
//
//     slots ─▶ scouts ─▶ producers ─▶ ring of stages, 64 keys of bf16 ─▶ two groups of consumers ─▶ out
//              rows to L2   E4M3 x scale              full ─▶   ◀─ empty
//
// The groups take turns: the units 0, 2, 4, ... of a token, 64 keys each, belong to group 0, the others to group 1. Whose
// unit it is computes its scores over the block's channels, adds the other block's part, weighs them and leaves the
// weights for the other group. Both groups then add the unit to their half of the block's result, O [64, 128] in
// registers each:
//
//     S = Q Kᵀ + the other block's ─▶ P = 2^(c S - c m), m the maximum of this and all earlier units ─▶ O = α O + P K
//
// While one group weighs, the other multiplies. Units are added in order, by both: no bit of a result depends on how
// many tokens there are, or on which cluster has it.
#include "sparse_decode.cuh"

constexpr u32 CHANNELS = 256;      // of a block
constexpr u32 TILES = CHANNELS / 64;
constexpr u32 THREADS = 512;       // two groups of consumers, one of producers, one of scouts

// Shared memory, in bytes. [2]: one for each group of consumers.
constexpr u32 STAGES = 4;
constexpr u32 STAGE = TILES * TILE;
constexpr u32 Q = 0;
constexpr u32 K = STAGE;
constexpr u32 ARRIVING = K + STAGES * STAGE;       // [2], scores of the other block: [8, 128 threads] of 16
constexpr u32 WEIGHTS = ARRIVING + 2 * 16384;      // [2], P and its sums: [5, 128 threads] of 16
constexpr u32 MAXIMA = WEIGHTS + 2 * 10240;        // [2], m: [64 heads] of 16
constexpr u32 CREDITS = MAXIMA + 2 * 1024;         // [2, 4 warps] of 16, which nobody looks at
constexpr u32 ROWS = CREDITS + 8 * 16;             // [4 half units, 32 rows] of Found
constexpr u32 FULL = ROWS + 2048;                  // barriers: [stages]
constexpr u32 EMPTY = FULL + 8 * STAGES;           // [stages]
constexpr u32 FOUND = EMPTY + 8 * STAGES;          // [4 half units]
constexpr u32 TAKEN = FOUND + 32;                  // [4 half units]
constexpr u32 ARRIVED = TAKEN + 32;                // [2]
constexpr u32 CREDIT = ARRIVED + 16;               // [2, 4 warps]
constexpr u32 SHARED_BYTES = CREDIT + 64;

static_assert(SHARED_BYTES == 221520);             // hopper.py asks for so much

enum Named : u32 {                                 // those in pairs: one for each group of consumers
    QUERIES = 1,                                   // Q lies there
    MAXIMUM = 2,                                   // m of its unit can be read
    WEIGHED = 4,                                   // P of its unit, and what that sums to, can be read
    READ = 6,                                      // they have been read
};

// ---------------------------------------------------------------------------------------------- scouts

// What a producer needs to know of a row, in 16 bytes: where its data lies and its scales. Address 0: there is no such
// row, and nothing is read for it; address 1: no half unit is left.
struct Found {
    u64 data;
    Pair scales;

    DEVICE static Found of(Words w) { return {u64(w.x[1]) << 32 | w.x[0], {{w.x[2], w.x[3]}}}; }
    DEVICE Words words() const { return {{u32(data), u32(data >> 32), scales.x[0], scales.x[1]}}; }
    DEVICE bool exists() const { return data > 1; }
    DEVICE bool over() const { return data == 1; }
};

// Walks the units of all tokens of a block. A lane has one row of one half of each second unit.
struct Walk {
    const Arguments& a;
    Work work;
    i32 item, unit, row;           // the row of the unit
    Token token;
    i32 coming, coming_row;        // of the token after this one: its position, its row of `extra`
    const i32* window;
    const i32* extra;

    DEVICE Walk(const Arguments& arguments, Work todo, u32 warp, u32 lane)
        : a(arguments), work(todo), item(todo.first), unit(0), row(i32(warp % 2 * 32 + lane)),
          token(arguments, todo.first, position_of(arguments, todo.first)) {
        coming_row = row_of(a, item);
        enter();
        if (warp >= 2) next();
    }

    // Nothing is asked of memory for the token that begins, only for the one after it.
    DEVICE void enter() {
        unit = token.first;
        window = a.window_slots + token.t * WINDOW;
        extra = a.extra + (a.kind == VISIBLE ? i64(coming_row) : token.t) * a.extra_row;
        const i32 after = item + work.step < work.end ? item + work.step : item;
        coming = position_of(a, after);
        coming_row = row_of(a, after);
    }

    DEVICE bool over() const { return item >= work.end; }

    DEVICE void next() {
        if (over() || ++unit < token.last) return;
        item += work.step;
        if (over()) return;
        token = Token(a, item, coming);
        enter();
    }

    DEVICE bool exists() const { return !over() && row >= token.low(unit) && row < token.high(unit); }
    DEVICE bool compressed() const { return unit >= 2; }

    // The word that says where the row lies: a slot, or half of it. Nobody looks at it before the next unit.
    DEVICE u32 word() const {
        const i32 key = unit * i32(KEYS) + row, behind = key - i32(WINDOW);
        const i32* at = compressed() ? extra + (a.kind == VISIBLE ? behind >> 1 : behind) : window + key;
        return load_word(exists() ? at : a.positions);
    }

    DEVICE u32 slot(u32 word) const { return compressed() && a.kind == VISIBLE ? 2 * word + row % 2 : word; }
};

// Four warps find rows, and ask for them, far ahead of the producer: it should wait for no address and no memory but L2.
// Warp w has half w % 2 of the units w / 2, w / 2 + 2, ... and leaves what it found in its place of the ring.
DEVICE void scout(const Arguments& a, u32 base, u32 warp, u32 lane) {
    const Work work = work_of(a, 2);
    if (work.first >= work.end) return;
    const u32 place = base + ROWS + warp * 512 + lane * 16;
    const u32 found = base + FOUND + 8 * warp, taken = base + TAKEN + 8 * warp;
    const u32 rank = cluster_rank(), bytes = rank ? ROW - CHANNELS : CHANNELS;   // of a row, for this block
    Walk walk(a, work, warp, lane);
    u32 word = walk.word();
    for (u32 n = 0;; n++) {
        const bool exists = walk.exists(), over = walk.over();
        const Row row = locate(a, walk.compressed(), walk.slot(word));
        UNROLL for (u32 i = 0; i < 4; i++) {    // its lines, and the one of its last byte
            const u32 at = 128 * i < bytes ? 128 * i : bytes - 1;
            prefetch_if(exists && 128 * i < bytes + 127, row.data + rank * CHANNELS + at);
        }
        const Pair scales = load_pair_if(exists, row.scales);
        walk.next();
        walk.next();
        word = walk.word();
        wait(taken, (n + 1) % 2);
        const u64 address = reinterpret_cast<u64>(row.data);
        store_shared(place, Found{over ? 1 : exists ? address : 0, scales}.words());
        sync_warp();
        if (lane == 0) arrive(found);
        if (over) return;
    }
}

// ---------------------------------------------------------------------------------------------- producers

// A thread has a quarter of a row: 16 of every 64 channels.
struct Quarter {
    Words codes[TILES];
    Words second;                  // rotary channels are twice as many bytes
    Pair scales;

    DEVICE void fetch(const Found& row, u32 first_tile, u32 quarter) {
        const bool exists = row.exists(), rotary = first_tile > 0;
        const u8* data = reinterpret_cast<const u8*>(row.data) + first_tile * 64 + quarter * 16;
        scales = row.scales;
        UNROLL for (u32 k = 0; k + 1 < TILES; k++) codes[k] = load_words_if(exists, data + k * 64);
        const u8* last = data + (TILES - 1) * 64 + (rotary ? quarter * 16 : 0);
        codes[TILES - 1] = load_words_if(exists, last);
        second = load_words_if(exists && rotary, last + 16);
    }

    // To rows of 128 bytes under the swizzle, a tile of 64 channels behind the other.
    DEVICE void put(u32 at, u32 first_tile) const {
        const bool rotary = first_tile > 0;
        UNROLL for (u32 k = 0; k + 1 < TILES; k++) put_codes(at + k * TILE, codes[k], scale_of(scales, first_tile + k));
        const u32 last = at + (TILES - 1) * TILE;
        if (rotary) {
            store_shared(last, codes[TILES - 1]);
            store_shared(last ^ 16, second);
        } else {
            put_codes(last, codes[TILES - 1], scale_of(scales, TILES - 1));
        }
    }
};

// Half a stage at a time: unpack what has come and ask for the half after the next. A warp has six scoreboards, so who
// waits for one of its loads waits for others too: it has none but these.
DEVICE void produce(const Arguments& a, u32 base, u32 thread) {
    const u32 warp = thread / 32, lane = thread % 32, quarter = lane % 4;
    const u32 lane_row = warp * 8 + lane / 4;
    const u32 first_tile = cluster_rank() * TILES;
    const u32 place = base + K + lane_row * 128 + (((2 * quarter) ^ (lane_row & 7)) << 4);
    const Work work = work_of(a, 2);
    if (work.first >= work.end) return;

    const auto take = [&](u32 i) {     // row of half unit i, which the scouts may then forget
        wait(base + FOUND + 8 * (i % 4), i / 4 % 2);
        const Found row = Found::of(load_shared(base + ROWS + i % 4 * 512 + lane_row * 16));
        sync_warp();
        if (lane == 0) arrive(base + TAKEN + 8 * (i % 4));
        return row;
    };
    Quarter x[2];
    UNROLL for (u32 half = 0; half < 2; half++) x[half].fetch(take(half), first_tile, quarter);
    for (u32 n = 0;; n++) {
        const u32 stage = n % STAGES, at = place + stage * STAGE;
        bool over = false;
        MARK(2, n, 0);
        wait(base + EMPTY + 8 * stage, (n / STAGES + 1) % 2);
        MARK(2, n, 1);
        UNROLL for (u32 half = 0; half < 2; half++) {
            x[half].put(at + half * 4096, first_tile);
            MARK(2, n, 2 + 2 * half);
            if (half == 1) {
                fence_matrix_reads();
                sync_warp();
                if (lane == 0) arrive(base + FULL + 8 * stage);
                if (over) return;
            }
            const Found next = take(2 * n + half + 2);
            over = next.over();
            x[half].fetch(next, first_tile, quarter);
            MARK(2, n, 3 + 2 * half);
        }
    }
}

// ---------------------------------------------------------------------------------------------- consumers

// Rows g and g + 8 of a warp's 16 belong to a thread; of every eight columns, two.
struct Consumer {
    const Arguments& a;
    u32 base, group, thread, lane;
    u32 stage_count;               // stages taken so far, over all tokens
    u32 own_count;                 // units of this group so far, over all tokens
    float o[64];
    float s[32];
    float m[2], sum[2];            // the maximum so far; this thread's part of the denominator

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(index / 128), thread(index % 128), lane(index % 32), stage_count(0),
          own_count(0) {}

    DEVICE u32 other() const { return group ^ 1; }
    DEVICE u32 stage(u32 n) const { return base + K + n % STAGES * STAGE; }
    DEVICE u32 head_row(u32 r) const { return thread / 32 * 16 + lane / 4 + 8 * r; }

    // Q [64, 256] of an item to shared memory, by both groups. The products of the item before have read theirs: each
    // group has had the weights of all units of the other.
    DEVICE void load_queries(i32 item) const {
        constexpr u32 PIECES = 64 * TILES * 8 / 256;       // of 16 bytes, per thread
        const u16* q = a.q + i64(item) * 64 * 512 + cluster_rank() * CHANNELS;
        const auto head = [&](u32 i) { return (group * 128 + thread + 256 * i) / (8 * TILES); };
        const u32 chunk = thread % (8 * TILES), tile = chunk / 8;
        Words x[PIECES];
        UNROLL for (u32 i = 0; i < PIECES; i++) x[i] = load_words(q + head(i) * 512 + chunk * 8);
        UNROLL for (u32 i = 0; i < PIECES; i++) {
            const u32 at = base + Q + tile * TILE + head(i) * 128 + (((chunk % 8) ^ (head(i) & 7)) << 4);
            store_shared(at, cluster_rank() * TILES + tile < 7 ? paired(x[i]) : x[i]);
        }
        fence_matrix_reads();
    }

    // s = Q Kᵀ over the channels of this block, and a copy to the other block's same group, which has read what it was
    // sent before: it said so.
    DEVICE void score(u32 n) {
        MARK(group, n, 0);
        wait(base + FULL + 8 * (n % STAGES), n / STAGES % 2);
        MARK(group, n, 1);
        const Operand q(unknown(base) + Q, 16, 1024), k(stage(n), 16, 1024);
        matrix_fence();
        UNROLL for (u32 i = 0; i < 16; i++) {
            const u32 on = i / 4 * TILE + i % 4 * 32;
            product(s, q.after(on), k.after(on), i > 0);
        }
        matrix_commit();
        matrix_wait<0>();
        settled(s);

        const u32 peer = cluster_rank() ^ 1, credit = base + CREDIT + 8 * (4 * group + thread / 32);
        if (own_count > 0) wait_for_remote(credit, (own_count - 1) % 2);
        if (lane == 0) expect_bytes(credit, 16);
        if (thread == 0) expect_bytes(base + ARRIVED + 8 * group, 16384);
        const u32 there = remote(base + ARRIVING + group * 16384 + thread * 16, peer);
        const u32 signal = remote(base + ARRIVED + 8 * group, peer);
        UNROLL for (u32 j = 0; j < 8; j++) {
            const Words w = {{bits(s[4 * j]), bits(s[4 * j + 1]), bits(s[4 * j + 2]), bits(s[4 * j + 3])}};
            store_remote(there + j * 2048, w, signal);
        }
        MARK(group, n, 2);
    }

    // s += the other block's part. What one of its warps sent, the same warp reads here.
    DEVICE void receive() {
        wait_for_remote(base + ARRIVED + 8 * group, own_count % 2);
        UNROLL for (u32 j = 0; j < 8; j++) {
            const Words w = load_shared(base + ARRIVING + group * 16384 + j * 2048 + thread * 16);
            UNROLL for (u32 i = 0; i < 4; i++) s[4 * j + i] += real(w.x[i]);
        }
        sync_warp();
        if (lane == 0) {
            const u32 peer = cluster_rank() ^ 1, warp = 4 * group + thread / 32;
            const u32 there = remote(base + CREDITS + 16 * warp, peer), signal = remote(base + CREDIT + 8 * warp, peer);
            store_remote(there, {{0, 0, 0, 0}}, signal);
        }
        own_count++;
    }

    DEVICE void hide(i32 low, i32 high) {
        UNROLL for (u32 j = 0; j < 32; j++) {
            const i32 key = i32(j / 4 * 8 + lane % 4 * 2 + j % 2);
            if (key < low || key >= high) s[j] = minus_infinity();
        }
    }

    // One number per head, from a group to the other: a lane of each four writes, all four read.
    DEVICE u32 maximum(u32 of, u32 r) const { return base + MAXIMA + of * 1024 + head_row(r) * 16; }
    DEVICE void tell_maximum(const float (&top)[2]) const {
        if (lane % 4 == 0) {
            UNROLL for (u32 r = 0; r < 2; r++) store_shared(maximum(group, r), {{bits(top[r]), 0, 0, 0}});
        }
        arrive_named(MAXIMUM + group, 256);
    }
    DEVICE void hear_maximum(float (&top)[2]) const {
        sync_named(MAXIMUM + other(), 256);
        UNROLL for (u32 r = 0; r < 2; r++) top[r] = real(load_shared(maximum(other(), r)).x[0]);
    }

    // Scores of a unit become weights. `before`: the maximum of the units before it, `top`: with it; `added`: what they
    // sum to in this thread.
    DEVICE void weigh(const float (&before)[2], float (&top)[2], float (&added)[2]) {
        UNROLL for (u32 r = 0; r < 2; r++) {
            top[r] = before[r];
            UNROLL for (u32 j = 0; j < 16; j++) top[r] = larger(top[r], s[j / 2 * 4 + r * 2 + j % 2]);
            top[r] = larger(top[r], real(shuffle_xor(bits(top[r]), 1)));
            top[r] = larger(top[r], real(shuffle_xor(bits(top[r]), 2)));
        }
        tell_maximum(top);
        UNROLL for (u32 r = 0; r < 2; r++) {
            const float offset = -(top[r] * a.scale);
            added[r] = 0;
            UNROLL for (u32 j = 0; j < 8; j++) {
                UNROLL for (u32 i = 4 * j + 2 * r; i < 4 * j + 2 * r + 2; i++) {
                    s[i] = power_of_2(fused(s[i], a.scale, offset));
                    added[r] += s[i];
                }
            }
        }
    }

    // Weights for both groups: thread t of one has the rows and columns of thread t of the other.
    DEVICE u32 weights(u32 of, u32 j) const { return base + WEIGHTS + of * 10240 + j * 2048 + thread * 16; }
    DEVICE void give(u32 (&p)[16], const float (&added)[2], bool again) {
        UNROLL for (u32 j = 0; j < 16; j++) p[j] = pair_of_bf16(s[2 * j], s[2 * j + 1]);
        if (again) sync_named(READ + group, 256);
        UNROLL for (u32 j = 0; j < 4; j++) {
            store_shared(weights(group, j), {{p[4 * j], p[4 * j + 1], p[4 * j + 2], p[4 * j + 3]}});
        }
        store_shared(weights(group, 4), {{bits(added[0]), bits(added[1]), 0, 0}});
        arrive_named(WEIGHED + group, 256);
    }
    DEVICE void get(u32 (&p)[16], float (&added)[2]) const {
        sync_named(WEIGHED + other(), 256);
        UNROLL for (u32 j = 0; j < 4; j++) {
            const Words w = load_shared(weights(other(), j));
            UNROLL for (u32 i = 0; i < 4; i++) p[4 * j + i] = w.x[i];
        }
        const Words w = load_shared(weights(other(), 4));
        UNROLL for (u32 r = 0; r < 2; r++) added[r] = real(w.x[r]);
        arrive_named(READ + other(), 256);
    }

    // O = α O + P K over this group's channels, for all keys of stage n; the denominator is scaled alike.
    DEVICE void multiply(u32 n, const u32 (&p)[16], const float (&top)[2], const float (&added)[2]) {
        float factor[2];
        UNROLL for (u32 r = 0; r < 2; r++) {
            factor[r] = power_of_2((m[r] - top[r]) * a.scale);
            m[r] = top[r];
            sum[r] = fused(sum[r], factor[r], added[r]);
        }
        if (any_lane(factor[0] != 1 || factor[1] != 1)) {
            UNROLL for (u32 j = 0; j < 64; j++) o[j] *= factor[j / 2 % 2];
        }
        const Operand k(stage(n) + group * 2 * TILE, TILE, 1024);
        matrix_fence();
        UNROLL for (u32 i = 0; i < 4; i++) {
            product_of_registers(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], k.after(i * 2048));
        }
        matrix_commit();
        matrix_wait<0>();
        settled(o);
        if (lane == 0) arrive(base + EMPTY + 8 * (n % STAGES));
    }

    // All units of a token. `u` and `count` are relative to its first.
    DEVICE void attend(const Token& token) {
        const u32 count = token.last - token.first, n = stage_count;
        UNROLL for (u32 j = 0; j < 64; j++) o[j] = 0;
        UNROLL for (u32 r = 0; r < 2; r++) {
            m[r] = -1e30f;             // no score yet; below all, and finite, so that a token without keys gets zeros
            sum[r] = 0;
        }
        if (group < count) score(n + group);
        for (u32 u = group; u < count; u += 2) {
            u32 p[16];
            float before[2] = {m[0], m[1]}, top[2], added[2];
            receive();
            MARK(group, n + u, 3);
            const i32 low = token.low(token.first + u), high = token.high(token.first + u);
            if (low > 0 || high < i32(KEYS)) hide(low, high);
            if (u > 0) hear_maximum(before);
            weigh(before, top, added);
            MARK(group, n + u, 4);
            give(p, added, u >= 2);
            MARK(group, n + u, 5);
            if (u > 0) {
                u32 theirs[16];
                float sums[2];
                get(theirs, sums);
                multiply(n + u - 1, theirs, before, sums);
            }
            MARK(group, n + u, 6);
            multiply(n + u, p, top, added);
            MARK(group, n + u, 7);
            if (u + 2 < count) score(n + u + 2);
        }
        if (group < count) sync_named(READ + group, 256);
        if ((count - 1) % 2 != group) {    // the last unit is the other group's
            u32 theirs[16];
            float top[2], sums[2];
            hear_maximum(top);
            get(theirs, sums);
            multiply(n + count - 1, theirs, top, sums);
        }
        stage_count += count;
    }

    // O over its denominator; four lanes give each other eight channels each of four column groups.
    DEVICE void store(const Token& token) {
        UNROLL for (u32 r = 0; r < 2; r++) {
            sum[r] += real(shuffle_xor(bits(sum[r]), 1));
            sum[r] += real(shuffle_xor(bits(sum[r]), 2));
            const float sink = real(load_word(a.sink + token.head + head_row(r)));
            const float inverse = reciprocal(sum[r] + power_of_2(fused(sink, LOG2E, -(m[r] * a.scale))));
            const u32 channel = cluster_rank() * CHANNELS + group * 128;
            u16* out = a.out + (token.t * a.groups * 64 + token.head + head_row(r)) * 512 + channel;
            UNROLL for (u32 j = 0; j < 4; j++) {
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
        const Work work = work_of(a, 2);
        for (i32 item = work.first; item < work.end; item += work.step) {
            load_queries(item);
            sync_named(QUERIES, 256);
            const Token token(a, item, position_of(a, item));
            attend(token);
            store(token);
        }
    }
};

KERNEL_OF_PAIRS(THREADS) sparse_decode_pair(const __grid_constant__ Arguments a) {
    const u32 base = shared_base(), thread = thread_index();
    if (base % 1024) stop();       // the swizzle counts from multiples of this
    if (thread == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            init_barrier(base + FULL + 8 * i, 4);    // a lane of each warp
            init_barrier(base + EMPTY + 8 * i, 8);
        }
        for (u32 i = 0; i < 4; i++) {
            init_barrier(base + FOUND + 8 * i, 1);
            init_barrier(base + TAKEN + 8 * i, 4);
        }
        for (u32 i = 0; i < 2; i++) init_barrier(base + ARRIVED + 8 * i, 1);
        for (u32 i = 0; i < 8; i++) init_barrier(base + CREDIT + 8 * i, 1);
        fence_barrier_init();
    }
    sync_cluster();
    if (thread >= 384) {
        fewer_registers<40>();
        scout(a, base, thread / 32 - 12, thread % 32);
    } else if (thread >= 256) {
        fewer_registers<88>();
        produce(a, base, thread - 256);
    } else {
        more_registers<192>();
        Consumer(a, base, thread).run();
    }
    sync_cluster();                // a block outlives what the other sends it
}

EMULATED(sparse_decode_pair, Arguments)
