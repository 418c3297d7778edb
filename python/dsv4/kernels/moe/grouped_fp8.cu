// Grouped products of MXFP4 weights on Hopper: each block of pairs by the matrix of its expert, E4M3 times E4M3. The
// weights' scales are folded into E4M3 codes as they are expanded (fold.py says when that is exact).
//
//     x, scales, w ─▶ copy engine, told by one thread ─▶ ring of stages, 128 channels ─▶ four groups ─▶ out
//                                                                full ─▶   ◀─ empty
//
// A tile is 256 rows of the weight by 64 pairs (32 or 16 where a block has no more). Each group has 64 rows, which it
// expands in registers, and all pairs, which the matrix units read from shared memory. While a stage's products run, a
// group fetches the weights of the stage after; then it adds what has left the matrix units, times the scale of the pair,
// and expands what it has fetched. Four groups are there so that one of them always has something to do. Two blocks of a
// cluster do tiles one above the other: each brings half of the pairs to both.
//
// up    rows of a thread are gate and up of one channel: SwiGLU and the routing weight follow in registers
// down  rows of a thread are neighbours: a word of the pair's row
#include "machine.cuh"

using namespace machine;

constexpr u32 GROUPS = 4;
constexpr u32 ROWS = 64 * GROUPS;  // of the weight, in a tile
constexpr u32 PAIRS = 64;          // of a block
constexpr u32 STEP = 128;          // channels of a stage
constexpr u32 BOX = PAIRS / 2;     // pairs that one copy brings
constexpr u32 CONSUMERS = 128 * GROUPS;
constexpr u32 THREADS = CONSUMERS + 128;  // and a group whose first thread tells the copy engine
constexpr float LOG2E = 1.4426950408889634f;

struct Arguments {
    TensorMap x;                   // [places, K] E4M3, boxes of 32 x 128
    TensorMap w;                   // rows of 128 bytes, 68 to a tile of 128 rows and 128 channels: boxes of a tile
    TensorMap sf;                  // [K / 128 places / 64, 128 bytes]: scales, bf16; boxes of 1
    TensorMap last;                // [places / 32, 128 bytes]: weights, or pairs; boxes of 2
    const float* w_sf;             // [E, N]
    const i32* order;              // [places]: below zero where there is no pair
    const i32* expert;             // [blocks]: below zero beyond the last
    void* out;                     // bf16: up [places, N / 2], down [pairs, N]
    float limit;
    i32 num_blocks;
    i32 num_rows;                  // N
    i32 steps;                     // K / 128
    u32* timeline;                 // [groups, 128 stages, 5 events], with -DTIMELINE alone
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
constexpr u32 W_ROWS = 68;                             // of 128 bytes, for 128 rows: codes of two groups, then their shifts
constexpr u32 SHIFTS = 128 * STEP / 2;
constexpr u32 W = 9 * 1024;                            // of 128 rows: boxes start at multiples of 1024
constexpr u32 SF = X + GROUPS / 2 * W;
constexpr u32 TILE = SF + 512;                         // of a tile's first stage: which tile it is
constexpr u32 LAST = SF + 1024;                        // of a tile's last stage: routing weights, or pairs
constexpr u32 STAGE = LAST + 1024;
constexpr u32 STAGES = 8;
constexpr u32 FULL = STAGES * STAGE;
constexpr u32 EMPTY = FULL + 8 * STAGES;
constexpr u32 BYTES = EMPTY + 8 * STAGES;

static_assert(BYTES == 229504);    // hopper.py asks for so much

struct Tile {
    i32 block, expert;             // below zero: there is none
    i32 band;                      // 256 rows of the expert's matrix
    u32 columns;                   // 64, or fewer if no more pairs are there
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
        if (block >= a.num_blocks) return {block, -1, band, 0};
        const i32* order = a.order + block * i32(PAIRS);
        const u32 columns = i32(load_fresh(order + 16)) < 0 ? 16 : i32(load_fresh(order + 32)) < 0 ? 32 : 64;
        return {block, i32(load_fresh(a.expert + block)), band, columns};
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
        if (step == 0) store_shared(stage + TILE, {{u32(tile.block), u32(tile.expert), u32(tile.band), tile.columns | u32(more)}});
        const bool half = tile.columns <= BOX;
        expect_bytes(full, (half ? X / 2 : X) + GROUPS / 2 * W_ROWS * 128 + PAIRS * 2 + (last ? PAIRS * 4 : 0));
        const i32 bands = a.num_rows / 128;            // of 128 rows
        UNROLL for (u32 i = 0; i < GROUPS / 2; i++) {
            const i32 w = (tile.expert * bands + tile.band * i32(GROUPS / 2) + i32(i)) * a.steps + step;
            copy_box(stage + X + i * W, a.w, w * i32(W_ROWS), 0, full);
        }
        const i32 first = tile.block * i32(PAIRS), column = step * i32(STEP);
        if (!half) {
            copy_box_to(3, stage + rank * BOX * STEP, a.x, first + i32(rank * BOX), column, full);
        } else if (u32(step) % 2 == rank) {
            copy_box_to(3, stage, a.x, first, column, full);
        }
        copy_box(stage + SF, a.sf, step * a.num_blocks + tile.block, 0, full);
        if (last) copy_box(stage + LAST, a.last, first / 32, 0, full);
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
    Words packed[2];               // of the stage that is expanded next
    Pair shifts;
    u32 codes[16];                 // E4M3: of each product of 32 channels four words
#ifdef TIMELINE
    u32 count = 0;                 // of stages
#endif

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(index / 128), warp(index % 128 / 32), lane(index % 32) {}

