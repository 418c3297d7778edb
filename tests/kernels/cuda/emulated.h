// machine.cuh on a CPU: the blocks of a cluster run as fibers, one per thread, and every instruction is checked.
//
// What it refuses: reads of shared or global memory outside what was given, misaligned accesses, reads of shared memory
// that nobody wrote, races in shared memory (vector clocks, one per warp: an access must come after the last write, and
// a write after all reads, by way of barriers), products over bytes whose writer has not fenced them, stores into operands of a running product,
// products without matrix_fence, descriptors off the swizzle's pattern, threads of a warp or group that disagree, wrong
// arrival counts, copies over bytes that are in use or stored without a fence, boxes off the pattern, memory of the launch
// before touched before it has ended, more registers than there are, a thread's end after it told another block something
// that no meeting has ordered (that block may be gone when it arrives), and standstill (who waits for what is in the message).
//
// What it chooses, by `seed` and `eager`: the order of threads, with switches inside the code between barriers, and
// whether a product runs when it is issued or when it is waited for; its registers hold NaN in between. Layouts of
// fragments and operands are those of the PTX ISA, section wgmma. Not modelled: reordering of memory accesses by the
// hardware, and time.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#define DEVICE inline
#define KERNEL(threads) extern "C" void
#define KERNEL_BESIDE(threads, blocks) extern "C" void
#define KERNEL_OF_PAIRS(threads) extern "C" void
#define UNROLL
#define __grid_constant__

