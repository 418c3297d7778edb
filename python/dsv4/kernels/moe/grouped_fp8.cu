// Grouped products of MXFP4 weights on Hopper for many tokens: each block of pairs by the matrix of its expert, E4M3 times
// E4M3. The weights' scales are folded into E4M3 codes as they are expanded (fold.py says when that is exact).
//
//     x, scales, w ─▶ copy engine, told by one thread ─▶ ring of stages, 128 channels ─▶ two groups ─▶ out
//                                                                full ─▶   ◀─ empty
//
// A tile is 128 rows of the weight by 128 pairs (64 where a block has no more). Each group has 64 rows, which it expands
// in registers, and all pairs, which the matrix units read from shared memory. Per stage a group's products leave the
// matrix units and are added, times the scale of the pair. A group always has products under way: those of 64 pairs while
// it adds those of the other 64, or of the next stage while it adds this one's; weights of the stage after are expanded
// beside them. Two blocks of a cluster do tiles one above the other: each brings half of the pairs to both.
//
// up    rows of a thread are gate and up of one channel: SwiGLU and the routing weight follow in registers
// down  rows of a thread are neighbours: a word of the pair's row
#include "machine.cuh"

using namespace machine;

constexpr u32 ROWS = 128;          // of the weight, in a tile
constexpr u32 PAIRS = 128;         // of a block
constexpr u32 STEP = 128;          // channels of a stage
constexpr u32 BOX = 64;            // pairs that one copy brings
constexpr int WIDE = 64;           // values of a thread in a tile of 128 pairs
constexpr u32 THREADS = 384;       // two groups, and one whose first thread tells the copy engine
constexpr float LOG2E = 1.4426950408889634f;

struct Arguments {
    TensorMap x;                   // [places, K] E4M3, boxes of 64 x 128
    TensorMap w;                   // rows of 128 bytes, 68 to a tile of 128 rows and 128 channels: boxes of a tile
    TensorMap sf;                  // [K / 128 places / 32, 128 bytes]: scales; boxes of 4
    TensorMap last;                // [places / 32, 128 bytes]: weights, or pairs; boxes of 4
    const float* w_sf;             // [E, N]
    const i32* order;              // [places]: below zero where there is no pair
    const i32* expert;             // [blocks]: below zero beyond the last
    void* out;                     // bf16: up [places, N / 2], down [pairs, N]
    float limit;
    i32 num_blocks;
    i32 num_rows;                  // N
    i32 steps;                     // K / 128, an even number
    u32* timeline;                 // [2 groups, 128 stages, 5 events], with -DTIMELINE alone
};

// Clocks of the first block, about 45 cycles each, to see who waits for whom; not in the kernel that serves.
#ifdef TIMELINE
#define MARK(event)                                                                  \
    if (lane == 0 && warp == 0 && block_index() == 0 && count < 128) {               \
        store_word(a.timeline + (group * 128 + count) * 5 + (event), ticks());       \
    }
#define COUNT count++
#else
#define MARK(event)
#define COUNT
#endif

constexpr u32 X = PAIRS * STEP;
constexpr u32 W_ROWS = 68;                             // of 128 bytes: codes of both groups, then their shifts
constexpr u32 SHIFTS = ROWS * STEP / 2;
constexpr u32 SF = X + 9 * 1024;
constexpr u32 TILE = SF + 512;                         // of a tile's first stage: which tile it is
constexpr u32 LAST = SF + 1024;                        // of a tile's last stage: routing weights, or pairs
constexpr u32 STAGE = LAST + 1024;
constexpr u32 STAGES = 8;
constexpr u32 FULL = STAGES * STAGE;
constexpr u32 EMPTY = FULL + 8 * STAGES;
constexpr u32 BYTES = EMPTY + 8 * STAGES;

static_assert(BYTES == 221312);    // hopper.py asks for so much

enum Flags : u32 { NARROW = 1, MORE = 2 };  // of a tile; MORE: it is not the block's last

struct Tile {
    i32 block, expert;             // below zero: there is none
    i32 band;                      // 128 rows of the expert's matrix
    bool narrow;                   // no more than 64 pairs
};

// The tiles of a block: all of a block of pairs, then the next, so that what runs together shares weights and pairs.
struct Work {
    const Arguments& a;
    i32 item, stride, across;

