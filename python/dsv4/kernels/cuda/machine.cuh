// The few instructions that our CUDA kernels are made of, twice: as PTX for sm_90a here, and in emulated.h as a thread
// block on the CPU that checks what it is told to do. A kernel includes this file alone and uses nothing else.
//
// Shared memory is addressed by 32-bit offsets (PTX's shared window). Threads are counted from 0 in a block; a group is
// four warps, 128 threads, which own one matrix product together.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

struct alignas(16) Words {  // 16 bytes, as one access moves them
    u32 x[4];
};

struct alignas(8) Pair {
    u32 x[2];
};

struct alignas(64) TensorMap {  // a matrix in global memory and the boxes that are copied of it; the driver's own encoding
    u64 opaque[16];
};

#ifndef __CUDACC__
#include "emulated.h"  // tests/kernels/cuda
#else

#define DEVICE __device__ __forceinline__
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define KERNEL_BESIDE(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define KERNEL_OF_PAIRS(threads) extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(threads, 1)
#define UNROLL _Pragma("unroll")
#define EMULATED(name, Arguments)

namespace machine {

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_index() { return blockIdx.x; }
DEVICE u32 num_blocks() { return gridDim.x; }

DEVICE u32 bits(float x) { return __float_as_uint(x); }
DEVICE float real(u32 x) { return __uint_as_float(x); }
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float magnitude(float x) { return fabsf(x); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }

DEVICE float reciprocal(float x) {  // within one unit in the last place
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two bf16, `low` in the lower half; nearest, ties to even.
DEVICE u32 pair_of_bf16(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// x, of which the compiler knows nothing: what is computed from it stays where it is, and in no register before.
DEVICE u32 unknown(u32 x) {
    asm volatile("" : "+r"(x));
    return x;
}

DEVICE u32 product_of_pairs(u32 a, u32 b) {  // of bf16; subnormals count
    u32 y;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}

// Byte i of the result is byte `selector >> 4 i & 7` of the eight bytes b:a.
DEVICE u32 bytes_of(u32 a, u32 b, u32 selector) { return __byte_perm(a, b, selector); }

// The same in one instruction whatever the selector, whose digits have to be below 8.
DEVICE u32 looked_up(u32 a, u32 b, u32 selector) {
    u32 y;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
    return y;
}

// ---------------------------------------------------------------------------------------------- memory

DEVICE u32 shared_base() {
    extern __shared__ __align__(1024) u8 dynamic_shared[];
    return static_cast<u32>(__cvta_generic_to_shared(dynamic_shared));
}

DEVICE Words load_shared(u32 at) {
    Words w;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3]) : "r"(at) : "memory");
    return w;
}

DEVICE Pair load_shared_pair(u32 at) {
    Pair w;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(w.x[0]), "=r"(w.x[1]) : "r"(at) : "memory");
    return w;
}

DEVICE void store_shared(u32 at, Words w) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(at), "r"(w.x[0]), "r"(w.x[1]), "r"(w.x[2]), "r"(w.x[3]) : "memory");
}

// Global memory that this launch does not write; what is read once stays out of L1.
DEVICE Words load_words(const void* at) {
    Words w;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3]) : "l"(at));
    return w;
}

// The same where there is something to load, and zeros elsewhere: one predicated instruction and no branch.
DEVICE Words load_words_if(bool exists, const void* at) {
    Words w;
    asm volatile(
        "{ .reg .pred exists;\n"
        "setp.ne.u32 exists, %4, 0;\n"
        "mov.b32 %0, 0;\nmov.b32 %1, 0;\nmov.b32 %2, 0;\nmov.b32 %3, 0;\n"
        "@exists ld.global.nc.L1::no_allocate.L2::128B.v4.b32 {%0, %1, %2, %3}, [%5]; }"
        : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3]) : "r"(u32(exists)), "l"(at));
    return w;
}

DEVICE Pair load_pair_if(bool exists, const void* at) {
    Pair w;
    asm volatile(
        "{ .reg .pred exists;\n"
        "setp.ne.u32 exists, %2, 0;\n"
        "mov.b32 %0, 0;\nmov.b32 %1, 0;\n"
        "@exists ld.global.nc.v2.b32 {%0, %1}, [%3]; }"
        : "=r"(w.x[0]), "=r"(w.x[1]) : "r"(u32(exists)), "l"(at));
    return w;
}

DEVICE u32 load_word(const void* at) {
    u32 w;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(w) : "l"(at));
    return w;
}

// Global memory that the launch before this one may have written: after `wait_for_launch_before`.
DEVICE u32 load_fresh(const void* at) {
    u32 w;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(w) : "l"(at) : "memory");
    return w;
}

// The line of this address comes to L2.
DEVICE void prefetch_if(bool exists, const void* at) {
    asm volatile(
        "{ .reg .pred exists;\n"
        "setp.ne.u32 exists, %0, 0;\n"
        "@exists prefetch.global.L2 [%1]; }" :: "r"(u32(exists)), "l"(at));
}

DEVICE void store_words(void* at, Words w) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "l"(at), "r"(w.x[0]), "r"(w.x[1]), "r"(w.x[2]), "r"(w.x[3]) : "memory");
}

DEVICE void store_word(void* at, u32 w) { asm volatile("st.global.b32 [%0], %1;" :: "l"(at), "r"(w) : "memory"); }

DEVICE void stop() { asm volatile("trap;"); }

DEVICE u32 ticks() {  // of the multiprocessor's clock
    u32 now;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(now) :: "memory");
    return now;
}

// ---------------------------------------------------------------------------------------------- threads

