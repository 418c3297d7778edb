// Rows times an FP8 weight on Hopper: out [T, N] = x [T, K] wᵀ, with the arithmetic of few_rows.py and many_rows.py bit
// for bit (gemm.py says what is computed; docs/notes/gemm.md why it is cut this way).
//
//     x, w ─▶ copy engine, told by one thread ─▶ ring of stages, 128 channels ─▶ two consumer groups ─▶ out
//                                                        full ─▶   ◀─ empty
//
// A tile is ROWS rows by 128 columns. Of 128 rows, each group has 64 and all columns; of 64, all rows and 64 columns. Per
// stage a group's products leave the matrix units and are added, times the scales of row and weight, to the sum of a
// segment of K. The groups take turns: while one adds, the other one has the matrix units.
//
// whole: a block does all segments of a tile, and tile after tile. Two blocks of a cluster do tiles side by side: each
//        brings half of their rows to both.
// split: a block does one segment; a cluster has them all. A block gets its share of the columns from every block of the
//        cluster and adds the segments in their order.
#include "machine.cuh"

using namespace machine;

constexpr u32 COLUMNS = 128;       // of a tile: one scale of the weight
constexpr u32 STEP = 128;          // channels of a stage, and their bytes
constexpr u32 BOX = 64;            // rows of x that one copy brings
constexpr u32 THREADS = 384;       // two consumer groups, one group whose first thread tells the copy engine
constexpr bool TURNS = true;

struct Arguments {
    TensorMap x;                   // [T, K] E4M3, boxes of 64 x 128
    TensorMap w;                   // [N, K] E4M3, boxes of 128 x 128
    const u32* x_sf;               // [words, T]: four E8M0 bytes each
    const u32* w_sf;               // [N / 128, words]
    void* out;                     // [T, N] bf16 or float32
    i32 num_rows;                  // T
    i32 num_columns;               // N
    i32 segments;
    i32 steps;                     // of a segment
    i32 words;                     // of scales, for a row of channels
    i32 band;                      // tiles of rows that go together
    i32 wide;                      // 1: out is float32
    i32 unused;
};

template <u32 ROWS, bool SPLIT> struct Layout {
    static constexpr u32 STAGES = ROWS == 128 ? (SPLIT ? 5 : 7) : (SPLIT ? 8 : 9);
    static constexpr u32 X = ROWS * STEP;
    static constexpr u32 STAGE = X + COLUMNS * STEP;
    static constexpr u32 PARTS = STAGES * STAGE;                      // what the cluster sends: [segments, share of a tile]
    static constexpr u32 PARTS_BYTES = SPLIT ? ROWS * COLUMNS * 4 : 0;
    static constexpr u32 FULL = PARTS + PARTS_BYTES;
    static constexpr u32 EMPTY = FULL + 8 * STAGES;
    static constexpr u32 ARRIVED = EMPTY + 8 * STAGES;
    static constexpr u32 BYTES = ARRIVED + 8;
};

static_assert(Layout<64, false>::BYTES == 221336);  // hopper.py asks for so much
static_assert(Layout<64, true>::BYTES == 229512);
static_assert(Layout<128, false>::BYTES == 229496);
static_assert(Layout<128, true>::BYTES == 229464);

enum Named : u32 { TURN = 1 };     // TURN + g: group g may have the matrix units

struct Tile {                      // its first row and column
    i32 row, column;
};

// The tiles of a block, or of the cluster that shares them, and the steps of each that the block does.
template <u32 ROWS, bool SPLIT> struct Work {
    i32 first, stride, end;
    i32 begin, last;
    i32 tall, across;              // tiles of rows; columns of tiles
    i32 side, sides;               // which of the tiles side by side
    i32 band;

    DEVICE explicit Work(const Arguments& a) {
        const i32 size = i32(cluster_size()), rank = i32(cluster_rank());
        sides = SPLIT ? 1 : size;
        side = SPLIT ? 0 : rank;
        tall = (a.num_rows + i32(ROWS) - 1) / i32(ROWS);
        across = a.num_columns / (i32(COLUMNS) * sides);
        band = a.band;
        first = i32(block_index()) / size;
        stride = i32(num_blocks()) / size;
        end = tall * across;
        begin = SPLIT ? rank * a.steps : 0;
        last = SPLIT ? begin + a.steps : a.segments * a.steps;
    }

    // In bands of rows, so that what runs together shares weights and rows in the L2 cache.
    DEVICE Tile tile(i32 item) const {
        const i32 before = item / (band * across) * band;
        const i32 height = tall - before < band ? tall - before : band;
        const i32 rest = item - before * across;
        return {(before + rest % height) * i32(ROWS), (rest / height * sides + side) * i32(COLUMNS)};
    }

    DEVICE i32 stages() const { return first < end ? ((end - 1 - first) / stride + 1) * (last - begin) : 0; }
};