namespace emulation {

constexpr u32 BASE = 1024;         // shared memory starts here, so that 0 is no address
constexpr size_t STACK = 1 << 17;
constexpr u32 GROUP = 128;         // threads that own a product together

struct Range {                     // global memory that a launch may touch
    u64 start, bytes;
    u32 writable;
    u32 constant;                  // no launch writes it: it may be read before the launch before has ended
};

struct Launch {
    u32 blocks, threads, cluster, shared_bytes;
    u64 seed;                      // 0: threads in order, switched only where they wait
    u32 eager;                     // products run when issued
    u32 early;                     // starts before the launch before it has ended
    u32 num_ranges, unused;
    const Range* ranges;
};

// How much of every warp's past a warp knows, and how many phases of every mbarrier are over; what a barrier collects and
// hands on. Warps of the cluster come first, barriers after them.
using Clock = std::vector<u32>;

inline u32 known(const Clock& clock, u32 place) { return place < clock.size() ? clock[place] : 0; }

inline void learn(Clock& clock, const Clock& other) {
    if (clock.size() < other.size()) clock.resize(other.size());
    for (size_t i = 0; i < other.size(); i++) clock[i] = std::max(clock[i], other[i]);
}

struct Meeting {                   // where a fixed set of threads waits for each other
    u32 arrived = 0, expected = 0;
    u64 phase = 0;
    Clock coming, left;            // of those who come; of those who came to the phase before
};

struct Barrier {                   // mbarrier
    u32 place = 0;                 // in the clocks
    u32 count = 0, pending = 0;
    i64 bytes = 0;
    u64 phase = 0;
    Clock coming, left;
};

struct Shadow {                    // registers of running products: what they will hold
    std::vector<float> values;
    u32 running = 0;
};

struct Product {
    u32 columns = 0, arrived = 0;
    bool registers = false, add = true, commit = false, ran = false, e4m3 = false;
    u64 a = 0, b = 0;
    float* d[GROUP] = {};
    u32 fragment[GROUP][4] = {};
    std::vector<u32> granules;     // of shared memory, 16 bytes each, that it reads
};

struct Group {
    std::vector<std::unique_ptr<Product>> queue;
    size_t first = 0;              // of those that nobody has waited for
    u32 waiting = 0;               // threads at a matrix_wait
    u64 waits = 0;
};

struct Warp {
    Meeting meeting;
    u32 values[2][32] = {};
    u32 number = 0;                // in the cluster
    Clock clock;
};

struct Past {                      // of 16 bytes of shared memory
    u32 writer = 0, written = 0;   // the warp and its clock then; of a copy its barrier, and the phases over when it is done
    std::vector<u32> read;         // each warp's clock when it last read
};

struct Block;

struct Thread {
    ucontext_t context;
    void* stack = nullptr;
    Block* block = nullptr;
    u32 index = 0;
    const u64* watched = nullptr;  // sleeps until this differs from `seen`
    u64 seen = 0;
    const char* reason = "";
    bool over = false, fenced = false, waited = false;
    bool told = false;             // another block, since the last sync_cluster
    size_t issued = 0;             // products and commits
    std::vector<u32> unfenced;     // granules
    std::map<float*, Shadow> shadows;
};

struct Cluster;

struct Block {
    Cluster* cluster = nullptr;
    u32 index = 0, rank = 0;
    std::vector<u8> shared, known;
    std::vector<u32> writer, readers;          // per granule: who wrote it without a fence (+ 1); running products
    std::vector<Past> past;
    std::map<u32, Barrier> barriers;
    Meeting named[16], whole;
    std::vector<Warp> warps;
    std::vector<Group> groups;
    std::vector<Thread> threads;
    std::vector<u32> registers;    // of each thread, once some were traded
};

struct Cluster {
    std::vector<Block> blocks;
    Meeting meeting;
    u32 places = 0;                // taken in the clocks
};

struct World {
    const Launch* launch = nullptr;
    void (*body)(const void*) = nullptr;
    const void* arguments = nullptr;
    ucontext_t scheduler;
    Thread* self = nullptr;
    std::mt19937_64 random;
    std::string error;
};

inline World world;

inline void leave() { swapcontext(&world.self->context, &world.scheduler); }

[[gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
    char text[400], where[64];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    snprintf(where, sizeof where, "block %u, thread %u: ", world.self->block->index, world.self->index);
    if (world.error.empty()) world.error = std::string(where) + text;
    for (;;) leave();
}

inline void sleep_until_changed(const u64& phase, u64 seen, const char* reason) {
    Thread* self = world.self;
    self->watched = &phase;
    self->seen = seen;
    self->reason = reason;
    leave();
}

inline void perhaps_switch() {
    if (world.launch->seed == 0 || world.random() % 64) return;
    world.self->watched = nullptr;
    leave();
}

inline Warp& warp_of(Thread& t) { return t.block->warps[t.index / 32]; }

// What this warp did so far is told at a barrier; what it does from now on is not.
inline void tell(Clock& clock) {
    Warp& warp = warp_of(*world.self);
    learn(clock, warp.clock);
    warp.clock[warp.number]++;
}

inline void come(Meeting& m, u32 count, const char* reason) {
    if (m.expected == 0) m.expected = count;
    if (m.expected != count) fail("%s: %u threads here, %u there", reason, count, m.expected);
    tell(m.coming);
    m.arrived++;
}

inline void go(Meeting& m) {
    m.arrived = m.expected = 0;
    m.left.swap(m.coming);
    m.coming.clear();
    m.phase++;
}

inline void meet(Meeting& m, u32 count, const char* reason) {
    const u64 seen = m.phase;
    come(m, count, reason);
    if (m.arrived == count) {
        go(m);
    } else {
        sleep_until_changed(m.phase, seen, reason);
    }
    learn(warp_of(*world.self).clock, m.left);
}

// ---------------------------------------------------------------------------------------------- memory

inline u8* shared_at(Block& block, u32 at, u32 bytes, const char* what) {
    if (at % bytes) fail("%s at %u is not aligned to %u", what, at, bytes);
    if (at < BASE || at + bytes > BASE + block.shared.size()) fail("%s at %u is outside shared memory", what, at);
    return block.shared.data() + (at - BASE);
}

inline void check_known(Block& block, u32 at, u32 bytes, const char* what) {
    for (u32 i = 0; i < bytes; i++) {
        if (!block.known[at - BASE + i]) fail("%s at %u: nobody wrote it", what, at);
    }
}

inline u32 num_warps() { return world.launch->cluster * world.launch->threads / 32; }

inline void check_written_before(const Past& past, const Warp& warp, u32 at, const char* what) {
    if (past.written <= known(warp.clock, past.writer)) return;
    if (past.writer >= num_warps()) fail("%s at %u by warp %u: no wait for the copy", what, at, warp.number);
    fail("%s at %u by warp %u: no barrier since the store of warp %u", what, at, warp.number, past.writer);
}

inline void note_read(Past& past, const Warp& warp) {
    past.read.resize(num_warps());
    past.read[warp.number] = warp.clock[warp.number];
}

inline void note_write(Past& past, const Warp& warp, u32 at) {
    check_written_before(past, warp, at, "store");
    for (u32 other = 0; other < past.read.size(); other++) {
        if (other != warp.number && past.read[other] > warp.clock[other]) {
            fail("store at %u by warp %u: no barrier since the load of warp %u", at, warp.number, other);
        }
    }
    past.read.clear();
    past.writer = warp.number;
    past.written = warp.clock[warp.number];
}

inline void write_shared(Block& block, u32 at, const void* from, u32 bytes) {
    u8* to = shared_at(block, at, bytes, "store");
    note_write(block.past[(at - BASE) / 16], warp_of(*world.self), at);
    if (block.barriers.contains(at & ~7u)) fail("store at %u into a barrier", at);
    if (block.readers[(at - BASE) / 16]) fail("store at %u into an operand of a running product", at);
    memcpy(to, from, bytes);
    std::fill_n(block.known.begin() + (at - BASE), bytes, u8(1));
}

inline const void* global_at(const void* at, u32 bytes, bool write, const char* what, u32 alignment = 0) {
    const u64 address = reinterpret_cast<u64>(at);
    if (address % (alignment ? alignment : bytes)) fail("%s at %p is not aligned to %u", what, at, bytes);
    for (u32 i = 0; i < world.launch->num_ranges; i++) {
        const Range& r = world.launch->ranges[i];
        if (address < r.start || address + bytes > r.start + r.bytes || (write && !r.writable)) continue;
        if (world.launch->early && !world.self->waited && !r.constant) {
            fail("%s at %p before the launch before has ended", what, at);
        }
        return at;
    }
    fail("%s of %u bytes at %p is outside what the launch was given", what, bytes, at);
    return at;
}

inline Barrier& barrier_at(Block& block, u32 at) {
    auto found = block.barriers.find(at);
    if (found == block.barriers.end()) fail("there is no barrier at %u", at);
    return found->second;
}

inline void perhaps_complete(Barrier& b) {
    if (b.pending || b.bytes) return;
    b.pending = b.count;
    b.left.swap(b.coming);
    b.coming.clear();
    b.phase++;
}

inline void arrive_at(Barrier& b) {
    tell(b.coming);
    if (b.pending == 0) fail("one arrival too many at a barrier of %u", b.count);
    b.pending--;
    perhaps_complete(b);
}

inline Block& block_of(u32& at) {  // a remote address: rank + 1 in the upper byte
    const u32 rank = at >> 24;
    Cluster& cluster = *world.self->block->cluster;
    if (rank == 0 || rank > cluster.blocks.size()) fail("%u is no address in the cluster", at);
    at &= 0xFFFFFF;
    return cluster.blocks[rank - 1];
}

// ---------------------------------------------------------------------------------------------- copies

struct Map {                       // what a TensorMap holds here: a matrix of bytes, and a box of it
    u64 start;
    i64 rows, columns, stride;
    i64 box_rows, box_columns;
};

// One row of a box lands in a block, in order after all that the telling thread knows of.
inline void land(Block& block, u32 at, const u8* row, const Barrier& b) {
    for (u32 chunk = 0; chunk < 8; chunk++) {
        const u32 to = (at + 16 * chunk) ^ (at >> 7 & 7) << 4, granule = (to - BASE) / 16;
        u8* bytes = shared_at(block, to, 16, "copy");
        if (block.readers[granule]) fail("copy to %u into an operand of a running product", to);
        if (block.writer[granule]) fail("copy to %u: thread %u wrote there without a fence", to, block.writer[granule] - 1);
        note_write(block.past[granule], warp_of(*world.self), to);
        block.past[granule].writer = b.place;
        block.past[granule].written = u32(b.phase) + 1;
        memcpy(bytes, row + 16 * chunk, 16);
        std::fill_n(block.known.begin() + (to - BASE), 16, u8(1));
    }
}

inline void copy(Block& block, u32 at, const Map& m, i64 row, i64 column, u32 barrier) {
    Barrier& b = barrier_at(block, barrier);
    if (m.box_columns != 128) fail("rows of a box are 128 bytes, not %lld", (long long)m.box_columns);
    if (at % 1024) fail("copy to %u: the swizzle's pattern starts at multiples of 1024", at);
    for (i64 r = 0; r < m.box_rows; r++) {
        u8 bytes[128] = {};
        const i64 from = std::max<i64>(column, 0), to = std::min<i64>(column + 128, m.columns);
        if (row + r >= 0 && row + r < m.rows && to > from) {
            const u8* there = reinterpret_cast<const u8*>(m.start) + (row + r) * m.stride + from;
            memcpy(bytes + (from - column), global_at(there, u32(to - from), false, "copy", 1), size_t(to - from));
        }
        land(block, at + u32(r) * 128, bytes, b);
    }
    b.bytes -= m.box_rows * 128;
    if (b.pending == 0 && b.bytes < 0) fail("copy to %u: %lld bytes more than its barrier expects", at, -(long long)b.bytes);
    tell(b.coming);
    if (b.coming.size() <= b.place) b.coming.resize(b.place + 1);
    b.coming[b.place] = u32(b.phase) + 1;
    perhaps_complete(b);
}

// ---------------------------------------------------------------------------------------------- products

inline float of_bf16(u16 x) {
    const u32 wide = u32(x) << 16;
    float y;
    memcpy(&y, &wide, 4);
    return y;
}

inline float of_e4m3(u8 x) {
    const int exponent = x >> 3 & 15, mantissa = x & 7;
    if ((x & 0x7F) == 0x7F) return NAN;
    const float y = exponent ? std::ldexp(8.0f + float(mantissa), exponent - 10) : std::ldexp(float(mantissa), -9);
    return x & 0x80 ? -y : y;
}

// Address of an element of 16 bits: `along` counts in the direction of the 128 bytes, `across` from one row to the next.
inline u32 element_address(u64 descriptor, u32 along, u32 across) {
    const u32 start = (descriptor & 0x3FFF) << 4;
    const u32 leading = (descriptor >> 16 & 0x3FFF) << 4, stride = (descriptor >> 32 & 0x3FFF) << 4;
    const u32 at = start + along / 64 * leading + across / 8 * stride + across % 8 * 128 + along % 64 * 2;
    return at ^ (at >> 7 & 7) << 4;
}

inline void check_descriptor(u64 descriptor) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) fail("only the 128-byte swizzle without offset is emulated");
    if ((descriptor << 4 & 0x3FFF0) % 1024 >= 128) fail("an operand starts off the swizzle's pattern");
}