    DEVICE explicit Work(const Arguments& arguments)
        : a(arguments), item(i32(block_index() / 2)), stride(i32(num_blocks() / 2)), across(a.num_rows / i32(2 * ROWS)) {}

    DEVICE Tile next() {
        const i32 block = item / across, band = item % across * 2 + i32(cluster_rank());
        item += stride;
        if (block >= a.num_blocks) return {block, -1, band, false};
        const i32 expert = i32(load_fresh(a.expert + block));
        return {block, expert, band, i32(load_fresh(a.order + block * i32(PAIRS) + i32(BOX))) < 0};
    }
};

struct Ring {                      // the stage that is next, and the parity of its phase
    u32 stage = 0, parity = 0;

    DEVICE void next() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

// Where the copy engine put what lies so many bytes into a box.
DEVICE u32 swizzled(u32 box, u32 at) { return box + (at ^ (at >> 7 & 7) << 4); }

// ---------------------------------------------------------------------------------------------- producer

// One thread. It looks up the tiles, ahead of the groups, and tells them.
struct Producer {
    const Arguments& a;
    u32 base;

    DEVICE void bring(const Tile& tile, bool more, i32 step, const Ring& ring) const {
        const u32 full = base + FULL + 8 * ring.stage, stage = base + ring.stage * STAGE, rank = cluster_rank();
        const bool last = step + 1 == a.steps;
        wait_for_remote(base + EMPTY + 8 * ring.stage, ring.parity ^ 1);
        if (step == 0) {
            const u32 flags = (tile.narrow ? NARROW : 0) | (more ? MORE : 0);
            store_shared(stage + TILE, {{u32(tile.block), u32(tile.expert), u32(tile.band), flags}});
        }
        expect_bytes(full, (tile.narrow ? X / 2 : X) + W_ROWS * 128 + (last ? 1024 : 512));
        const i32 w = (tile.expert * (a.num_rows / i32(ROWS)) + tile.band) * a.steps + step;
        copy_box(stage + X, a.w, w * i32(W_ROWS), 0, full);
        const i32 row = tile.block * i32(PAIRS), column = step * i32(STEP);
        if (!tile.narrow) {
            copy_box_to(3, stage + rank * BOX * STEP, a.x, row + i32(rank * BOX), column, full);
        } else if (u32(step) % 2 == rank) {
            copy_box_to(3, stage, a.x, row, column, full);
        }
        const i32 lines = a.num_blocks * i32(PAIRS) / 32, line = row / 32;
        copy_box(stage + SF, a.sf, step * lines + line, 0, full);
        if (last) copy_box(stage + LAST, a.last, line, 0, full);
    }

    DEVICE void run() const {
        Work work(a);
        Ring ring;
        for (Tile tile = work.next(), coming; tile.expert >= 0; tile = coming) {
            coming = work.next();
            for (i32 step = 0; step < a.steps; step++, ring.next()) bring(tile, coming.expert >= 0, step, ring);
        }
    }
};

// ---------------------------------------------------------------------------------------------- consumers

// The E4M3 codes of the eight magnitudes of E2M1, times a power of two: byte `group` of shifts is eight times its
// exponent + 5.
struct Table {
    u32 low, high;

