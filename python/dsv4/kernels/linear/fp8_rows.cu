// Rows times an FP8 weight on Hopper: out [T, N] = x [T, K] wᵀ in bf16, with the arithmetic of few_rows.py and
// many_rows.py bit for bit (gemm.py says what is computed; docs/notes/gemm.md why it is cut this way).
//
//     x, w ─▶ copy engine ─▶ ring of stages, 128 channels ─▶ two consumer groups ─▶ shared memory ─▶ writers ─▶ out
//     their scales ─▶ one warp ─▶       full ─▶   ◀─ empty
//
// A block does tile after tile of ROWS by COLUMNS outputs. Of 128 rows, each group has 64 and all columns; of 64, all rows
// and half of the columns. A stage's products leave the matrix units and are added, times the scales of row and weight,
// to the sum of a segment of K; segments are added in their order. Consumers do nothing else: who waits for a load, for
// the copy engine or for stores is another warp.
#include "machine.cuh"

using namespace machine;

constexpr u32 STEP = 128;          // channels of a stage, and their bytes
constexpr u32 BLOCK = 128;         // columns that share a scale of the weight
constexpr u32 THREADS = 384;       // two consumer groups, and one that copies, scales and writes

struct Arguments {
    TensorMap x;                   // [T, K] E4M3, boxes of a tile's rows x 128
    TensorMap w;                   // [N, K] E4M3, boxes of a tile's columns x 128
    const u32* x_sf;               // [words, T]: four E8M0 bytes each
    const u32* w_sf;               // [N / 128, words]
    u16* out;                      // [T, N] bf16
    i32 num_rows;                  // T
    i32 num_columns;               // N
    i32 segments;
    i32 steps;                     // of a segment
    i32 words;                     // of scales, for a row of channels
    i32 band;                      // tiles of rows that go together
    u32* timeline;                 // [2 groups, 128 stages, 4 events], with -DTIMELINE alone
};

// Clocks of the first block, about 45 cycles each, to see who waits for whom; not in the kernel that serves.
#ifdef TIMELINE
#define MARK(n, event)                                                              \
    if (thread == 0 && block_index() == 0 && (n) < 128) {                           \
        store_word(a.timeline + (group * 128 + (n)) * 4 + (event), ticks());        \
    }
#else
#define MARK(n, event)
#endif

template <u32 TILE_ROWS, u32 TILE_COLUMNS> struct Layout {
    static constexpr u32 ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS;
    static constexpr u32 STAGES = ROWS == 128 ? 5 : COLUMNS == 128 ? 8 : 12;
    static constexpr u32 BATCH = 128 * 128 / (ROWS * COLUMNS);        // stages whose products a group starts at once
    static constexpr u32 X = ROWS * STEP;
    static constexpr u32 STAGE = X + COLUMNS * STEP;
    static constexpr u32 SCALES = STAGES * STAGE;                     // [stages, pairs of rows, 16 bytes]
    static constexpr u32 STAGE_SCALES = ROWS * 8;
    static constexpr u32 OUT = SCALES + STAGES * STAGE_SCALES;        // a tile in bf16: [groups, 64 rows, its columns]
    static constexpr u32 OUT_ROW = ROWS * COLUMNS / 64;               // bytes
    static constexpr u32 FULL = OUT + 2 * 64 * OUT_ROW;
    static constexpr u32 EMPTY = FULL + 8 * STAGES;
    static constexpr u32 OUT_FULL = EMPTY + 8 * STAGES;               // of each group
    static constexpr u32 OUT_EMPTY = OUT_FULL + 16;
    static constexpr u32 BYTES = OUT_EMPTY + 16;

    // The part of a tile that a group has.
    static DEVICE u32 first_row(u32 group) { return ROWS == 128 ? group * 64 : 0; }
    static DEVICE u32 first_column(u32 group) { return ROWS == 64 ? group * (COLUMNS / 2) : 0; }

    // Where 16 bytes of a row of it are put: rows beside each other use different banks.
    static DEVICE u32 out(u32 group, u32 row, u32 piece) {
        const u32 turn = OUT_ROW < 128 ? 0 : row % 2 * 4;
        return OUT + (group * 64 + row) * OUT_ROW + (piece ^ turn) * 16;
    }
};

static_assert(Layout<128, 128>::BYTES == 201840);  // hopper.py asks for so much
static_assert(Layout<64, 128>::BYTES == 217248);
static_assert(Layout<64, 64>::BYTES == 211168);

struct Tile {                      // its first row and column
    i32 row, column;
};