// Rows [count] x 32 of an operand of bytes, K-major.
inline void gather_bytes(Block& block, u64 descriptor, u32 count, float* to) {
    static float table[256];
    if (table[1] == 0) {
        for (u32 x = 0; x < 256; x++) table[x] = of_e4m3(u8(x));
    }
    for (u32 r = 0; r < count; r++) {
        for (u32 k = 0; k < 32; k++) {
            const u32 at = element_address(descriptor, k / 2, r) + k % 2;
            to[k * count + r] = table[block.shared[at - BASE]];
        }
    }
}

// Rows [count] x 16 of an operand as floats; k_major: the contraction runs along the 128 bytes.
inline void gather(Block& block, u64 descriptor, u32 count, bool k_major, float* to) {
    for (u32 r = 0; r < count; r++) {
        for (u32 k = 0; k < 16; k++) {
            const u32 at = k_major ? element_address(descriptor, k, r) : element_address(descriptor, r, k);
            u16 x;
            memcpy(&x, block.shared.data() + (at - BASE), 2);
            to[k * count + r] = of_bf16(x);
        }
    }
}

inline void collect_granules(Product& p, u64 descriptor, u32 count, bool k_major) {
    for (u32 r = 0; r < count; r += k_major ? 1 : 8) {
        for (u32 k = 0; k < 16; k += k_major ? 8 : 1) {
            const u32 at = k_major ? element_address(descriptor, k, r) : element_address(descriptor, r, k);
            p.granules.push_back(at);
        }
    }
}

