// What the two kernels of sparse decode share: their arguments, which keys a token has, and how rows are unpacked.
#pragma once
#include "machine.cuh"

using namespace machine;

constexpr u32 KEYS = 64;           // of a stage, and of a unit of work
constexpr u32 WINDOW = 128;
constexpr u32 TILE = 8192;         // 64 rows of 64 channels
constexpr u32 ROW = 576, SCALES = 8;
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
    u32* timeline;                 // [3 groups, 256 stages, 8 events], with -DTIMELINE alone
};

// Clocks of the first block, to see who waits for whom; not in the kernels that serve.
#ifdef TIMELINE
#define MARK(group, n, event)                                                              \
    if (thread % 128 == 0 && block_index() == 0 && (n) < 256) {                            \
        store_word(a.timeline + ((group) * 256 + (n)) * 8 + (event), ticks());             \
    }
#else
#define MARK(group, n, event)
#endif

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

struct Work {                      // which tokens a team takes: a block, or a pair of blocks
    i32 first, step, end;
};

DEVICE Work work_of(const Arguments& a, u32 blocks) {
    return {i32(block_index() / blocks), i32(num_blocks() / blocks), a.num_tokens * a.groups};
}

// The row of `extra` that belongs to an item, where VISIBLE names it; any number elsewhere.
DEVICE i32 row_of(const Arguments& a, i32 item) {
    return i32(load_word(a.kind == VISIBLE ? a.token_rows + item / a.groups : a.positions));
}

struct Row {
    const u8* data;
    const u8* scales;
};

DEVICE Row locate(const Arguments& a, bool compressed, u32 slot) {
    const u32 shift = compressed ? a.page_shift : 6;
    const i64 page = slot >> shift;
    const u32 at = slot & ((1u << shift) - 1);
    const u8* start = compressed ? a.extra_pool + page * a.extra_stride : a.window_pool + page * a.window_stride;
    return {start + at * ROW, start + (ROW << shift) + at * SCALES};
}

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

// Channels in order -> 0 2 1 3 of every four, and back: the permutation is its own inverse. E4M3 channels lie in shared
// memory so: even and odd bytes of a word become pairs with fewer instructions. Q is permuted when it is loaded, O when it
// is stored; the rotary part is in order.
DEVICE Words paired(Words x) {
    return {{bytes_of(x.x[0], x.x[1], 0x5410), bytes_of(x.x[0], x.x[1], 0x7632),
             bytes_of(x.x[2], x.x[3], 0x5410), bytes_of(x.x[2], x.x[3], 0x7632)}};
}