// The tiles of a block, in bands of rows, so that what runs together shares weights and rows in the L2 cache.
template <class L> struct Work {
    i32 first, stride, end;
    i32 steps;                     // of a tile
    i32 tall, across;              // tiles of rows, of columns
    i32 band;

    DEVICE explicit Work(const Arguments& a)
        : first(i32(block_index())), stride(i32(num_blocks())), steps(a.segments * a.steps),
          tall((a.num_rows + i32(L::ROWS) - 1) / i32(L::ROWS)), across(a.num_columns / i32(L::COLUMNS)), band(a.band) {
        end = tall * across;
    }

    DEVICE Tile tile(i32 item) const {
        const i32 before = item / (band * across) * band;
        const i32 height = tall - before < band ? tall - before : band;
        const i32 rest = item - before * across;
        return {(before + rest % height) * i32(L::ROWS), rest / height * i32(L::COLUMNS)};
    }

    DEVICE i32 stages() const { return first < end ? ((end - 1 - first) / stride + 1) * steps : 0; }
};

struct Ring {                      // the stage that is next, and the parity of its phase
    u32 stage = 0, parity = 0;

    template <u32 STAGES> DEVICE void next() {
        if (++stage < STAGES) return;
        stage = 0;
        parity ^= 1;
    }
};

// ---------------------------------------------------------------------------------------------- copies

// One thread. Weights of the first stages come before the launch before this one has ended; rows do not.
template <class L> struct Producer {
    const Arguments& a;
    Work<L> work;
    u32 base;

    struct Place {                 // of a stage: in the ring, among the tiles and along K
        Ring ring;
        i32 item, step;
        Tile tile;
    };

    DEVICE Place start() const { return {{}, work.first, 0, work.tile(work.first)}; }

    DEVICE void next(Place& p) const {
        p.ring.template next<L::STAGES>();
        if (++p.step < work.steps) return;
        p.step = 0;
        p.item += work.stride;
        p.tile = work.tile(p.item);
    }

    DEVICE u32 full(const Place& p) const { return base + L::FULL + 8 * p.ring.stage; }
    DEVICE u32 stage(const Place& p) const { return base + p.ring.stage * L::STAGE; }

    DEVICE void bring_weight(const Place& p) const {
        expect_bytes(full(p), L::STAGE);
        copy_box(stage(p) + L::X, a.w, p.tile.column, p.step * i32(STEP), full(p));
    }

    DEVICE void run() const {
        const i32 count = work.stages(), early = count < i32(L::STAGES) ? count : i32(L::STAGES);
        if (count == 0) return;
        Place p = start(), ahead = start();
        for (i32 n = 0; n < early; n++, next(ahead)) bring_weight(ahead);
        wait_for_launch_before();
        for (i32 n = 0; n < count; n++, next(p)) {
            if (n >= early) {
                wait(base + L::EMPTY + 8 * p.ring.stage, p.ring.parity ^ 1);
                bring_weight(p);
            }
            copy_box(stage(p), a.x, p.tile.row, p.step * i32(STEP), full(p));
        }
    }
};

// ---------------------------------------------------------------------------------------------- scales

// Byte -> 2^(byte - 127); 255 is NaN.
DEVICE float power_of(u32 byte) { return real(byte == 255 ? 0x7FC00000 : byte == 0 ? 0x00400000 : byte << 23); }

// One warp makes what consumers multiply by: for every stage and row, the scale of the row times that of the weight.
// A lane has pairs of rows that are 8 apart, as a consumer's thread has them.
template <class L> struct Scaler {
    static constexpr u32 PAIRS = L::ROWS / 64;

    const Arguments& a;
    Work<L> work;
    u32 base, lane;

    struct Four {                  // steps, in a word
        u32 x[PAIRS][2], w;
    };

    // A row that is not there reads the last one's.
    DEVICE Four load(const Tile& tile, i32 word) const {
        Four f;
        UNROLL for (u32 i = 0; i < PAIRS; i++) {
            UNROLL for (u32 r = 0; r < 2; r++) {
                const i32 row = tile.row + i32(i * 64 + lane / 8 * 16 + lane % 8 + r * 8);
                f.x[i][r] = load_fresh(a.x_sf + i64(word) * a.num_rows + (row < a.num_rows ? row : a.num_rows - 1));
            }
        }
        f.w = load_word(a.w_sf + tile.column / i32(BLOCK) * a.words + word);
        return f;
    }

    DEVICE void put(const Four& f, u32 shift, const Ring& ring) const {
        const float w = power_of(f.w >> shift & 255);
        Words scales[PAIRS] = {};
        UNROLL for (u32 i = 0; i < PAIRS; i++) {
            UNROLL for (u32 r = 0; r < 2; r++) {
                scales[i].x[r] = unknown(bits(power_of(f.x[i][r] >> shift & 255) * w));  // before the wait, not behind it
            }
        }
        wait(base + L::EMPTY + 8 * ring.stage, ring.parity ^ 1);
        const u32 at = base + L::SCALES + ring.stage * L::STAGE_SCALES + lane * 16;
        UNROLL for (u32 i = 0; i < PAIRS; i++) store_shared(at + i * 512, scales[i]);
        sync_warp();
        if (lane == 0) arrive(base + L::FULL + 8 * ring.stage);
    }

    DEVICE void run() const {
        if (work.first >= work.end) return;
        wait_for_launch_before();
        Ring ring;
        i32 item = work.first, word = 0;
        Tile tile = work.tile(item);
        Four coming = load(tile, word);
        while (item < work.end) {
            const Four now = coming;
            const i32 left = work.steps - 4 * word, count = left < 4 ? left : 4;
            word++;
            if (count == left) {
                word = 0;
                item += work.stride;
                tile = work.tile(item);
            }
            if (item < work.end) coming = load(tile, word);
            for (i32 n = 0; n < count; n++, ring.template next<L::STAGES>()) put(now, 8 * u32(n), ring);
        }
    }
};