// Checks what a product reads and marks it as being read.
inline void begin(Block& block, u32 group, Product& p) {
    if (!p.registers) {
        check_descriptor(p.a);
        collect_granules(p, p.a, 64, true);
    }
    check_descriptor(p.b);
    collect_granules(p, p.b, p.columns, p.e4m3 || !p.registers);
    for (const u32 at : p.granules) {
        shared_at(block, at & ~15u, 16, "operand");
        check_known(block, at & ~15u, 16, "operand");
        const u32 granule = (at - BASE) / 16;
        if (block.writer[granule]) fail("operand at %u: thread %u wrote it without a fence", at, block.writer[granule] - 1);
        block.readers[granule]++;
        for (u32 w = 0; w < 4; w++) check_written_before(block.past[granule], block.warps[group * 4 + w], at, "operand");
    }
}

inline void fragment_of_a(const Product& p, float* a) {
    for (u32 t = 0; t < GROUP; t++) {
        for (u32 i = 0; i < 4; i++) {
            if (p.e4m3) {
                const u32 row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 4 + i / 2 * 16;
                for (u32 j = 0; j < 4; j++) a[(k + j) * 64 + row] = of_e4m3(u8(p.fragment[t][i] >> 8 * j));
                continue;
            }
            const u32 row = t / 32 * 16 + t % 32 / 4 + i % 2 * 8, k = t % 4 * 2 + i / 2 * 8;
            a[k * 64 + row] = of_bf16(u16(p.fragment[t][i]));
            a[(k + 1) * 64 + row] = of_bf16(u16(p.fragment[t][i] >> 16));
        }
    }
}

inline void run(Block& block, u32 group, Product& p) {
    static float a[32 * 64], b[32 * 256], d[64 * 256];
    const u32 n = p.columns;
    if (p.e4m3) {
        if (p.registers) fragment_of_a(p, a);
        if (!p.registers) gather_bytes(block, p.a, 64, a);
        gather_bytes(block, p.b, n, b);
    } else if (p.registers) {
        fragment_of_a(p, a);
        gather(block, p.b, n, false, b);
    } else {
        gather(block, p.a, 64, true, a);
        gather(block, p.b, n, true, b);
    }
    p.ran = true;
    auto place = [n](u32 t, u32 i) {
        const u32 row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
        return row * n + column;
    };
    for (u32 t = 0; t < GROUP; t++) {
        const Shadow& shadow = block.threads[group * GROUP + t].shadows.at(p.d[t]);
        for (u32 i = 0; i < n / 2; i++) d[place(t, i)] = p.add ? shadow.values[i] : 0;
    }
    for (u32 row = 0; row < 64; row++) {
        for (u32 k = 0; k < (p.e4m3 ? 32 : 16); k++) {
            const float x = a[k * 64 + row];
            for (u32 column = 0; column < n; column++) d[row * n + column] += x * b[k * n + column];
        }
    }
    for (u32 t = 0; t < GROUP; t++) {
        auto& shadows = block.threads[group * GROUP + t].shadows;
        const auto found = shadows.find(p.d[t]);
        for (u32 i = 0; i < n / 2; i++) found->second.values[i] = d[place(t, i)];
    }
}