    // Waits for a stage and fetches the weights of this thread.
    DEVICE void fetch() {
        wait(base + FULL + 8 * ahead.stage, ahead.parity);
        const u32 w = base + ahead.stage * STAGE + X + group / 2 * W;
        shifts = load_shared_pair(swizzled(w, SHIFTS + group % 2 * 256 + warp * 64 + lane / 4 * 8));
        UNROLL for (u32 half = 0; half < 2; half++) {
            packed[half] = load_shared(swizzled(w, group % 2 * 4096 + half * 2048 + warp * 512 + lane * 16));
        }
        ahead.next();
    }

    DEVICE void expand() {
        UNROLL for (u32 i = 0; i < 8; i++) {
            const u32 word = packed[i / 4].x[i % 4], k = i / 2, r = i % 2, magnitudes = word & 0x77777777;
            const Table table(shifts.x[r], k);
            codes[4 * k + r] = table.of(magnitudes) | (word << 4 & 0x80808080);
            codes[4 * k + 2 + r] = table.of(magnitudes >> 16) | (word & 0x80808080);
        }
    }

    // Starts d = w xᵀ of a stage.
    template <u32 VALUES> DEVICE void start(float (&d)[VALUES]) const {
        const Operand x(base + ring.stage * STAGE, 16, 1024);
        matrix_fence();
        UNROLL for (u32 k = 0; k < 4; k++) {
            product_of_e4m3(d, codes[4 * k], codes[4 * k + 1], codes[4 * k + 2], codes[4 * k + 3], x.after(32 * k), k > 0);
        }
        matrix_commit();
    }

    // After what every lane has read of a stage.
    DEVICE void release() {
        sync_warp();
        if (lane < 2) arrive_remote(remote(base + EMPTY + 8 * ring.stage, lane));
        ring.next();
    }

    // Adds what has left the matrix units. A word has the scales of two columns.
    template <u32 VALUES> DEVICE void add(float (&sum)[VALUES], float (&d)[VALUES]) {
        matrix_wait<0>();
        settled(d);
        kept(codes);
        MARK(3);
        UNROLL for (u32 k = 0; k < VALUES; k += 16) {
            const Words scales = load_shared(base + ring.stage * STAGE + SF + k * 4 + lane % 4 * 16);
            UNROLL for (u32 i = 0; i < (VALUES < 16 ? VALUES : 16); i++) {
                const u32 both = scales.x[i / 4];
                sum[k + i] = fused(d[k + i], real(i % 2 ? both & 0xFFFF0000 : both << 16), sum[k + i]);
            }
        }
        MARK(4);
        COUNT;
    }