struct Ring {                      // the stage that is next, and the parity of its phase
    u32 stage = 0, parity = 0;

    template <u32 STAGES> DEVICE void next() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

// ---------------------------------------------------------------------------------------------- producer

// One thread. Weights of the first stages come before the launch before this one has ended; rows do not.
template <u32 ROWS, bool SPLIT> struct Producer {
    using L = Layout<ROWS, SPLIT>;

    const Arguments& a;
    Work<ROWS, SPLIT> work;
    u32 base;

    struct Place {                 // of a stage: in the ring, among the tiles and along K
        Ring ring;
        i32 item, step;
        Tile tile;
    };

    DEVICE Place start() const { return {{}, work.first, work.begin, work.tile(work.first)}; }

    DEVICE void next(Place& p) const {
        p.ring.template next<L::STAGES>();
        if (++p.step < work.last) return;
        p.step = work.begin;
        p.item += work.stride;
        p.tile = work.tile(p.item);
    }

    DEVICE u32 full(const Place& p) const { return base + L::FULL + 8 * p.ring.stage; }
    DEVICE u32 stage(const Place& p) const { return base + p.ring.stage * L::STAGE; }

    DEVICE void bring_weight(const Place& p) const {
        expect_bytes(full(p), L::STAGE);
        copy_box(stage(p) + L::X, a.w, p.tile.column, p.step * i32(STEP), full(p));
    }

    DEVICE void bring_rows(const Place& p) const {
        if (work.sides == 2) {
            const u32 half = u32(work.side) * BOX;
            copy_box_to(3, stage(p) + half * STEP, a.x, p.tile.row + i32(half), p.step * i32(STEP), full(p));
            return;
        }
        UNROLL for (u32 row = 0; row < ROWS; row += BOX) {
            copy_box(stage(p) + row * STEP, a.x, p.tile.row + i32(row), p.step * i32(STEP), full(p));
        }
    }

    DEVICE void run() const {
        const i32 count = work.stages(), early = count < i32(L::STAGES) ? count : i32(L::STAGES);
        if (count == 0) return;
        Place p = start(), ahead = start();
        for (i32 n = 0; n < early; n++, next(ahead)) bring_weight(ahead);
        wait_for_launch_before();
        for (i32 n = 0; n < count; n++, next(p)) {
            if (n >= early) {
                wait_for_remote(base + L::EMPTY + 8 * p.ring.stage, p.ring.parity ^ 1);
                bring_weight(p);
            }
            bring_rows(p);
        }
    }
};

// ---------------------------------------------------------------------------------------------- consumers

struct Scales {                    // of a thread's two rows and of the weight, four steps in a word
    u32 x[2], w;
};

// Byte -> 2^(byte - 127); 255 is NaN.
DEVICE float power_of(u32 byte) { return real(byte == 255 ? 0x7FC00000 : byte == 0 ? 0x00400000 : byte << 23); }

// Rows g and g + 8 of a warp's 16 belong to a thread; of every eight columns, two.
template <u32 ROWS, bool SPLIT> struct Consumer {
    using L = Layout<ROWS, SPLIT>;
    static constexpr u32 VALUES = ROWS / 2;                           // of a thread
    static constexpr u32 PIECES = VALUES / 4;

    const Arguments& a;
    Work<ROWS, SPLIT> work;
    u32 base, group, thread, lane;
    Ring ring;
    i32 left;                      // stages to come
    i32 word_item, word;           // where the scales after the next are
    u32 x_at[2], w_at;
    Scales scales, coming;
    float d[VALUES], sum[VALUES];

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), work(arguments), base(shared), group(index / 128), thread(index % 128), lane(index % 32),
          left(work.stages()), word_item(work.first) {}

    DEVICE i32 row_of(u32 r) const {
        return i32((ROWS == 128 ? group * 64 : 0) + thread / 32 * 16 + lane / 4 + 8 * r);
    }
    DEVICE i32 column_of(u32 piece) const { return i32((ROWS == 64 ? group * 64 : 0) + piece * 8 + lane % 4 * 2); }