// Runs what is queued up to but without `end`.
inline void run_until(Block& block, u32 group, size_t end) {
    Group& g = block.groups[group];
    for (; g.first < end; g.first++) {
        Product& p = *g.queue[g.first];
        if (p.arrived != GROUP) fail("not all threads of the group issued the same products");
        if (!p.commit && !p.ran) run(block, group, p);
        for (const u32 at : p.granules) {
            block.readers[(at - BASE) / 16]--;
            for (u32 w = 0; w < 4; w++) note_read(block.past[(at - BASE) / 16], block.warps[group * 4 + w]);
        }
        p.granules.clear();
    }
}

inline Product& issue(u32 group, bool commit) {
    Thread* self = world.self;
    Group& g = self->block->groups[group];
    if (self->issued == g.queue.size()) {
        g.queue.push_back(std::make_unique<Product>());
        g.queue.back()->commit = commit;
    }
    Product& p = *g.queue[self->issued++];
    if (p.commit != commit) fail("threads of a group issue different products");
    p.arrived++;
    return p;
}

inline void start(float* d, u32 columns, u64 a, u64 b, bool add, const u32* fragment, bool e4m3 = false) {
    Thread* self = world.self;
    Block& block = *self->block;
    const u32 group = self->index / GROUP, me = self->index % GROUP;
    if (!self->fenced) fail("a product without matrix_fence before it");
    Product& p = issue(group, false);
    if (p.arrived == 1) {
        p.columns = columns, p.a = a, p.b = b, p.add = add, p.registers = fragment != nullptr, p.e4m3 = e4m3;
    } else if (p.columns != columns || p.a != a || p.b != b || p.add != add || p.registers != (fragment != nullptr) ||
               p.e4m3 != e4m3) {
        fail("threads of a group issue different products");
    }
    p.d[me] = d;
    if (fragment) memcpy(p.fragment[me], fragment, 16);
    Shadow& shadow = self->shadows[d];
    if (shadow.running++ == 0) {
        shadow.values.assign(d, d + columns / 2);
        std::fill_n(d, columns / 2, NAN);
    }
    if (p.arrived < GROUP) return;
    begin(block, group, p);
    if (world.launch->eager) run(block, group, p);
}

inline void give_back(Thread& thread) {  // registers of products that are over
    Block& block = *thread.block;
    Group& g = block.groups[thread.index / GROUP];
    std::map<float*, u32> running;
    for (size_t i = g.first; i < g.queue.size(); i++) {
        if (!g.queue[i]->commit) running[g.queue[i]->d[thread.index % GROUP]]++;
    }
    for (auto it = thread.shadows.begin(); it != thread.shadows.end();) {
        if (running[it->first]) {
            ++it;
            continue;
        }
        std::copy(it->second.values.begin(), it->second.values.end(), it->first);
        it = thread.shadows.erase(it);
    }
}

inline void wait_products(u32 running) {
    Thread* self = world.self;
    Block& block = *self->block;
    const u32 group = self->index / GROUP;
    Group& g = block.groups[group];
    self->fenced = false;
    if (++g.waiting < GROUP) {
        sleep_until_changed(g.waits, g.waits, "matrix_wait");
        return;
    }
    size_t end = g.queue.size();
    u32 commits = 0;
    while (end > g.first && !(g.queue[end - 1]->commit && ++commits > running)) end--;
    run_until(block, group, end);
    for (u32 t = 0; t < GROUP; t++) give_back(block.threads[group * GROUP + t]);
    g.waiting = 0;
    g.waits++;
}

// ---------------------------------------------------------------------------------------------- scheduling

inline void enter() {
    world.body(world.arguments);
    if (world.self->told) fail("the block may end before what this thread told another one has arrived");
    world.self->over = true;
    for (;;) leave();
}

inline std::string standstill(Cluster& cluster) {
    std::map<std::string, u32> reasons;
    for (Block& block : cluster.blocks) {
        for (Thread& t : block.threads) {
            if (!t.over) reasons["block " + std::to_string(block.index) + ": " + t.reason]++;
        }
    }
    std::string text = "standstill:";
    for (const auto& [reason, count] : reasons) text += " [" + reason + " x " + std::to_string(count) + "]";
    return text;
}

inline void schedule(Cluster& cluster) {
    std::vector<Thread*> threads;
    for (Block& block : cluster.blocks) {
        for (Thread& t : block.threads) threads.push_back(&t);
    }
    for (size_t left = threads.size(); left;) {
        if (world.launch->seed) std::shuffle(threads.begin(), threads.end(), world.random);
        bool moved = false;
        for (Thread* t : threads) {
            if (t->over || (t->watched && *t->watched == t->seen)) continue;
            moved = true;
            world.self = t;
            swapcontext(&world.scheduler, &t->context);
            if (!world.error.empty()) return;
            left -= t->over;
        }
        if (!moved) {
            world.error = standstill(cluster);
            return;
        }
    }
}

