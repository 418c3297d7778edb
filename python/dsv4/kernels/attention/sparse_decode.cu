// Sparse decode attention on Hopper for many tokens: 64 heads against a window and compressed rows (sparse_decode.py says
// what is computed; docs/notes/attention.md why it is cut this way). Few tokens go to sparse_decode_pair.cu.
//
//     global rows ─▶ producer warps ─▶ ring of stages, 64 keys of bf16 ─▶ two consumer groups ─▶ out
//                    E4M3 x scale                      full ─▶   ◀─ empty
//
// A consumer group owns half of the channels of the result, O [64, 256] in registers. Per stage:
//
//     S = Q Kᵀ, half of it per group ─▶ halves exchanged ─▶ P = 2^(c S - c m), m the running maximum ─▶ O = α O + P K
//
// Both groups hold all of S and compute the same P, which goes to the second product from registers.
//
// A score is (channels 0..255) + (channels 256..511), each summed in one chain, and keys are taken in order, here as
// there: which of the two kernels serves a token changes no bit of its result.
#include "sparse_decode.cuh"

constexpr u32 THREADS = 384;       // two consumer groups, one producer group
constexpr u32 TILES = 8;

// Shared memory, in bytes.
constexpr u32 STAGES = 2;
constexpr u32 STAGE = TILES * TILE;
constexpr u32 Q = 0;
constexpr u32 K = STAGE;
constexpr u32 EXCHANGE = K + STAGES * STAGE;       // [2 groups], parts of S: [8, 128 threads] of 16
constexpr u32 FULL = EXCHANGE + 2 * 16384;         // barriers: [stages]
constexpr u32 EMPTY = FULL + 8 * STAGES;           // [stages, 2 halves]
constexpr u32 SHARED_BYTES = EMPTY + 16 * STAGES;

static_assert(SHARED_BYTES == 229424);             // hopper.py asks for so much

enum Named : u32 { QUERIES = 1, WRITTEN = 2, READ = 3 };              // READ + g: group g's part has been read

// ---------------------------------------------------------------------------------------------- producer

// One row per thread and half unit: what memory says of it, and what is known before that comes. The word is looked at
// when the row is located, half a stage later, and by nothing before: who asks waits for the memory.
struct Entry {
    enum How : u32 { EXISTS = 1, COMPRESSED = 2, BLOCK = 4, ODD = 8, END = 16 };  // END: no half unit is left
    u32 word;                      // a slot, or with BLOCK half of it
    u32 how;

    DEVICE u32 slot() const { return how & BLOCK ? 2 * word + ((how & ODD) != 0) : word; }
    DEVICE bool exists() const { return how & EXISTS; }
    DEVICE bool compressed() const { return how & COMPRESSED; }
    DEVICE bool over() const { return how & END; }
};

// Walks the half units of all tokens of a block, ahead of the loads.
struct Walk {
    const Arguments& a;
    Work work;
    i32 item, unit, half, lane_row;
    Token token;
    i32 coming, coming_row;        // of the token after this one: its position, its row of `extra`
    const i32* window;
    const i32* extra;

    DEVICE Walk(const Arguments& arguments, Work todo, i32 row)
        : a(arguments), work(todo), item(todo.first), unit(0), half(0), lane_row(row),
          token(arguments, todo.first, position_of(arguments, todo.first)) {
        coming_row = row_of(a, item);
        enter();
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
        if (over()) return;
        half ^= 1;
        if (half || ++unit < token.last) return;
        item += work.step;
        if (over()) return;
        token = Token(a, item, coming);
        enter();
        const u16* q = a.q + (token.t * a.groups * 64 + token.head) * 512;   // its turn comes soon
        UNROLL for (u32 i = 0; i < 4; i++) prefetch_if(true, q + (thread_index() % 128 + 128 * i) * 64);
    }

    DEVICE bool exists() const {
        const i32 row = half * 32 + lane_row;
        return !over() && row >= token.low(unit) && row < token.high(unit);
    }

    // Without a branch, so that the word is on its way when the next instruction runs.
    DEVICE Entry entry() const {
        const bool compressed = unit >= 2, block = compressed && a.kind == VISIBLE;
        const i32 key = unit * i32(KEYS) + half * 32 + lane_row, row = key - i32(WINDOW);
        const i32* at = compressed ? extra + (block ? row >> 1 : row) : window + key;
        u32 how = (compressed ? Entry::COMPRESSED : 0) | (block ? Entry::BLOCK : 0) | (row & 1 ? Entry::ODD : 0);
        if (exists()) how |= Entry::EXISTS;
        if (over()) how |= Entry::END;
        return {load_word(how & Entry::EXISTS ? at : a.positions), how};
    }

    DEVICE Entry advance() {
        next();
        return entry();
    }
};

// A thread has a quarter of a row: 16 of every 64 channels.
struct Quarter {
    Words codes[TILES];
    Words second;                  // rotary channels are twice as many bytes
    Pair scales;