    // A row that is not there reads the last one's scales.
    DEVICE void enter_scales() {
        const Tile tile = work.tile(word_item);
        word = work.begin / 4;
        UNROLL for (u32 r = 0; r < 2; r++) {
            const i32 row = tile.row + row_of(r);
            x_at[r] = u32(word) * u32(a.num_rows) + u32(row < a.num_rows ? row : a.num_rows - 1);
        }
        w_at = u32(tile.column) / COLUMNS * u32(a.words) + u32(word);
    }

    DEVICE Scales next_scales() {
        if (word_item >= work.end) return coming;
        const Scales s = {{load_fresh(a.x_sf + x_at[0]), load_fresh(a.x_sf + x_at[1])}, load_word(a.w_sf + w_at)};
        if (4 * ++word < work.last) {
            UNROLL for (u32 r = 0; r < 2; r++) x_at[r] += u32(a.num_rows);
            w_at++;
        } else {
            word_item += work.stride;
            if (word_item < work.end) enter_scales();
        }
        return s;
    }

    // Starts d = x wᵀ of a stage. Groups alternate: nobody starts a stage twice before the other has started it once.
    DEVICE void start_products() {
        wait(base + L::FULL + 8 * ring.stage, ring.parity);
        if (TURNS) sync_named(TURN + group, 256);
        const u32 stage = base + ring.stage * L::STAGE;
        const Operand x(stage + (ROWS == 128 ? group * 64 * STEP : 0), 16, 1024);
        const Operand w(stage + L::X + (ROWS == 64 ? group * 64 * STEP : 0), 16, 1024);
        matrix_fence();
        UNROLL for (u32 k = 0; k < STEP; k += 32) product_of_e4m3(d, x.after(k), w.after(k), k > 0);
        matrix_commit();
        left--;
        if (TURNS && (group == 0 || left > 0)) arrive_named(TURN + (group ^ 1), 256);
    }

    DEVICE void release() {
        const u32 empty = base + L::EMPTY + 8 * ring.stage;
        if (work.sides == 1) {
            if (lane == 0) arrive(empty);
        } else if (lane < 2) {
            arrive_remote(remote(empty, lane));
        }
        ring.template next<L::STAGES>();
    }

    // One step: d in the matrix units, then added to the sum, times the scales.
    DEVICE void step(i32 number) {
        start_products();
        const u32 shift = u32(number) % 4 * 8;
        const float w = power_of(scales.w >> shift & 255);
        const float scale[2] = {power_of(scales.x[0] >> shift & 255) * w, power_of(scales.x[1] >> shift & 255) * w};
        if (number % 4 == 3 || number + 1 == work.last) {
            scales = coming;
            coming = next_scales();
        }
        matrix_wait<0>();
        settled(d);
        release();
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = fused(d[j], scale[j / 2 % 2], sum[j]);
    }

    DEVICE void segment(i32 from) {
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = 0;
        for (i32 number = from; number < from + a.steps; number++) step(number);
    }

    DEVICE void tile_of_segments(const Tile& tile) {
        float total[VALUES];
        UNROLL for (u32 j = 0; j < VALUES; j++) total[j] = 0;
        for (i32 s = 0; s < a.segments; s++) {
            segment(s * a.steps);
            UNROLL for (u32 j = 0; j < VALUES; j++) total[j] += sum[j];
        }
        UNROLL for (u32 r = 0; r < 2; r++) store_row(tile.row + row_of(r), tile.column, r, total);
    }

    DEVICE void store_row(i32 row, i32 column, u32 r, const float (&x)[VALUES]) const {
        const bool exists = row < a.num_rows;
        const i64 start = i64(row) * a.num_columns + column;
        if (a.wide) {
            float* out = static_cast<float*>(a.out) + start;
            UNROLL for (u32 k = 0; k < PIECES; k++) {
                if (exists) store_pair(out + column_of(k), {{bits(x[4 * k + 2 * r]), bits(x[4 * k + 2 * r + 1])}});
            }
            return;
        }
        u16* out = static_cast<u16*>(a.out) + start + column_of(0) - lane % 4 * 2;
        UNROLL for (u32 k = 0; k < PIECES; k += 4) {
            Words w;
            UNROLL for (u32 i = 0; i < 4; i++) {
                w.x[i] = pair_of_bf16(x[4 * (k + i) + 2 * r], x[4 * (k + i) + 2 * r + 1]);
            }
            w = turned(w, lane);
            if (exists) store_words(out + k * 8 + lane % 4 * 8, w);
        }
    }