inline void prepare(Block& block, u8* stacks) {
    const Launch& l = *world.launch;
    block.shared.assign(l.shared_bytes, 0xFF);
    block.known.assign(l.shared_bytes, 0);
    block.writer.assign(l.shared_bytes / 16 + 1, 0);
    block.readers.assign(l.shared_bytes / 16 + 1, 0);
    block.past.assign(l.shared_bytes / 16 + 1, {});
    block.warps.resize(l.threads / 32);
    for (u32 w = 0; w < block.warps.size(); w++) {
        block.warps[w].number = block.rank * u32(block.warps.size()) + w;
        block.warps[w].clock.assign(l.cluster * block.warps.size(), 0);
        block.warps[w].clock[block.warps[w].number] = 1;
    }
    block.groups.resize(l.threads / GROUP);
    block.threads.resize(l.threads);
    for (u32 i = 0; i < l.threads; i++) {
        Thread& t = block.threads[i];
        t.block = &block;
        t.index = i;
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = stacks + i * STACK;
        t.context.uc_stack.ss_size = STACK;
        t.context.uc_link = nullptr;
        makecontext(&t.context, enter, 0);
    }
}

// Runs a launch, cluster after cluster; 0, or 1 with the reason in `message`.
inline int emulate(void (*body)(const void*), const void* arguments, const Launch& launch, char* message, u32 room) {
    world.launch = &launch;
    world.body = body;
    world.arguments = arguments;
    world.random.seed(launch.seed);
    world.error.clear();
    const size_t bytes = size_t(launch.cluster) * launch.threads * STACK;
    void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    for (u32 first = 0; first < launch.blocks && world.error.empty(); first += launch.cluster) {
        Cluster cluster;
        cluster.blocks.resize(launch.cluster);
        cluster.places = num_warps();
        for (u32 rank = 0; rank < launch.cluster; rank++) {
            Block& block = cluster.blocks[rank];
            block.cluster = &cluster;
            block.index = first + rank;
            block.rank = rank;
            prepare(block, static_cast<u8*>(stacks) + size_t(rank) * launch.threads * STACK);
        }
        schedule(cluster);
    }
    munmap(stacks, bytes);
    snprintf(message, room, "%s", world.error.c_str());
    return !world.error.empty();
}

}  // namespace emulation

// A kernel's entry for the emulator: emulate_<name>(arguments, launch, message, room).
#define EMULATED(name, Arguments)                                                                                    \
    extern "C" int emulate_##name(const void* a, const emulation::Launch* l, char* message, u32 room) {              \
        return emulation::emulate([](const void* x) { name(*static_cast<const Arguments*>(x)); }, a, *l, message, room); \
    }