    DEVICE void fetch(bool exists, const Row& row, u32 quarter) {
        scales = load_pair_if(exists, row.scales);
        UNROLL for (u32 k = 0; k < 7; k++) codes[k] = load_words_if(exists, row.data + k * 64 + quarter * 16);
        codes[7] = load_words_if(exists, row.data + 448 + quarter * 32);
        second = load_words_if(exists, row.data + 464 + quarter * 32);
    }

    // To rows of 128 bytes under the swizzle, a tile of 64 channels behind the other.
    DEVICE void put(u32 at) const {
        UNROLL for (u32 k = 0; k < 7; k++) put_codes(at + k * TILE, codes[k], scale_of(scales, k));
        store_shared(at + 7 * TILE, codes[7]);
        store_shared((at + 7 * TILE) ^ 16, second);
    }
};

// Asks for this thread's share of the lines of a row, which are five, and of its scales'.
DEVICE void to_l2(bool exists, const Row& row, u32 quarter) {
    prefetch_if(exists, row.data + quarter * 128);
    prefetch_if(exists && quarter < 2, quarter == 0 ? row.scales : row.data + 512);
}

// Half a stage at a time: unpack what has come, ask for the next half, and only then for what lies further ahead. A warp
// has six scoreboards, so who waits for one of its loads waits for later ones too: nothing loaded is looked at between
// the request of a half and its unpacking, and rows come to L2 a half before they are loaded to make that wait short.
DEVICE void produce(const Arguments& a, u32 base, u32 thread) {
    const u32 warp = thread / 32, lane = thread % 32, quarter = lane % 4;
    const u32 lane_row = warp * 8 + lane / 4;
    const u32 place = base + K + lane_row * 128 + (((2 * quarter) ^ (lane_row & 7)) << 4);
    const Work work = work_of(a, 1);
    if (work.first >= work.end) return;

    // Most tokens start with the first window slot: it need not wait for the position.
    const u32 guess = load_word(a.window_slots + i64(work.first / a.groups) * WINDOW + lane_row);
    Walk walk(a, work, i32(lane_row));
    const auto locate_entry = [&](const Entry& e) { return locate(a, e.compressed(), e.slot()); };
    Entry entry = walk.entry();
    if (walk.unit == 0) entry.word = guess;
    Quarter x;
    x.fetch(entry.exists(), locate_entry(entry), quarter);
    Entry soon = walk.advance(), later = walk.advance();   // half units after the one in x
    for (u32 n = 0;; n++) {
        const u32 stage = n % STAGES, at = place + stage * STAGE;
        UNROLL for (u32 half = 0; half < 2; half++) {
            MARK(2, n, half * 4);
            wait(base + EMPTY + 16 * stage + 8 * half, (n / STAGES + 1) % 2);
            MARK(2, n, half * 4 + 1);
            x.put(at + half * 4096);
            MARK(2, n, half * 4 + 2);
            const Row next = locate_entry(soon), ahead = locate_entry(later);
            if (half == 1) {
                fence_matrix_reads();
                sync_warp();
                if (lane == 0) arrive(base + FULL + 8 * stage);
                if (soon.over()) return;
            }
            x.fetch(soon.exists(), next, quarter);
            MARK(2, n, half * 4 + 3);
            to_l2(later.exists(), ahead, quarter);
            soon = later;
            later = walk.advance();
        }
    }
}

// ---------------------------------------------------------------------------------------------- consumers

// Rows g and g + 8 of a warp's 16 belong to a thread; of every eight columns, two.
struct Consumer {
    const Arguments& a;
    u32 base, group, thread, lane;
    u32 stage_count;               // stages taken so far, over all tokens
    float o[128];                  // two rows of 64 pairs
    float s[32];
    float m[2], sum[2];            // the running maximum of scores; this thread's part of the denominator

    DEVICE Consumer(const Arguments& arguments, u32 shared, u32 index)
        : a(arguments), base(shared), group(index / 128), thread(index % 128), lane(index % 32), stage_count(0) {}

    DEVICE u32 stage(u32 n) const { return base + K + n % STAGES * STAGE; }

    DEVICE u32 head_row(u32 r) const { return thread / 32 * 16 + lane / 4 + 8 * r; }

    DEVICE void begin() {
        UNROLL for (u32 j = 0; j < 128; j++) o[j] = 0;
        UNROLL for (u32 r = 0; r < 2; r++) {
            m[r] = -1e30f;         // no score yet; below all, and finite, so that a token without keys gets zeros
            sum[r] = 0;
        }
    }

    // Q [64, 512] of an item to shared memory, by both groups; the products of the item before have read theirs.
    DEVICE void load_queries(i32 item) {
        constexpr u32 PIECES = 64 * TILES * 8 / 256, BATCH = 8;   // of 16 bytes, per thread
        const u16* q = a.q + i64(item) * 64 * 512;
        UNROLL for (u32 from = 0; from < PIECES; from += BATCH) {
            Words x[BATCH];
            UNROLL for (u32 i = 0; i < BATCH; i++) x[i] = load_words(q + (group * 128 + thread + 256 * (from + i)) * 8);
            UNROLL for (u32 i = 0; i < BATCH; i++) {
                const u32 piece = group * 128 + thread + 256 * (from + i);
                const u32 head = piece / (8 * TILES), chunk = piece % (8 * TILES), tile = chunk / 8;
                const u32 at = base + Q + tile * TILE + head * 128 + (((chunk % 8) ^ (head & 7)) << 4);
                store_shared(at, tile < 7 ? paired(x[i]) : x[i]);
            }
        }
        fence_matrix_reads();
    }