    // A block of the cluster gets the same pieces of every thread of every block; their places are thread by thread.
    DEVICE u32 part(u32 from, u32 piece, u32 share) const {
        return base + L::PARTS + ((from * share + piece) * 256 + group * 128 + thread) * 16;
    }

    DEVICE void send(u32 size, u32 share) const {
        UNROLL for (u32 k = 0; k < PIECES; k++) {
            const u32 to = k * size / PIECES;
            const Words w = {{bits(sum[4 * k]), bits(sum[4 * k + 1]), bits(sum[4 * k + 2]), bits(sum[4 * k + 3])}};
            store_remote(remote(part(cluster_rank(), k - to * share, share), to), w, remote(base + L::ARRIVED, to));
        }
    }

    DEVICE void tile_of_cluster(const Tile& tile) {
        segment(work.begin);
        const u32 size = cluster_size(), share = PIECES / size;
        send(size, share);
        wait_for_remote(base + L::ARRIVED, 0);
        for (u32 i = 0; i < share; i++) {
            float x[4] = {0, 0, 0, 0};
            for (u32 from = 0; from < size; from++) {
                const Words w = load_shared(part(from, i, share));
                UNROLL for (u32 j = 0; j < 4; j++) x[j] += real(w.x[j]);
            }
            const i64 column = tile.column + column_of(cluster_rank() * share + i);
            UNROLL for (u32 r = 0; r < 2; r++) {
                const i64 row = tile.row + row_of(r), at = row * a.num_columns + column;
                if (row >= a.num_rows) continue;
                if (a.wide) {
                    store_pair(static_cast<float*>(a.out) + at, {{bits(x[2 * r]), bits(x[2 * r + 1])}});
                } else {
                    store_word(static_cast<u16*>(a.out) + at, pair_of_bf16(x[2 * r], x[2 * r + 1]));
                }
            }
        }
    }

    DEVICE void run() {
        if (left == 0) return;
        if (TURNS && group == 1) arrive_named(TURN, 256);
        wait_for_launch_before();
        enter_scales();
        scales = next_scales();
        coming = next_scales();
        for (i32 item = work.first; item < work.end; item += work.stride) {
            if constexpr (SPLIT) {
                tile_of_cluster(work.tile(item));
            } else {
                tile_of_segments(work.tile(item));
            }
        }
    }
};

template <u32 ROWS, bool SPLIT> DEVICE void multiply(const Arguments& a) {
    using L = Layout<ROWS, SPLIT>;
    const u32 base = shared_base(), thread = thread_index();
    if (base % 1024) stop();       // the swizzle counts from multiples of this
    if (thread == 0) {
        const u32 sides = SPLIT ? 1 : cluster_size();
        for (u32 i = 0; i < L::STAGES; i++) {
            init_barrier(base + L::FULL + 8 * i, 1);
            init_barrier(base + L::EMPTY + 8 * i, 8 * sides);         // a lane of each warp
        }
        if (SPLIT) {
            init_barrier(base + L::ARRIVED, 1);
            expect_bytes(base + L::ARRIVED, L::PARTS_BYTES);
        }
        fence_barrier_init();
        prefetch_map(a.x);
        prefetch_map(a.w);
    }
    const bool together = cluster_size() > 1;
    if (together) meet_cluster();  // their barriers are there
    sync_block();
    let_next_launch_start();
    if (thread >= 256) {
        fewer_registers<40>();
        if (thread == 256) Producer<ROWS, SPLIT>{a, Work<ROWS, SPLIT>(a), base}.run();
        sync_warp();
    } else {
        more_registers<232>();
        Consumer<ROWS, SPLIT>(a, base, thread).run();
    }
    if (together) meet_cluster();  // a block outlives what the others send it
}

KERNEL(THREADS) fp8_whole_64(const __grid_constant__ Arguments a) { multiply<64, false>(a); }
KERNEL(THREADS) fp8_whole_128(const __grid_constant__ Arguments a) { multiply<128, false>(a); }
KERNEL(THREADS) fp8_split_64(const __grid_constant__ Arguments a) { multiply<64, true>(a); }
KERNEL(THREADS) fp8_split_128(const __grid_constant__ Arguments a) { multiply<128, true>(a); }

EMULATED(fp8_whole_64, Arguments)
EMULATED(fp8_whole_128, Arguments)
EMULATED(fp8_split_64, Arguments)
EMULATED(fp8_split_128, Arguments)
