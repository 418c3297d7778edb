// Small kernels for the emulator's own tests: one product of each kind, and one fault each.
#include "machine.cuh"

using namespace machine;

struct Arguments {
    TensorMap map;      // of a, [64, 16] bf16 or [100, 160] bytes
    const u16* a;       // [64, 16] bf16
    const u16* b;       // SS: [64, 16]; RS: [16, 256]
    float* d;           // [128, 32] or [128, 128]: what each thread holds
    i32 fault;
};

constexpr u32 A = 0, B = 8192, SIZE = 8192 + 4 * 8192, FULL = SIZE - 64;

DEVICE void put(u32 base, u32 row, u32 chunk, const u16* from) {
    store_shared(base + row * 128 + ((chunk ^ (row & 7)) << 4), load_words(from));
}

DEVICE void dump(float* to, const float* d, u32 count) {
    for (u32 i = 0; i < count; i += 4) {
        store_words(to + i, {{bits(d[i]), bits(d[i + 1]), bits(d[i + 2]), bits(d[i + 3])}});
    }
}

// a and b K-major: 64 rows of 32 bytes in the first quarter of their 128-byte rows.
KERNEL(128) from_memory(const __grid_constant__ Arguments x) {
    const u32 t = thread_index(), base = shared_base();
    put(base + A, t / 2, t % 2, x.a + t * 8);
    put(base + B, t / 2, t % 2, x.b + t * 8);
    fence_matrix_reads();
    sync_block();
    float d[32];
    for (float& v : d) v = 0;
    matrix_fence();
    product(d, Operand(base + A, 16, 1024).after(0), Operand(base + B, 16, 1024).after(0), 0);
    matrix_commit();
    matrix_wait<0>();
    settled(d);
    dump(x.d + t * 32, d, 32);
}

// a from registers, b N-major: 16 rows of 256 columns, 64 columns to a tile.
KERNEL(128) from_registers(const __grid_constant__ Arguments x) {
    const u32 t = thread_index(), base = shared_base();
    for (u32 i = t; i < 16 * 32; i += 128) {
        const u32 row = i / 32, chunk = i % 32;
        put(base + B + chunk / 8 * 8192, row, chunk % 8, x.b + i * 8);
    }
    fence_matrix_reads();
    sync_block();
    u32 a[4];
    for (u32 i = 0; i < 4; i++) {
        const u32 row = t / 32 * 16 + t % 32 / 4 + (i & 1) * 8, k = t % 4 * 2 + (i >> 1) * 8;
        a[i] = load_word(x.a + row * 16 + k);
    }
    float d[128];
    for (float& v : d) v = 1;
    matrix_fence();
    product_of_registers(d, a[0], a[1], a[2], a[3], Operand(base + B, 8192, 1024).after(0));
    matrix_commit();
    matrix_wait<0>();
    settled(d);
    dump(x.d + t * 128, d, 128);
}

KERNEL(128) faulty(const __grid_constant__ Arguments x) {
    const u32 t = thread_index(), base = shared_base();
    if (x.fault == 0) load_shared(base + 16 * t);                               // nobody wrote it
    if (x.fault == 1) store_shared(base + SIZE, {});                            // outside
    if (x.fault == 2) store_shared(base + 8, {});                               // misaligned
    if (x.fault == 3) load_words(x.a + 64 * 16);                                // outside what was given
    if (x.fault == 4 && t > 0) sync_block();                                    // one thread does not come
    if (x.fault == 5) arrive(base);                                             // no barrier there
    if (x.fault == 6) init_barrier(base + 8 * t, 1), wait(base + 8 * t, 0);     // nobody arrives
    if (x.fault == 7) shuffle_xor(t, t == 0 ? 1 : 2), store_words(x.d + 1, {}); // misaligned in global memory
    if (x.fault == 8) store_words(const_cast<u16*>(x.a), {});                   // an input
    if (x.fault == 15) store_shared(base + 16 * (t % 64), {});                  // two warps write the same
    if (x.fault == 16) store_shared(base + 16 * t, {}), load_shared(base + 16 * (t ^ 32));  // read too early
    if (x.fault == 17) looked_up(0, 0, 0x1800);                                 // would repeat a sign
    if (x.fault < 9 || x.fault > 14) return;
    put(base + A, t / 2, t % 2, x.a + t * 8);
    put(base + B, t / 2, t % 2, x.a + t * 8);
    if (x.fault != 9) fence_matrix_reads();                                     // 9: stores not fenced
    sync_block();
    float d[32] = {};
    if (x.fault != 10) matrix_fence();                                          // 10
    const u32 off = x.fault == 11 ? 128 : 0;                                    // off the pattern
    product(d, Operand(base + A + off, 16, 1024).after(0), Operand(base + B, 16, 1024).after(0), t == 5 && x.fault == 12);
    matrix_commit();
    if (x.fault == 13) sync_block(), store_shared(base + A + 128 * (t / 2), {}); // while the product runs
    if (x.fault != 14) matrix_wait<0>();                                        // 14: NaN instead of the sum
    dump(x.d + t * 32, d, 32);
}

