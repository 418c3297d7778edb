// Index scores on Hopper over paged FP4 keys: I[t, s] = Σ_h w[t, h] max(q[t, h] · k[s], 0), of 64 heads of 128 channels.
//
// A block has some tiles of one token, a tile a page of 64 keys. Keys are on the rows of the product and go to the matrix
// units from registers, heads on its columns; so the sum over heads stays inside a thread and two shuffles. A lane reads
// 16 bytes of a key: 32 channels that share a scale. A product takes eight channels of each of four lanes, and the queries
// lie in shared memory in the order that this makes. Keys become E4M3 by table look-up, the four scales of a key folded
// into its codes (logits.py says what counts as zero).
#include "machine.cuh"

using namespace machine;

constexpr u32 HEADS = 64;
constexpr u32 CHANNELS = 128;
constexpr u32 PAGE = 64;           // keys
constexpr u32 ROW = CHANNELS / 2;  // bytes of a key
constexpr u32 THREADS = 128;
constexpr u32 BYTES = HEADS * CHANNELS;  // the token's queries

static_assert(BYTES == 8192);      // hopper.py asks for so much

struct Arguments {
    const u8* q;                   // [T, 64, 128] E4M3
    const float* weights;          // [T, 64]
    const u8* pool;                // pages: rows of all keys, then their scales
    i64 page_bytes;
    const i32* table;              // [B, pages]
    i64 table_stride;
    const i32* token_rows;         // [T]
    const i32* positions;          // [T]
    float* scores;                 // [T, keys]
    i64 scores_stride;
    i32 blocks;                    // of a token
    i32 tiles;                     // of a block
    i32 most_skipped;              // keys of a token whose scores nobody asks for
    i32 ratio;                     // tokens per key
};

// The keys of a thread in one tile, g and g + 8 of its warp's 16: 32 channels, and all four scales.
struct Keys {
    Words x[2];
    u32 scales[2];

    DEVICE void load(const u8* page, u32 first, u32 lane) {
        UNROLL for (u32 r = 0; r < 2; r++) {
            const u32 key = first + r * 8;
            x[r] = load_words(page + key * ROW + lane % 4 * 16);
            scales[r] = load_word(page + PAGE * ROW + key * 4);
        }
    }
};

// E4M3 codes of 2^d times the magnitudes of E2M1, for the lane's scale of the four, with d = 6 for the largest.
struct Table {
    u32 low = 0, high = 0;
    float scale;                   // of the key

    DEVICE Table(u32 scales, u32 lane) {
        const u32 a = scales & 0xFF, b = scales >> 8 & 0xFF, c = scales >> 16 & 0xFF, d = scales >> 24;
        const u32 ab = a > b ? a : b, cd = c > d ? c : d, top = ab > cd ? ab : cd;
        const i32 up = i32(scales >> 8 * (lane % 4) & 0xFF) - i32(top) + 6;
        if (up >= -5) {
            low = 0x3C383000 + u32(up) * 0x08080800;         // zero stays zero
            high = 0x4C484440 + u32(up) * 0x08080808;
        }
        scale = real(top > 6 ? top - 6 << 23 : 0);
    }

    // Eight codes, the first in the lowest bits: four bytes each.
    DEVICE void expand(u32 word, u32& first, u32& second) const {
        const u32 magnitudes = word & 0x77777777, moved = word << 4;
        first = looked_up(low, high, magnitudes) | (looked_up(moved, word, 0x5140) & 0x80808080);
        second = looked_up(low, high, magnitudes >> 16) | (looked_up(moved, word, 0x7362) & 0x80808080);
    }
};

struct Scorer {
    const Arguments& a;
    u32 base, thread, lane, token;
    i32 count;                     // keys that the token sees
    float w[16];                   // of heads 8 j + 2 (lane % 4) and + 1, halved