    // Starts s = Q Kᵀ over this group's half of the channels.
    DEVICE void start_scores(u32 n) {
        MARK(group, n, 4);
        wait(base + FULL + 8 * (n % STAGES), n / STAGES % 2);
        MARK(group, n, 5);
        const Operand q(unknown(base) + Q + group * 4 * TILE, 16, 1024), k(stage(n) + group * 4 * TILE, 16, 1024);
        matrix_fence();
        UNROLL for (u32 i = 0; i < 16; i++) {
            const u32 on = i / 4 * TILE + i % 4 * 32;
            product(s, q.after(on), k.after(on), i > 0);
        }
        matrix_commit();
    }

    // All scores of a stage, x [2 rows, 64 keys], from both groups' parts. `last`: no stage follows.
    DEVICE void exchange(u32 n, bool last, float (&x)[32]) {
        const u32 other = group ^ 1, mine = base + EXCHANGE + group * 16384, theirs = base + EXCHANGE + other * 16384;
        if (n > 0) sync_named(READ + group, 256);
        UNROLL for (u32 j = 0; j < 8; j++) {
            const Words w = {{bits(s[4 * j]), bits(s[4 * j + 1]), bits(s[4 * j + 2]), bits(s[4 * j + 3])}};
            store_shared(mine + j * 2048 + thread * 16, w);
        }
        sync_named(WRITTEN, 256);
        UNROLL for (u32 j = 0; j < 8; j++) {
            const Words w = load_shared(theirs + j * 2048 + thread * 16);
            UNROLL for (u32 i = 0; i < 4; i++) x[4 * j + i] = s[4 * j + i] + real(w.x[i]);
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
            UNROLL for (u32 j = 0; j < 128; j++) o[j] *= factor[j / 2 % 2];
        }
    }

    // Starts O += P K over this group's channels, for 32 keys of a stage.
    DEVICE void start_values(u32 n, u32 half, const u32 (&p)[16]) {
        const Operand k(stage(n) + group * 4 * TILE, TILE, 1024);
        matrix_fence();
        UNROLL for (u32 i = 2 * half; i < 2 * half + 2; i++) {
            product_of_registers(o, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], k.after(i * 2048));
        }
        matrix_commit();
    }

    // All scores of stage n, which is unit u.
    DEVICE void collect(const Token& token, i32 u, u32 n, bool last, float (&x)[32]) {
        MARK(group, n, 0);
        exchange(n, last && u + 1 == token.last, x);
        MARK(group, n, 1);
        if (token.low(u) > 0 || token.high(u) < i32(KEYS)) hide(x, token.low(u), token.high(u));
    }

    DEVICE void release(u32 n, u32 half) {
        if (lane == 0) arrive(base + EMPTY + 16 * (n % STAGES) + 8 * half);
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
        collect(token, token.first, n, last, x);
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
            collect(token, u, n + 1, last, x);
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

    // O over its denominator; four lanes give each other eight channels each of four column groups.
    DEVICE void store(const Token& token) {
        UNROLL for (u32 r = 0; r < 2; r++) {
            sum[r] += real(shuffle_xor(bits(sum[r]), 1));
            sum[r] += real(shuffle_xor(bits(sum[r]), 2));
            const float sink = real(load_word(a.sink + token.head + head_row(r)));
            const float inverse = reciprocal(sum[r] + power_of_2(fused(sink, LOG2E, -(m[r] * a.scale))));
            const u32 channel = group * 256;
            u16* out = a.out + (token.t * a.groups * 64 + token.head + head_row(r)) * 512 + channel;
            UNROLL for (u32 j = 0; j < 8; j++) {
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
        const Work work = work_of(a, 1);
        if (work.first < work.end) load_queries(work.first);
        for (i32 item = work.first; item < work.end; item += work.step) {
            const Token token(a, item, position_of(a, item));
            begin();
            sync_named(QUERIES, 256);
            units(token, item + work.step < work.end ? item + work.step : -1);
            store(token);
        }
    }
};

KERNEL(THREADS) sparse_decode(const __grid_constant__ Arguments a) {
    const u32 base = shared_base(), thread = thread_index();
    if (base % 1024) stop();       // the swizzle counts from multiples of this
    if (thread == 0) {
        for (u32 i = 0; i < STAGES; i++) {
            init_barrier(base + FULL + 8 * i, 4);    // a lane of each warp
            init_barrier(base + EMPTY + 16 * i, 8);
            init_barrier(base + EMPTY + 16 * i + 8, 8);
        }
        fence_barrier_init();
    }
    sync_block();
    if (thread >= 256) {
        fewer_registers<88>();
        produce(a, base, thread - 256);
    } else {
        more_registers<208>();
        Consumer(a, base, thread).run();
    }
}

EMULATED(sparse_decode, Arguments)
