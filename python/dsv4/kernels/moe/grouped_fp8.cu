// Grouped products of MXFP4 weights on Hopper for many tokens: each block of pairs by the matrix of its expert, E4M3 times
// E4M3. The weights' scales are folded into E4M3 codes as they are expanded (fold.py says when that is exact).
//
//     x, scales, w ─▶ copy engine, told by one thread ─▶ ring of stages, 128 channels ─▶ two groups ─▶ out
//                                                                full ─▶   ◀─ empty
//
// A tile is 128 rows of the weight by 128 pairs (64 where a block has no more). Each group has 64 rows, which it expands
// in registers, and all pairs, which the matrix units read from shared memory. Per stage a group's products leave the
// matrix units and are added, times the scale of the pair. The groups take turns: while one adds, the other one has the
// matrix units, which run while the weights of the stage after are expanded. Two blocks of a cluster do tiles one above
// the other: each brings half of the pairs to both.
//
// up    rows of a thread are gate and up of one channel: SwiGLU and the routing weight follow in registers
// down  rows of a thread are neighbours: a word of the pair's row
#include "machine.cuh"

using namespace machine;

constexpr u32 ROWS = 128;          // of the weight, in a tile
constexpr u32 PAIRS = 128;         // of a block
constexpr u32 STEP = 128;          // channels of a stage
constexpr u32 BOX = 64;            // pairs that one copy brings
constexpr u32 THREADS = 384;       // two groups, and one whose first thread tells the copy engine
constexpr float LOG2E = 1.4426950408889634f;

struct Arguments {
    TensorMap x;                   // [places, K] E4M3, boxes of 64 x 128
    TensorMap w;                   // rows of 128 bytes, 68 to a tile of 128 rows and 128 channels: boxes of a tile
    TensorMap sf;                  // [(K / 128 + 1) places / 32, 128 bytes]: scales, then a weight or the pair; boxes of 4
    const float* w_sf;             // [E, N]
    const i32* order;              // [places]: below zero where there is no pair
    const i32* expert;             // [blocks]: below zero beyond the last
    void* out;                     // bf16: up [places, N / 2], down [pairs, N]
    float limit;
    i32 num_blocks;
    i32 num_rows;                  // N
    i32 steps;                     // K / 128
};

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

enum Named : u32 { TURN = 1 };     // TURN + g: group g may have the matrix units
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
        if (last) copy_box(stage + LAST, a.sf, a.steps * lines + line, 0, full);
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

    DEVICE Table(u32 shifts, u32 group)
        : low(0x14100800 + bytes_of(shifts, 0, 0x1110 * group + 4)),  // zero stays zero
          high(0x24201C18 + bytes_of(shifts, 0, 0x1111 * group)) {}
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

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(index / 128), warp(index % 128 / 32), lane(index % 32) {}

    // Waits for a stage and expands the weights of this thread.
    DEVICE void expand(u32 (&to)[16]) {
        wait(base + FULL + 8 * ahead.stage, ahead.parity);
        const u32 w = base + ahead.stage * STAGE + X;
        const Words shifts = load_shared(swizzled(w, SHIFTS + group * 256 + warp * 64 + lane / 8 * 16));
        const bool odd = lane / 4 % 2;
        const u32 of[2] = {odd ? shifts.x[2] : shifts.x[0], odd ? shifts.x[3] : shifts.x[1]};
        UNROLL for (u32 half = 0; half < 2; half++) {
            const Words c = load_shared(swizzled(w, group * 4096 + half * 2048 + warp * 512 + lane * 16));
            UNROLL for (u32 i = 0; i < 4; i++) {
                const u32 k = 2 * half + i / 2, r = i % 2, magnitudes = c.x[i] & 0x77777777;
                const Table table(of[r], k);
                to[4 * k + r] = table.of(magnitudes) | (c.x[i] << 4 & 0x80808080);
                to[4 * k + 2 + r] = table.of(magnitudes >> 16) | (c.x[i] & 0x80808080);
            }
        }
        ahead.next();
    }

    // Starts d = w xᵀ of a stage. Groups alternate: nobody starts a stage twice before the other has started it once.
    template <int VALUES> DEVICE void start_products(float (&d)[VALUES], bool last) {
        sync_named(TURN + group, 256);
        const Operand x(base + ring.stage * STAGE, 16, 1024);
        matrix_fence();
        UNROLL for (u32 k = 0; k < 4; k++) {
            product_of_e4m3(d, codes[4 * k], codes[4 * k + 1], codes[4 * k + 2], codes[4 * k + 3], x.after(32 * k), k > 0);
        }
        matrix_commit();
        if (group == 0 || !last) arrive_named(TURN + (group ^ 1), 256);
    }

    // After what every lane has read of a stage.
    DEVICE void release() {
        sync_warp();
        if (lane < 2) arrive_remote(remote(base + EMPTY + 8 * ring.stage, lane));
        ring.next();
    }

    // What a box of 128 numbers has for columns 8 k + 2 (lane % 4) and + 1 of pieces k = 2 piece and + 1.
    DEVICE Words of_columns(u32 box, u32 piece) const {
        return load_shared(base + ring.stage * STAGE + box + piece * 64 + lane % 4 * 16);
    }

    template <int VALUES> DEVICE void add(float (&sum)[VALUES], const float (&d)[VALUES]) const {
        UNROLL for (u32 k = 0; k < VALUES / 8; k++) {
            const Words scale = of_columns(SF, k);
            UNROLL for (u32 i = 0; i < 8; i++) {
                sum[8 * k + i] = fused(d[8 * k + i], real(scale.x[i / 4 * 2 + i % 2]), sum[8 * k + i]);
            }
        }
    }

    template <int VALUES> DEVICE void multiply_tile() {
        float d[VALUES], sum[VALUES];
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = 0;
        for (i32 step = 0; step < a.steps; step++) {
            const bool end = step + 1 == a.steps, last = end && !more;
            u32 next[16];          // zeros here, and products run one by one
            start_products(d, last);
            if (!last) expand(next);
            matrix_wait<0>();
            settled(d);
            add(sum, d);
            if (!end) release();
            if (last) continue;
            UNROLL for (u32 i = 0; i < 16; i++) codes[i] = next[i];
        }
        u32 of[VALUES / 2];        // of columns: routing weights, or pairs
        UNROLL for (u32 k = 0; k < VALUES / 8; k++) {
            const Words w = of_columns(LAST, k);
            UNROLL for (u32 i = 0; i < 4; i++) of[4 * k + i] = w.x[i];
        }
        release();
        const u32 row = (u32(band) * 2 + group) * 64 + warp * 16 + lane / 4 * 2;
        const float* w_sf = a.w_sf + i64(expert) * a.num_rows + row;
        const float scale[2] = {real(load_word(w_sf)), real(load_word(w_sf + 1))};
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
        if (group == 1) arrive_named(TURN, 256);
        expand(codes);
        do {
            const Words tile = load_shared(base + ring.stage * STAGE + TILE);
            block = i32(tile.x[0]), expert = i32(tile.x[1]), band = i32(tile.x[2]), more = tile.x[3] & MORE;
            if (tile.x[3] & NARROW) {
                multiply_tile<BOX / 2>();
            } else {
                multiply_tile<PAIRS / 2>();
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