    template <u32 COLUMNS> DEVICE void multiply_tile() {
        constexpr u32 VALUES = COLUMNS / 2;
        float sum[VALUES];
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = 0;
        for (i32 step = 0; step < a.steps; step++) {
            const bool end = step + 1 == a.steps;
            float d[VALUES];
            MARK(0);
            expand();
            MARK(1);
            start(d);
            if (!end || more) fetch();
            MARK(2);
            add(sum, d);
            if (!end) release();
        }
        const u32 row = (u32(band) * GROUPS + group) * 64 + warp * 16 + lane / 4 * 2;
        const float* w_sf = a.w_sf + i64(expert) * a.num_rows + row;
        const float scale[2] = {real(load_word(w_sf)), real(load_word(w_sf + 1))};
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
    template <u32 VALUES> DEVICE void leave_channels(const float (&sum)[VALUES], const u32 (&weights)[VALUES / 2]) const {
        const u32 odd = lane / 4 % 2, width = u32(a.num_rows) / 2;
        const u32 channel = (u32(band) * GROUPS + group) * 32 + warp * 8 + lane / 8 * 2;
        u16* out = static_cast<u16*>(a.out) + i64(block * i32(PAIRS) + i32(lane % 4 * 2 + odd)) * width + channel;
        UNROLL for (u32 k = 0; k < VALUES / 4; k++) {
            float y[2];
            UNROLL for (u32 i = 0; i < 2; i++) {
                y[i] = swiglu(sum[4 * k + i], sum[4 * k + 2 + i], a.limit, real(weights[2 * k + i]));
            }
            const float got = real(shuffle_xor(bits(odd ? y[0] : y[1]), 4));
            store_word(out + i64(8 * k) * width, odd ? pair_of_bf16(got, y[1]) : pair_of_bf16(y[0], got));
        }
    }

    template <u32 VALUES> DEVICE void leave_rows(const float (&sum)[VALUES], const u32 (&pairs)[VALUES / 2], u32 row) const {
        UNROLL for (u32 j = 0; j < VALUES / 2; j++) {
            const u32 at = j / 2 * 4 + j % 2;
            if (i32(pairs[j]) < 0) continue;
            store_word(static_cast<u16*>(a.out) + i64(pairs[j]) * a.num_rows + row, pair_of_bf16(sum[at], sum[at + 2]));
        }
    }

    DEVICE void run() {
        if (Work(a).next().expert < 0) return;
        fetch();
        do {
            const Words tile = load_shared(base + ring.stage * STAGE + TILE);
            block = i32(tile.x[0]), expert = i32(tile.x[1]), band = i32(tile.x[2]), more = tile.x[3] & 1;
            switch (tile.x[3] & ~1u) {
                case 16: multiply_tile<16>(); break;
                case 32: multiply_tile<32>(); break;
                default: multiply_tile<64>();
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
            init_barrier(base + EMPTY + 8 * i, 2 * CONSUMERS / 32);  // a lane of each warp of both blocks
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
    if (thread >= CONSUMERS) {
        fewer_registers<32>();
        if (thread == CONSUMERS) Producer{a, base}.run();
        sync_warp();
    } else {
        more_registers<112>();
        Consumer<GATED>(a, base, thread).run();
    }
    sync_cluster();                // a block outlives what the other one sends it
}

KERNEL_OF_PAIRS(THREADS) grouped_up(const __grid_constant__ Arguments a) { multiply<true>(a); }
KERNEL_OF_PAIRS(THREADS) grouped_down(const __grid_constant__ Arguments a) { multiply<false>(a); }

EMULATED(grouped_up, Arguments)
EMULATED(grouped_down, Arguments)