// d = a bᵀ of E4M3, a and b boxes of 64 rows of the map's matrix: from row 0, from row 64 and column 128 with zeros.
KERNEL(128) from_copies(const __grid_constant__ Arguments x) {
    const u32 t = thread_index(), base = shared_base();
    wait_for_launch_before();
    if (t == 0) {
        init_barrier(base + FULL, 1);
        fence_barrier_init();
        expect_bytes(base + FULL, 2 * 8192);
        copy_box(base + A, x.map, 0, 0, base + FULL);
        copy_box(base + B, x.map, 64, 128, base + FULL);
    }
    sync_block();
    wait(base + FULL, 0);
    float d[32];
    matrix_fence();
    product_of_e4m3(d, Operand(base + A, 16, 1024).after(0), Operand(base + B, 16, 1024).after(0), 0);
    matrix_commit();
    matrix_wait<0>();
    settled(d);
    dump(x.d + t * 32, d, 32);
}

// The same with a from registers.
KERNEL(128) from_registers_and_copies(const __grid_constant__ Arguments x) {
    const u32 t = thread_index(), base = shared_base();
    wait_for_launch_before();
    if (t == 0) {
        init_barrier(base + FULL, 1);
        fence_barrier_init();
        expect_bytes(base + FULL, 8192);
        copy_box(base + B, x.map, 64, 128, base + FULL);
    }
    sync_block();
    wait(base + FULL, 0);
    u32 a[4];
    for (u32 i = 0; i < 4; i++) {
        const u32 row = t / 32 * 16 + t % 32 / 4 + (i & 1) * 8, k = t % 4 * 4 + (i >> 1) * 16;
        a[i] = load_word(reinterpret_cast<const u8*>(x.a) + row * 160 + k);
    }
    float d[32];
    matrix_fence();
    product_of_e4m3(d, a[0], a[1], a[2], a[3], Operand(base + B, 16, 1024).after(0), 0);
    matrix_commit();
    matrix_wait<0>();
    settled(d);
    dump(x.d + t * 32, d, 32);
}

KERNEL(128) faulty_copy(const __grid_constant__ Arguments x) {
    const u32 t = thread_index(), base = shared_base(), full = base + FULL;
    if (t == 0) init_barrier(full, 1), init_barrier(full + 8, 1);
    if (x.fault == 7 && t == 0) store_shared(base + A, {});                     // not fenced
    sync_block();
    if (t == 0) {
        if (x.fault != 0) wait_for_launch_before();                             // 0: too early
        expect_bytes(full, x.fault == 1 ? 4096 : 8192);                         // 1: more than is expected
        const u32 at = base + A + (x.fault == 2 ? 128 : 0);                     // 2: off the pattern
        copy_box(at, x.map, 0, 0, x.fault == 3 ? full + 16 : full);             // 3: no barrier there
        if (x.fault == 4) expect_bytes(full + 8, 8192), copy_box(base + A, x.map, 0, 0, full + 8);  // over the first
    }
    sync_block();
    if (x.fault == 5) load_shared(base + A);                                    // not waited for
    if (x.fault == 6) copy_box_to(2, base + A, x.map, 0, 0, full);              // there is no second block
    if (x.fault == 8) wait(full, 0), wait(full, 1);                             // the next copy never comes
    if (x.fault == 9) load_fresh(x.a);                                          // this thread has not waited
}

// Two groups take what a third one gives back: 168 registers a thread at launch.
KERNEL(384) trade(const __grid_constant__ Arguments x) {
    if (thread_index() < 256) {
        more_registers<232>();
    } else if (x.fault == 0) {
        fewer_registers<48>();                                                  // eight too few
    } else {
        fewer_registers<40>();
    }
}

// A thread tells the other block that it has been here, and both end.
KERNEL_OF_PAIRS(128) told(const __grid_constant__ Arguments x) {
    const u32 barrier = shared_base() + FULL;
    if (thread_index() == 0) init_barrier(barrier, 1);
    fence_barrier_init();
    meet_cluster();
    if (thread_index() == 0) arrive_remote(remote(barrier, cluster_rank() ^ 1));
    if (x.fault == 0) {
        meet_cluster();                                                         // orders nothing
    } else {
        sync_cluster();
    }
}

EMULATED(from_copies, Arguments)
EMULATED(from_registers_and_copies, Arguments)
EMULATED(faulty_copy, Arguments)
EMULATED(trade, Arguments)
EMULATED(told, Arguments)
EMULATED(from_memory, Arguments)
EMULATED(from_registers, Arguments)
EMULATED(faulty, Arguments)