    // Sixteen bytes of a head's row: four of each lane.
    DEVICE void place_queries() const {
        const u8* q = a.q + i64(token) * (HEADS * CHANNELS);
        UNROLL for (u32 i = 0; i < HEADS * 8 / THREADS; i++) {
            const u32 item = i * THREADS + thread, head = item / 8, chunk = item % 8;
            Words words;
            UNROLL for (u32 j = 0; j < 4; j++) words.x[j] = load_fresh(q + head * CHANNELS + j * 32 + chunk * 4);
            store_shared(base + head * CHANNELS + (chunk ^ head % 8) * 16, words);
        }
        fence_matrix_reads();
        sync_block();
    }

    DEVICE void take_weights() {
        const float* of = a.weights + i64(token) * HEADS + lane % 4 * 2;
        UNROLL for (u32 j = 0; j < 16; j++) w[j] = 0.5f * real(load_fresh(of + j / 2 * 8 + j % 2));
    }

    DEVICE const u8* page(const i32* table, i32 tile) const {
        return a.pool + i64(i32(load_fresh(table + tile))) * a.page_bytes;
    }

    // max(x, 0) is (x + |x|) / 2, exactly, and a NaN stays.
    DEVICE void score(const float (&d)[32], const float (&scale)[2], i32 first) const {
        UNROLL for (u32 r = 0; r < 2; r++) {
            float sum = 0;
            UNROLL for (u32 j = 0; j < 16; j++) {
                const float x = d[j / 2 * 4 + r * 2 + j % 2];
                sum = fused(w[j], x + magnitude(x), sum);
            }
            sum += real(shuffle_xor(bits(sum), 1));
            sum += real(shuffle_xor(bits(sum), 2));
            const i32 key = first + i32(r * 8);
            if (lane % 4 == 0 && key < count) store_word(a.scores + i64(token) * a.scores_stride + key, bits(sum * scale[r]));
        }
    }

    DEVICE void run(i32 tile, i32 end) {
        const i32* table = a.table + i64(i32(load_fresh(a.token_rows + token))) * a.table_stride;
        const u32 first = thread / 32 * 16 + lane / 4;
        Keys coming;
        coming.load(page(table, tile), first, lane);
        take_weights();
        place_queries();
        const Operand q(base, 16, 1024);
        for (; tile < end; tile++) {
            u32 codes[4][4];       // of each product of 32 channels
            float scale[2];
            UNROLL for (u32 r = 0; r < 2; r++) {
                const Table of(coming.scales[r], lane);
                scale[r] = of.scale;
                UNROLL for (u32 k = 0; k < 4; k++) of.expand(coming.x[r].x[k], codes[k][r], codes[k][2 + r]);
            }
            float d[32];
            matrix_fence();
            UNROLL for (u32 k = 0; k < 4; k++) {
                product_of_e4m3(d, codes[k][0], codes[k][1], codes[k][2], codes[k][3], q.after(32 * k), k > 0);
            }
            matrix_commit();
            if (tile + 1 < end) coming.load(page(table, tile + 1), first, lane);
            matrix_wait<0>();
            settled(d);
            UNROLL for (u32 k = 0; k < 4; k++) kept(codes[k]);
            score(d, scale, tile * i32(PAGE) + i32(first));
        }
    }
};

KERNEL_BESIDE(THREADS, 5) index_scores(const __grid_constant__ Arguments a) {
    const u32 base = shared_base(), thread = thread_index(), token = block_index() / u32(a.blocks);
    if (base % 1024) stop();       // the swizzle counts from multiples of this
    const i32 count = (i32(load_fresh(a.positions + token)) + 1) / a.ratio;
    const i32 tile = i32(block_index() % u32(a.blocks)) * a.tiles, pages = (count + i32(PAGE) - 1) / i32(PAGE);
    const i32 end = tile + a.tiles < pages ? tile + a.tiles : pages;
    if (tile >= end || count <= a.most_skipped) return;
    Scorer{a, base, thread, thread % 32, token, count, {}}.run(tile, end);
}

EMULATED(index_scores, Arguments)