    DEVICE Table(u32 shifts, u32 group) {
        const u32 shift = shifts >> 8 * group & 0xFF;
        low = shift * 0x01010100 + 0x14100800;         // zero stays zero
        high = shift * 0x01010101 + 0x24201C18;
    }
    DEVICE u32 of(u32 magnitudes) const { return looked_up(low, high, magnitudes); }
};

// silu(min(a, limit)) · clamp(b, -limit, limit) · weight; a NaN stays.
DEVICE float swiglu(float gate, float up, float limit, float weight) {
    const u32 both = pair_of_bf16(gate, up);
    float a = real(both << 16), b = real(both & 0xFFFF0000);
    a = a > limit ? limit : a;
    b = b > limit ? limit : b;
    b = b < -limit ? -limit : b;
    return a * reciprocal(1.0f + power_of_2(-a * LOG2E)) * b * weight;
}

// Rows g and g + 8 of a warp's 16 belong to a thread, and of every eight pairs two.
template <bool GATED> struct Consumer {
    const Arguments& a;
    u32 base, group, warp, lane;
    Ring ring, ahead;              // the stage that is multiplied, and the one that is expanded
    i32 block, expert, band;       // of the tile
    bool more;
    u32 codes[16];                 // E4M3: of each product of 32 channels four words
#ifdef TIMELINE
    u32 count = 0;                 // of stages
#endif

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(index / 128), warp(index % 128 / 32), lane(index % 32) {}

    // Waits for a stage and expands the weights of this thread.
    DEVICE void expand(u32 (&to)[16]) {
        wait(base + FULL + 8 * ahead.stage, ahead.parity);
        const u32 w = base + ahead.stage * STAGE + X;
        const Pair shifts = load_shared_pair(swizzled(w, SHIFTS + group * 256 + warp * 64 + lane / 4 * 8));
        UNROLL for (u32 half = 0; half < 2; half++) {
            const Words c = load_shared(swizzled(w, group * 4096 + half * 2048 + warp * 512 + lane * 16));
            UNROLL for (u32 i = 0; i < 4; i++) {
                const u32 k = 2 * half + i / 2, r = i % 2, magnitudes = c.x[i] & 0x77777777;
                const Table table(shifts.x[r], k);
                to[4 * k + r] = table.of(magnitudes) | (c.x[i] << 4 & 0x80808080);
                to[4 * k + 2 + r] = table.of(magnitudes >> 16) | (c.x[i] & 0x80808080);
            }
        }
        ahead.next();
    }

    // Starts d = w xᵀ of 64 pairs of a stage.
    DEVICE void start(float (&d)[32], const u32 (&w)[16], u32 pairs) {
        const Operand x(pairs, 16, 1024);
        matrix_fence();
        UNROLL for (u32 k = 0; k < 4; k++) {
            product_of_e4m3(d, w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3], x.after(32 * k), k > 0);
        }
        matrix_commit();
    }

    // After what every lane has read of a stage.
    DEVICE void release() {
        sync_warp();
        if (lane < 2) arrive_remote(remote(base + EMPTY + 8 * ring.stage, lane));
        ring.next();
    }

    // The scales of columns 8 k + 2 (lane % 4) and + 1 of pieces k = 2 piece and + 1.
    DEVICE Words of_columns(u32 piece) const {
        return load_shared(base + ring.stage * STAGE + SF + piece * 64 + lane % 4 * 16);
    }

    // Adds what has left the matrix units: of the stage's first 64 pairs, or of its second.
    template <u32 HALF, int VALUES> DEVICE void add(float (&sum)[VALUES], float (&d)[32]) const {
        settled(d);
        UNROLL for (u32 k = 0; k < 4; k++) {
            const Words scale = of_columns(4 * HALF + k);
            UNROLL for (u32 i = 0; i < 8; i++) {
                float& to = sum[32 * HALF + 8 * k + i];
                to = fused(d[8 * k + i], real(scale.x[i / 4 * 2 + i % 2]), to);
            }
        }
    }

    // Two stages. Where products are under way at the end of a loop, the compiler runs all of them one by one.
    template <int VALUES> DEVICE void multiply_stages(float (&sum)[VALUES], bool last) {
        constexpr u32 HALF = BOX * STEP;
        const u32 first = base + ring.stage * STAGE, second = base + (ring.stage + 1 < STAGES ? ring.stage + 1 : 0) * STAGE;
        float d[2][32];
        u32 next[16];
        MARK(0);
        start(d[0], codes, first);
        if constexpr (VALUES == WIDE) start(d[1], codes, first + HALF);
        MARK(1);
        if (a.steps > 0) expand(next);                 // always; without a condition it would move behind the wait
        MARK(2);
        if constexpr (VALUES == WIDE) {
            matrix_wait<1>();
            add<0>(sum, d[0]);
            start(d[0], next, second);
            matrix_wait<1>();
            add<1>(sum, d[1]);
            start(d[1], next, second + HALF);
        } else {
            start(d[1], next, second);
            matrix_wait<1>();
            add<0>(sum, d[0]);
        }
        release();
        MARK(3);
        if (!last) expand(codes);
        MARK(4);
        if constexpr (VALUES == WIDE) {
            matrix_wait<1>();
            add<0>(sum, d[0]);
            matrix_wait<0>();
            add<1>(sum, d[1]);
        } else {
            matrix_wait<0>();
            add<0>(sum, d[1]);
        }
        COUNT;
    }