DEVICE u32 shuffle_xor(u32 x, u32 mask) { return __shfl_xor_sync(0xFFFFFFFF, x, mask); }
DEVICE u32 first_lane(u32 x) { return __shfl_sync(0xFFFFFFFF, x, 0); }  // the same in all lanes, as the compiler sees
DEVICE bool any_lane(bool x) { return __any_sync(0xFFFFFFFF, x); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_block() { __syncthreads(); }

// Named barriers 1..15: `threads` arrive at one, and those that synchronise wait for all of them.
DEVICE void sync_named(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" :: "r"(id), "r"(threads) : "memory"); }
DEVICE void arrive_named(u32 id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" :: "r"(id), "r"(threads) : "memory");
}

DEVICE void init_barrier(u32 at, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(at), "r"(count) : "memory");
}

DEVICE void arrive(u32 at) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" :: "r"(at) : "memory");
}

// Waits until the phase of this parity is over; before the first phase the one of parity 1 counts as over.
DEVICE void wait(u32 at, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }"
        :: "r"(at), "r"(parity) : "memory");
}

// This thread's stores to shared memory become visible to the matrix units (after a barrier).
DEVICE void fence_matrix_reads() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

template <int COUNT> DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(COUNT)); }
template <int COUNT> DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(COUNT)); }

// ---------------------------------------------------------------------------------------------- launches

// The launch after this one may start before this one ends, if it was launched as one that may; what it needs of this
// one it waits for: until the launch before has ended and its stores are seen.
DEVICE void let_next_launch_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
DEVICE void wait_for_launch_before() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// ---------------------------------------------------------------------------------------------- clusters

DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

DEVICE void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// All threads of the cluster meet, and say nothing of memory: barriers are known once `fence_barrier_init` was called.
DEVICE void meet_cluster() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// The same shared address in a block of the cluster; good for the next three functions alone.
DEVICE u32 remote(u32 at, u32 rank) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(rank));
    return there;
}

// A store whose bytes count at the barrier beside it, there, when they have landed.
DEVICE void store_remote(u32 at, Words w, u32 barrier) {
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                 :: "r"(at), "r"(w.x[0]), "r"(w.x[1]), "r"(w.x[2]), "r"(w.x[3]), "r"(barrier) : "memory");
}

// Says that this thread's products have read what they read; of its stores to memory it says nothing to other blocks,
// which would take a fence of the whole device.
DEVICE void arrive_remote(u32 at) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(at) : "memory");
}

// Arrives at a barrier of this block, whose phase then also waits for so many bytes: of remote stores, of copies.
DEVICE void expect_bytes(u32 at, u32 bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
                 :: "r"(at), "r"(bytes) : "memory");
}

DEVICE void wait_for_remote(u32 at, u32 parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }"
        :: "r"(at), "r"(parity) : "memory");
}

// ---------------------------------------------------------------------------------------------- copies

// The copy engine brings a box of a matrix, its first element at (row, column), to shared memory: rows of 128 bytes under
// the 128-byte swizzle, zeros where the matrix has ended. Its bytes count at the barrier. By one thread.
DEVICE void copy_box(u32 at, const TensorMap& map, i32 row, i32 column, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        :: "r"(at), "l"(&map), "r"(column), "r"(row), "r"(barrier) : "memory");
}

// The same to this place in every block of the cluster whose bit is set, and its bytes at this barrier there.
DEVICE void copy_box_to(u16 ranks, u32 at, const TensorMap& map, i32 row, i32 column, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;"
        :: "r"(at), "l"(&map), "r"(column), "r"(row), "r"(barrier), "h"(ranks) : "memory");
}

DEVICE void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory"); }

// ---------------------------------------------------------------------------------------------- products

// Products run behind the program: matrix_fence before the first one and after registers of one were touched,
// matrix_commit closes a batch, matrix_wait<n> waits until at most n batches run; then `settled` on what they wrote.
DEVICE void matrix_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void matrix_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int RUNNING> DEVICE void matrix_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(RUNNING) : "memory");
}

template <int N> DEVICE void settled(float (&d)[N]) {
    UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i]) :: "memory");
}

// Products read an operand in registers until they have ended, while the compiler takes it for read when they start: what
// is in them stays up to here.
template <int N> DEVICE void kept(const u32 (&x)[N]) {
    UNROLL for (int i = 0; i < N; i++) asm volatile("" :: "r"(x[i]) : "memory");
}

#include "products.cuh"

}  // namespace machine
#endif

namespace machine {

// Where an operand lies: rows of 128 bytes under the 128-byte swizzle, eight of them to a 1024-byte atom (start bits
// 0-13, leading 16-29, stride 32-45, each in units of 16 bytes; mode 1 at bit 62).
//
// K-major (the contraction runs along the 128 bytes): `stride` from eight rows to the next eight; `leading` unused.
// N-major (the contraction runs across the rows): `stride` the same, `leading` from 64 columns to the next 64.
struct Operand {
    u32 low, high;

    DEVICE Operand(u32 at, u32 leading, u32 stride)
        : low((at & 0x3FFFF) >> 4 | (leading >> 4) << 16), high(stride >> 4 | 1u << 30) {}
    DEVICE u64 after(u32 bytes) const { return u64(high) << 32 | (low + bytes / 16); }
};

// Word i of lane l of four -> word l of lane i.
DEVICE Words turned(Words w, u32 lane) {
    UNROLL for (u32 step = 1; step < 4; step *= 2) {
        UNROLL for (u32 i = 0; i < 4; i++) {
            if (i & step) continue;
            const bool upper = lane & step;
            const u32 got = shuffle_xor(upper ? w.x[i] : w.x[i + step], step);
            w.x[i] = upper ? got : w.x[i];
            w.x[i + step] = upper ? w.x[i + step] : got;
        }
    }
    return w;
}

}  // namespace machine