namespace machine {

using emulation::world;

inline u32 thread_index() { return world.self->index; }
inline u32 block_index() { return world.self->block->index; }
inline u32 num_blocks() { return world.launch->blocks; }

inline u32 bits(float x) {
    u32 y;
    memcpy(&y, &x, 4);
    return y;
}
inline float real(u32 x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline float magnitude(float x) { return std::fabs(x); }
inline float larger(float a, float b) { return std::fmax(a, b); }
inline float reciprocal(float x) { return 1 / x; }
inline float power_of_2(float x) { return std::exp2(x); }
inline u32 unknown(u32 x) { return x; }

inline u32 bf16_of(float x) {
    const u32 y = bits(x);
    return x != x ? 0x7FFF : (y + 0x7FFF + (y >> 16 & 1)) >> 16;
}
inline u32 pair_of_bf16(float low, float high) { return bf16_of(low) | bf16_of(high) << 16; }
inline u32 product_of_pairs(u32 a, u32 b) {
    return pair_of_bf16(real(a << 16) * real(b << 16), real(a & 0xFFFF0000) * real(b & 0xFFFF0000));
}
inline u32 bytes_of(u32 a, u32 b, u32 selector) {
    const u64 both = u64(b) << 32 | a;
    u32 y = 0;
    for (u32 i = 0; i < 4; i++) y |= u32(both >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
    return y;
}
inline u32 looked_up(u32 a, u32 b, u32 selector) {
    if (selector & 0x8888) emulation::fail("digits of %x are not below 8", selector & 0xFFFF);
    return bytes_of(a, b, selector);
}

inline u32 shared_base() { return emulation::BASE; }

template <class T> inline T load_from_shared(u32 at) {
    emulation::perhaps_switch();
    emulation::Block& block = *world.self->block;
    T w;
    memcpy(&w, emulation::shared_at(block, at, u32(sizeof(T)), "load"), sizeof(T));
    emulation::check_known(block, at, u32(sizeof(T)), "load");
    emulation::Past& past = block.past[(at - emulation::BASE) / 16];
    emulation::check_written_before(past, emulation::warp_of(*world.self), at, "load");
    emulation::note_read(past, emulation::warp_of(*world.self));
    return w;
}
inline Words load_shared(u32 at) { return load_from_shared<Words>(at); }
inline Pair load_shared_pair(u32 at) { return load_from_shared<Pair>(at); }

inline void store_shared(u32 at, Words w) {
    emulation::perhaps_switch();
    emulation::Block& block = *world.self->block;
    emulation::write_shared(block, at, &w, 16);
    block.writer[(at - emulation::BASE) / 16] = world.self->index + 1;
    world.self->unfenced.push_back((at - emulation::BASE) / 16);
}

template <class T> inline T load_global(const void* at) {
    T w;
    memcpy(&w, emulation::global_at(at, sizeof w, false, "global load"), sizeof w);
    return w;
}
inline Words load_words(const void* at) { return load_global<Words>(at); }
inline Words load_words_if(bool exists, const void* at) { return exists ? load_words(at) : Words{{0, 0, 0, 0}}; }
inline Pair load_pair_if(bool exists, const void* at) { return exists ? load_global<Pair>(at) : Pair{{0, 0}}; }
inline u32 load_word(const void* at) { return load_global<u32>(at); }
inline u32 load_fresh(const void* at) { return load_global<u32>(at); }
inline void store_words(void* at, Words w) {
    emulation::global_at(at, 16, true, "global store");
    memcpy(at, &w, 16);
}

inline void prefetch_if(bool exists, const void* at) {
    if (exists) emulation::global_at(at, 1, false, "prefetch");
}
inline void store_word(void* at, u32 w) {
    emulation::global_at(at, 4, true, "global store");
    memcpy(at, &w, 4);
}
inline void stop() { emulation::fail("the kernel stopped itself"); }
inline u32 ticks() { return 0; }

// All lanes give a value and see everybody's.
inline const u32* exchange_in_warp(u32 x) {
    emulation::Warp& warp = world.self->block->warps[world.self->index / 32];
    u32* values = warp.values[warp.meeting.phase % 2];
    values[world.self->index % 32] = x;
    emulation::meet(warp.meeting, 32, "warp");
    return values;
}
inline u32 shuffle_xor(u32 x, u32 mask) { return exchange_in_warp(x)[world.self->index % 32 ^ mask]; }
inline u32 first_lane(u32 x) { return exchange_in_warp(x)[0]; }
inline bool any_lane(bool x) {
    const u32* values = exchange_in_warp(x);
    return std::any_of(values, values + 32, [](u32 v) { return v != 0; });
}

inline void sync_warp() { emulation::meet(world.self->block->warps[world.self->index / 32].meeting, 32, "sync_warp"); }
inline void sync_block() { emulation::meet(world.self->block->whole, world.launch->threads, "sync_block"); }

inline void sync_named(u32 id, u32 threads) {
    if (id == 0 || id > 15) emulation::fail("there is no named barrier %u", id);
    static const char* names[16] = {"",        "named 1", "named 2",  "named 3",  "named 4",  "named 5",  "named 6",  "named 7",
                                    "named 8", "named 9", "named 10", "named 11", "named 12", "named 13", "named 14", "named 15"};
    emulation::meet(world.self->block->named[id], threads, names[id]);
}

inline void arrive_named(u32 id, u32 threads) {
    emulation::Meeting& m = world.self->block->named[id];
    emulation::come(m, threads, "arrive_named");
    if (m.arrived == threads) emulation::go(m);
}

inline void init_barrier(u32 at, u32 count) {
    emulation::Block& block = *world.self->block;
    emulation::shared_at(block, at, 8, "barrier");
    if (block.barriers.contains(at)) emulation::fail("two barriers at %u", at);
    block.barriers[at] = {block.cluster->places++, count, count, 0, 0, {}, {}};
}

inline void arrive(u32 at) {
    emulation::perhaps_switch();
    emulation::arrive_at(emulation::barrier_at(*world.self->block, at));
}

inline void wait(u32 at, u32 parity) {
    if (parity > 1) emulation::fail("parity %u", parity);
    emulation::Barrier& b = emulation::barrier_at(*world.self->block, at);
    if (b.phase % 2 == parity) emulation::sleep_until_changed(b.phase, b.phase, "mbarrier");
    emulation::learn(emulation::warp_of(*world.self).clock, b.left);
}

inline void fence_matrix_reads() {
    emulation::Block& block = *world.self->block;
    for (const u32 granule : world.self->unfenced) {
        if (block.writer[granule] == world.self->index + 1) block.writer[granule] = 0;
    }
    world.self->unfenced.clear();
}
inline void fence_barrier_init() {}
// What warps give back and take is what they had at launch: one that asks for more than there will be waits for ever.
inline void set_registers(u32 count, bool more) {
    emulation::Block& block = *world.self->block;
    const u32 threads = world.launch->threads, launched = std::min(65536 / threads / 8 * 8, 255u);
    if (count % 8 || count < 24 || count > 256 || more != (count > launched)) emulation::fail("%u registers", count);
    block.registers.resize(threads, launched);
    block.registers[world.self->index] = count;
    const u32 sum = std::accumulate(block.registers.begin(), block.registers.end(), 0u);
    const bool all = std::find(block.registers.begin(), block.registers.end(), launched) == block.registers.end();
    if (all && sum > threads * launched) emulation::fail("%u registers, of %u at launch", sum, threads * launched);
}
template <int COUNT> inline void fewer_registers() { set_registers(COUNT, false); }
template <int COUNT> inline void more_registers() { set_registers(COUNT, true); }

inline void let_next_launch_start() {}
inline void wait_for_launch_before() { world.self->waited = true; }

inline u32 cluster_rank() { return world.self->block->rank; }
inline void sync_cluster() {
    emulation::Cluster& cluster = *world.self->block->cluster;
    emulation::meet(cluster.meeting, u32(cluster.blocks.size()) * world.launch->threads, "sync_cluster");
    world.self->told = false;
}
inline void meet_cluster() {       // nothing is told: clocks stay as they were
    emulation::Meeting& m = world.self->block->cluster->meeting;
    const u32 count = u32(world.self->block->cluster->blocks.size()) * world.launch->threads;
    const u64 seen = m.phase;
    if (m.expected && m.expected != count) emulation::fail("meet_cluster: %u threads here, %u there", count, m.expected);
    m.expected = count;
    if (++m.arrived == count) {
        emulation::go(m);
    } else {
        emulation::sleep_until_changed(m.phase, seen, "meet_cluster");
    }
}
inline u32 remote(u32 at, u32 rank) { return at | (rank + 1) << 24; }
inline void store_remote(u32 at, Words w, u32 barrier) {
    emulation::perhaps_switch();
    emulation::Block& block = emulation::block_of(at);
    if (&emulation::block_of(barrier) != &block) emulation::fail("a remote store and its barrier are in two blocks");
    emulation::write_shared(block, at, &w, 16);
    world.self->told |= &block != world.self->block;
    emulation::Barrier& b = emulation::barrier_at(block, barrier);
    b.bytes -= 16;
    emulation::tell(b.coming);
    emulation::perhaps_complete(b);
}
inline void expect_bytes(u32 at, u32 bytes) {
    emulation::Barrier& b = emulation::barrier_at(*world.self->block, at);
    b.bytes += bytes;
    emulation::arrive_at(b);
}
inline void wait_for_remote(u32 at, u32 parity) { wait(at, parity); }
inline void arrive_remote(u32 at) {
    emulation::perhaps_switch();
    emulation::Block& block = emulation::block_of(at);
    world.self->told |= &block != world.self->block;
    emulation::arrive_at(emulation::barrier_at(block, at));
}

inline const emulation::Map& map_of(const TensorMap& map) {
    static_assert(sizeof(emulation::Map) <= sizeof map);
    if (reinterpret_cast<u64>(&map) % 64) emulation::fail("a tensor map at %p is not aligned to 64", (const void*)&map);
    return reinterpret_cast<const emulation::Map&>(map);
}
inline void copy_box(u32 at, const TensorMap& map, i32 row, i32 column, u32 barrier) {
    emulation::perhaps_switch();
    emulation::copy(*world.self->block, at, map_of(map), row, column, barrier);
}
inline void copy_box_to(u16 ranks, u32 at, const TensorMap& map, i32 row, i32 column, u32 barrier) {
    emulation::perhaps_switch();
    std::vector<emulation::Block>& blocks = world.self->block->cluster->blocks;
    if (ranks >> blocks.size()) emulation::fail("a copy to blocks %x of %zu", ranks, blocks.size());
    for (u32 rank = 0; rank < blocks.size(); rank++) {
        if (ranks >> rank & 1) emulation::copy(blocks[rank], at, map_of(map), row, column, barrier);
    }
}
inline void prefetch_map(const TensorMap& map) { map_of(map); }

inline void matrix_fence() { world.self->fenced = true; }
inline void matrix_commit() { emulation::issue(world.self->index / emulation::GROUP, true); }
template <int RUNNING> inline void matrix_wait() { emulation::wait_products(RUNNING); }
template <int N> inline void settled(float (&)[N]) {}
template <int N> inline void kept(const u32 (&)[N]) {}

template <int N> inline void product(float (&d)[N], u64 a, u64 b, u32 add) {
    emulation::start(d, 2 * N, a, b, add != 0, nullptr);
}
template <int N> inline void product_of_e4m3(float (&d)[N], u64 a, u64 b, u32 add) {
    emulation::start(d, 2 * N, a, b, add != 0, nullptr, true);
}
template <int N> inline void product_of_e4m3(float (&d)[N], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, u32 add) {
    const u32 fragment[4] = {a0, a1, a2, a3};
    emulation::start(d, 2 * N, 0, b, add != 0, fragment, true);
}
template <int N> inline void product_of_registers(float (&d)[N], u32 a0, u32 a1, u32 a2, u32 a3, u64 b) {
    const u32 fragment[4] = {a0, a1, a2, a3};
    emulation::start(d, 2 * N, 0, b, true, fragment);
}

}  // namespace machine