    template <int VALUES> DEVICE void multiply_tile() {
        const u32 row = (u32(band) * 2 + group) * 64 + warp * 16 + lane / 4 * 2;
        const float* w_sf = a.w_sf + i64(expert) * a.num_rows + row;
        const float scale[2] = {real(load_word(w_sf)), real(load_word(w_sf + 1))};
        float sum[VALUES];
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = 0;
        for (i32 step = 2; step <= a.steps; step += 2) {
            multiply_stages(sum, step == a.steps && !more);
            if (step < a.steps) release();
        }
        u32 of[VALUES / 2];        // of columns: routing weights, or pairs
        UNROLL for (u32 k = 0; k < VALUES / 4; k++) {
            const Pair w = load_shared_pair(swizzled(base + ring.stage * STAGE + LAST, k * 32 + lane % 4 * 8));
            UNROLL for (u32 i = 0; i < 2; i++) of[2 * k + i] = w.x[i];
        }
        release();
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] *= scale[j / 2 % 2];
        if constexpr (GATED) {
            leave_channels(sum, of);
        } else {
            leave_rows(sum, of, row);
        }
    }

    // A lane and its neighbour in g have two channels of two pairs: each stores one pair's word.
    template <int VALUES> DEVICE void leave_channels(const float (&x)[VALUES], const u32 (&weights)[VALUES / 2]) const {
        const u32 odd = lane / 4 % 2, width = u32(a.num_rows) / 2;
        const u32 channel = (u32(band) * 2 + group) * 32 + warp * 8 + lane / 8 * 2;
        u16* out = static_cast<u16*>(a.out) + i64(block * i32(PAIRS) + i32(lane % 4 * 2 + odd)) * width + channel;
        UNROLL for (u32 k = 0; k < VALUES / 4; k++) {
            float y[2];
            UNROLL for (u32 i = 0; i < 2; i++) {
                y[i] = swiglu(x[4 * k + i], x[4 * k + 2 + i], a.limit, real(weights[2 * k + i]));
            }
            const float got = real(shuffle_xor(bits(odd ? y[0] : y[1]), 4));
            store_word(out + i64(8 * k) * width, odd ? pair_of_bf16(got, y[1]) : pair_of_bf16(y[0], got));
        }
    }

    template <int VALUES> DEVICE void leave_rows(const float (&x)[VALUES], const u32 (&pairs)[VALUES / 2], u32 row) const {
        UNROLL for (u32 j = 0; j < VALUES / 2; j++) {
            const u32 at = j / 2 * 4 + j % 2;
            if (i32(pairs[j]) < 0) continue;
            store_word(static_cast<u16*>(a.out) + i64(pairs[j]) * a.num_rows + row, pair_of_bf16(x[at], x[at + 2]));
        }
    }

    DEVICE void run() {
        if (Work(a).next().expert < 0) return;
        expand(codes);
        do {
            const Words tile = load_shared(base + ring.stage * STAGE + TILE);
            block = i32(tile.x[0]), expert = i32(tile.x[1]), band = i32(tile.x[2]), more = tile.x[3] & MORE;
            if (tile.x[3] & NARROW) {
                multiply_tile<WIDE / 2>();
            } else {
                multiply_tile<WIDE>();
            }
        } while (more);
    }
};

template <bool GATED> DEVICE void multiply(const Arguments& a) {
    const u32 base = shared_base(), thread = thread_index();
    if (base % 1024) stop();    // the swizzle counts from multiples of this
    if (thread == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            init_barrier(base + FULL + 8 * i, 1);
            init_barrier(base + EMPTY + 8 * i, 16);    // a lane of each warp of both blocks
        }
        fence_barrier_init();
        prefetch_map(a.x);
        prefetch_map(a.w);
        prefetch_map(a.sf);
        prefetch_map(a.last);
    }
    meet_cluster();                // their barriers are there
    sync_block();
    let_next_launch_start();
    wait_for_launch_before();
    if (thread >= 256) {
        fewer_registers<40>();
        if (thread == 256) Producer{a, base}.run();
        sync_warp();
    } else {
        more_registers<232>();
        Consumer<GATED>(a, base, thread).run();
    }
    meet_cluster();                // a block outlives what the other one sends it
}

KERNEL_OF_PAIRS(THREADS) grouped_up(const __grid_constant__ Arguments a) { multiply<true>(a); }
KERNEL_OF_PAIRS(THREADS) grouped_down(const __grid_constant__ Arguments a) { multiply<false>(a); }

EMULATED(grouped_up, Arguments)
EMULATED(grouped_down, Arguments)