// ---------------------------------------------------------------------------------------------- results

// One warp for each group takes its part of a tile from shared memory to where it belongs, while the next one is made.
template <class L> struct Writer {
    static constexpr u32 PIECES = L::OUT_ROW / 16;                    // of a row
    static constexpr u32 ROWS = 32 / PIECES;                          // that a warp reads at once
    static constexpr u32 DEEP = 4;                                    // reads under way

    const Arguments& a;
    Work<L> work;
    u32 base, group, lane;

    DEVICE void write(const Tile& tile) const {
        const u32 piece = lane % PIECES;
        const i32 first = tile.row + i32(L::first_row(group));
        u16* out = a.out + tile.column + L::first_column(group) + piece * 8;
        for (u32 row = lane / PIECES; row < 64; row += DEEP * ROWS) {
            Words w[DEEP];
            UNROLL for (u32 i = 0; i < DEEP; i++) w[i] = load_shared(base + L::out(group, row + i * ROWS, piece));
            UNROLL for (u32 i = 0; i < DEEP; i++) {
                const i32 at = first + i32(row + i * ROWS);
                if (at < a.num_rows) store_words(out + i64(at) * a.num_columns, w[i]);
            }
        }
    }

    DEVICE void run() const {
        wait_for_launch_before();
        u32 parity = 0;
        for (i32 item = work.first; item < work.end; item += work.stride, parity ^= 1) {
            wait(base + L::OUT_FULL + 8 * group, parity);
            write(work.tile(item));
            sync_warp();
            if (lane == 0) arrive(base + L::OUT_EMPTY + 8 * group);
        }
    }
};

// ---------------------------------------------------------------------------------------------- consumers

// Rows g and g + 8 of a warp's 16 belong to a thread; of every eight columns, two.
template <class L> struct Consumer {
    static constexpr u32 VALUES = L::ROWS * L::COLUMNS / 256;         // of a thread
    static constexpr u32 PIECES = VALUES / 4;

    struct Stage {                 // whose products run: their result, and the scales of the thread's two rows
        float d[VALUES];
        float scale[2];
    };

    const Arguments& a;
    u32 base, group, thread, lane;
    Ring started, ended;
    i32 to_start, to_end;          // stages
    i32 segment = 0, step = 0;     // of the stage that ends next
    u32 parity = 0;                // of the tile in shared memory
    float sum[VALUES], total[VALUES];
#ifdef TIMELINE
    u32 count = 0;                 // of stages that have ended
#endif

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(first_lane(index / 128)), thread(index % 128), lane(index % 32),
          to_start(Work<L>(arguments).stages()), to_end(to_start) {}

    // After the last stage, that one's products start again and nobody looks at them: inside a condition, products would
    // not run behind the program.
    DEVICE void start(Stage& s) {
        if (to_start > 0) wait(base + L::FULL + 8 * started.stage, started.parity);
        const u32 stage = base + started.stage * L::STAGE;
        const Operand x(stage + L::first_row(group) * STEP, 16, 1024);
        const Operand w(stage + L::X + L::first_column(group) * STEP, 16, 1024);
        matrix_fence();
        UNROLL for (u32 k = 0; k < STEP; k += 32) product_of_e4m3(s.d, x.after(k), w.after(k), k > 0);
        matrix_commit();
        const u32 pair = L::first_row(group) / 2 + thread / 32 * 8 + lane / 4;
        const Words scales = load_shared(base + L::SCALES + started.stage * L::STAGE_SCALES + pair * 16);
        UNROLL for (u32 r = 0; r < 2; r++) s.scale[r] = real(scales.x[r]);
        if (--to_start > 0) started.template next<L::STAGES>();
    }

    // Products that have left the matrix units are added, times the scales. Where a group has one stage under way, the
    // next starts at once: the segment and the tile end beside it.
    DEVICE void end(Stage& s) {
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = fused(s.d[j], s.scale[j / 2 % 2], sum[j]);
        if (lane == 0) arrive(base + L::EMPTY + 8 * ended.stage);
        ended.template next<L::STAGES>();
        to_end--;
        MARK(count, 2);
        if (L::BATCH == 1) start(s);
        MARK(count, 3);
        if (++step < a.steps) return;
        step = 0;
        UNROLL for (u32 j = 0; j < VALUES; j++) total[j] += sum[j];
        if (++segment == a.segments) {
            segment = 0;
            give();
            UNROLL for (u32 j = 0; j < VALUES; j++) total[j] = 0;
        }
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = 0;
    }

    // The group's part of a tile to its writer.
    DEVICE void give() {
        wait(base + L::OUT_EMPTY + 8 * group, parity ^ 1);
        parity ^= 1;
        UNROLL for (u32 r = 0; r < 2; r++) {
            UNROLL for (u32 k = 0; k < PIECES; k += 4) {
                Words w;
                UNROLL for (u32 i = 0; i < 4; i++) {
                    w.x[i] = pair_of_bf16(total[4 * (k + i) + 2 * r], total[4 * (k + i) + 2 * r + 1]);
                }
                store_shared(base + L::out(group, thread / 32 * 16 + lane / 4 + 8 * r, k + lane % 4), turned(w, lane));
            }
        }
        sync_warp();
        if (lane == 0) arrive(base + L::OUT_FULL + 8 * group);
    }

    DEVICE void run() {
        if (to_end == 0) return;
        UNROLL for (u32 j = 0; j < VALUES; j++) sum[j] = total[j] = 0;
        Stage s[L::BATCH];
        if (L::BATCH == 1) start(s[0]);
        while (to_end > 0) {
            if (L::BATCH > 1) {
                UNROLL for (u32 i = 0; i < L::BATCH; i++) start(s[i]);
            }
            UNROLL for (u32 i = 0; i < L::BATCH; i++) {
                MARK(count, 0);
                if (L::BATCH - i == 4) matrix_wait<3>();
                if (L::BATCH - i == 3) matrix_wait<2>();
                if (L::BATCH - i == 2) matrix_wait<1>();
                if (L::BATCH - i == 1) matrix_wait<0>();
                settled(s[i].d);
                MARK(count, 1);
                if (to_end > 0) end(s[i]);
#ifdef TIMELINE
                count++;
#endif
            }
        }
        matrix_wait<0>();
    }
};

template <u32 ROWS, u32 COLUMNS> DEVICE void multiply(const Arguments& a) {
    using L = Layout<ROWS, COLUMNS>;
    const u32 base = unknown(shared_base()), thread = thread_index();
    if (base % 1024) stop();       // the swizzle counts from multiples of this
    if (thread == 0) {
        for (u32 i = 0; i < L::STAGES; i++) {
            init_barrier(base + L::FULL + 8 * i, 2);                  // the copies, the scales
            init_barrier(base + L::EMPTY + 8 * i, 8);                 // a lane of each warp
        }
        for (u32 group = 0; group < 2; group++) {
            init_barrier(base + L::OUT_FULL + 8 * group, 4);          // a lane of each warp
            init_barrier(base + L::OUT_EMPTY + 8 * group, 1);
        }
        fence_barrier_init();
        prefetch_map(a.x);
        prefetch_map(a.w);
    }
    sync_block();
    let_next_launch_start();
    if (thread >= 256) {
        fewer_registers<56>();     // with the consumers', what 384 threads have at launch: 168 each
        const u32 warp = thread / 32 - 8;
        if (thread == 256) Producer<L>{a, Work<L>(a), base}.run();
        if (warp == 1) Scaler<L>{a, Work<L>(a), base, thread % 32}.run();
        if (warp >= 2) Writer<L>{a, Work<L>(a), base, warp - 2, thread % 32}.run();
        sync_warp();
    } else {
        more_registers<224>();
        Consumer<L>(a, base, thread).run();
    }
}

KERNEL(THREADS) fp8_64x64(const __grid_constant__ Arguments a) { multiply<64, 64>(a); }
KERNEL(THREADS) fp8_64x128(const __grid_constant__ Arguments a) { multiply<64, 128>(a); }
KERNEL(THREADS) fp8_128x128(const __grid_constant__ Arguments a) { multiply<128, 128>(a); }

EMULATED(fp8_64x64, Arguments)
EMULATED(fp8_64x128, Arguments)
EMULATED(fp8_128x128, Arguments)
