// portable.cuh's functions on a CPU: a block's threads are fibers, and a warp's instruction runs when its last lane
// has arrived at it.
//
// It is stricter than a GPU where it can be: shared memory starts as NaN, an asynchronous copy moves its bytes only
// when it is waited for, threads can run in several orders, and a barrier that not all of them reach ends the launch
// with a message. It does not show races between threads that happen to run in an order that hides them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define DEVICE inline
#define KERNEL(THREADS, BLOCKS) static void
#define SHARED_MEMORY(name) u8* name = host::shared_memory
#define SHARED static
#define RESTRICT
#define __launch_bounds__(...)

struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct Dim3 { int x = 1, y = 1, z = 1; };

static Dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

namespace host {

constexpr int STACK_BYTES = 256 << 10, MAX_SHARED = 232448, MARGIN = 256;
alignas(1024) static u8 shared_block[MAX_SHARED + MARGIN];
static u8* const shared_memory = shared_block;

#if defined(__x86_64__)
// Push what a call must preserve, change stacks, pop it again.
__attribute__((naked, noinline)) static void change_stacks(void** /*from*/, void* /*to*/) {
    __asm__(
        "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
        "movq %rsp, (%rdi); movq %rsi, %rsp;"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#endif

struct Barrier {
    int arrived = 0;
    unsigned generation = 0;
};

struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool valid;
};

struct Fiber {
    std::unique_ptr<u8[]> stack;
#if defined(__x86_64__)
    void* top = nullptr;
#else
    ucontext_t context;
#endif
    bool finished = false;
    const Barrier* at = nullptr;  // what it waits for, until the generation is another
    unsigned generation = 0;
    std::vector<Copy> copies;                 // since the last end_copies
    std::vector<std::vector<Copy>> pending;  // groups
    bool has_hidden = false;                  // writes to shared memory that the matrix unit has not been shown
};

struct Warp {
    Barrier barrier;
    const void* operands[32];
    int operation = 0, lanes = 0;
};

static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Barrier barriers[16];
static int current = 0, threads = 0;
static const char* failure = nullptr;
static std::function<void()> body;
static std::vector<void (*)()> at_start;  // what else a block starts with
#if defined(__x86_64__)
static void* main_stack = nullptr;
static void leave() { change_stacks(&fibers[current].top, main_stack); }
static void enter() { change_stacks(&main_stack, fibers[current].top); }
#else
static ucontext_t main_context;
static void leave() { swapcontext(&fibers[current].context, &main_context); }
static void enter() { swapcontext(&main_context, &fibers[current].context); }
#endif

static void fail(const char* why) {
    if (failure == nullptr) failure = why;
    leave();  // for good: the scheduler gives up
    std::abort();
}

template <class F>
static void arrive(Barrier& barrier, int needed, F&& at_last) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == needed) {
        at_last();
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    Fiber& fiber = fibers[current];
    fiber.at = &barrier, fiber.generation = generation;
    leave();
    fiber.at = nullptr;
}

static void arrive(Barrier& barrier, int needed) {
    arrive(barrier, needed, [] {});
}

// Every lane of a warp brings operands; the last one to arrive does the work for all.
template <class T, class F>
static void together(int operation, T& operands, F&& work) {
    Warp& warp = warps[current / 32];
    if (warp.barrier.arrived == 0) warp.operation = operation;
    if (warp.operation != operation) fail("lanes of a warp are at different instructions that want all of them");
    warp.operands[current % 32] = &operands;
    arrive(warp.barrier, 32, [&] { work((T* const*)warp.operands); });
}

static void start_fiber() {
    body();
    fibers[current].finished = true;
    leave();
}

// One block. Order 0: threads run in theirs; 1: backwards; other: drawn anew in every round.
static void run_block(int order, unsigned seed, int shared_bytes) {
    std::memset(shared_block, 0xff, sizeof shared_block);
    std::memset(shared_block + shared_bytes, 0xa5, MARGIN);
    warps.assign(threads / 32, Warp());
    for (Barrier& barrier : barriers) barrier = Barrier();
    for (auto start : at_start) start();
    fibers.resize(threads);
    for (int i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        if (fiber.stack == nullptr) fiber.stack.reset(new u8[STACK_BYTES]);  // not written to: mostly never in memory
        fiber.finished = false, fiber.at = nullptr;
        fiber.copies.clear(), fiber.pending.clear();
        fiber.has_hidden = false;
#if defined(__x86_64__)
        std::uintptr_t end = reinterpret_cast<std::uintptr_t>(fiber.stack.get() + STACK_BYTES) & ~std::uintptr_t(63);
        void** top = reinterpret_cast<void**>(end) - 1;  // a call leaves the stack 8 off a multiple of 16
        *--top = reinterpret_cast<void*>(&start_fiber);
        for (int saved = 0; saved < 6; saved++) *--top = nullptr;
        fiber.top = top;
#else
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        makecontext(&fiber.context, start_fiber, 0);
#endif
    }
    std::vector<int> turns(threads);
    for (int i = 0; i < threads; i++) turns[i] = order == 1 ? threads - 1 - i : i;
    std::mt19937 random(seed);
    for (int left = threads; left > 0;) {
        bool moved = false;
        if (order > 1)
            for (int i = threads - 1; i > 0; i--) std::swap(turns[i], turns[random() % (i + 1)]);
        for (int i : turns) {
            Fiber& fiber = fibers[i];
            if (fiber.finished || (fiber.at != nullptr && fiber.at->generation == fiber.generation)) continue;
            current = i, threadIdx = {i, 0, 0};
            moved = true;
            enter();
            if (failure != nullptr) return;
            left -= fiber.finished;
        }
        if (!moved) {
            failure = "threads wait at a barrier that the others never reach";
            return;
        }
    }
    for (int i = 0; i < MARGIN; i++)
        if (shared_block[shared_bytes + i] != 0xa5) failure = "wrote beyond the end of shared memory";
}

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

// A launch. Returns null, or what went wrong.
template <class... A>
static const char* launch(void (*kernel)(A...), void** arguments, const int* grid, int block, int shared_bytes, int order) {
    static std::string message;
    if (shared_bytes > MAX_SHARED) return "more shared memory than any GPU has";
    failure = nullptr, threads = block;
    blockDim = {block, 1, 1}, gridDim = {grid[0], grid[1], grid[2]};
    body = [=] { call(kernel, arguments, std::index_sequence_for<A...>()); };
    const int blocks = grid[0] * grid[1] * grid[2];
    for (int i = 0; i < blocks && failure == nullptr; i++) {
        const int b = order == 1 ? blocks - 1 - i : i;
        blockIdx = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
        run_block(order, i, shared_bytes);
        if (failure != nullptr) message = std::string(failure) + " (block " + std::to_string(b) + ", thread " + std::to_string(current) + ")";
    }
    fibers.clear();  // every library has fibers of its own, and hundreds of them may be loaded
    return failure == nullptr ? nullptr : message.c_str();
}

}  // namespace host

inline void sync_block() { host::arrive(host::barriers[0], host::threads); }
inline void sync_some(int number, int threads) { host::arrive(host::barriers[number], threads); }
inline void sync_warp() {
    int nothing = 0;
    host::together(1, nothing, [](int* const*) {});
}
inline void __syncthreads() { sync_block(); }

inline u32 bits_of(float value) {
    u32 bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(u32 bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

namespace host {
struct Shuffled {
    u32 value, result;
    int from;
};
static u32 shuffled(u32 value, int from) {
    Shuffled mine{value, 0, from & 31};
    together(2, mine, [](Shuffled* const* all) {
        for (int lane = 0; lane < 32; lane++) all[lane]->result = all[all[lane]->from]->value;
    });
    return mine.result;
}
}  // namespace host

inline u32 shuffle(u32 value, int lane) { return host::shuffled(value, lane); }
inline float shuffle(float value, int lane) { return float_of(host::shuffled(bits_of(value), lane)); }
inline u32 shuffle_xor(u32 value, int mask) { return host::shuffled(value, threadIdx.x ^ mask); }
inline int shuffle_xor(int value, int mask) { return (int)host::shuffled((u32)value, threadIdx.x ^ mask); }
inline float shuffle_xor(float value, int mask) { return float_of(host::shuffled(bits_of(value), threadIdx.x ^ mask)); }

inline u32 ballot(bool holds) {
    host::Shuffled mine{holds, 0, 0};
    host::together(23, mine, [](host::Shuffled* const* all) {
        u32 lanes = 0;
        for (int lane = 0; lane < 32; lane++) lanes |= all[lane]->value << lane;
        for (int lane = 0; lane < 32; lane++) all[lane]->result = lanes;
    });
    return mine.result;
}

inline float relu(float value) { return value < 0.f ? 0.f : value; }

inline u32 host_bf16(float value) {
    const u32 bits = bits_of(value);
    return value != value ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
inline u32 pack(float low, float high) { return host_bf16(low) | host_bf16(high) << 16; }
inline float round_tf32(float value) {
    const u32 bits = bits_of(value);
    return (bits & 0x7f800000u) == 0x7f800000u ? value : float_of((bits + 0x1000u) & 0xffffe000u);
}

namespace host {
struct Load {
    u32* result;
    const u8* row;
};
template <int COUNT, bool TRANSPOSED>
static void load(u32* result, const void* row) {
    if (current % 32 < 8 * COUNT && ((std::uintptr_t)row & 15)) fail("a matrix's row is not at a multiple of 16 bytes");
    Load mine{result, static_cast<const u8*>(row)};
    together(3 + 2 * COUNT + TRANSPOSED, mine, [](Load* const* all) {
        u32 out[32][COUNT];
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < COUNT; i++) {
                u16 pair[2];
                for (int e = 0; e < 2; e++) {
                    const int row = TRANSPOSED ? 2 * (lane % 4) + e : lane / 4;
                    const int column = TRANSPOSED ? lane / 4 : 2 * (lane % 4) + e;
                    std::memcpy(&pair[e], all[8 * i + row]->row + 2 * column, 2);
                }
                out[lane][i] = pair[0] | (u32)pair[1] << 16;
            }
        for (int lane = 0; lane < 32; lane++) std::memcpy(all[lane]->result, out[lane], sizeof out[lane]);
    });
}
}  // namespace host

inline void load_matrices(u32 (&result)[4], const void* row) { host::load<4, false>(result, row); }
inline void load_matrices_transposed(u32 (&result)[4], const void* row) { host::load<4, true>(result, row); }
inline void load_matrices(u32 (&result)[2], const void* row) { host::load<2, false>(result, row); }
inline void load_matrices_transposed(u32 (&result)[2], const void* row) { host::load<2, true>(result, row); }

inline u32 transpose_matrix(u32 value) {
    host::Shuffled mine{value, 0, 0};
    host::together(20, mine, [](host::Shuffled* const* all) {
        for (int lane = 0; lane < 32; lane++) {
            u32 result = 0;
            for (int e = 0; e < 2; e++) {
                const int row = 2 * (lane % 4) + e, column = lane / 4;
                result |= (all[4 * row + column / 2]->value >> (16 * (column & 1)) & 0xffffu) << (16 * e);
            }
            all[lane]->result = result;
        }
    });
    return mine.result;
}

namespace host {
struct Multiply {
    float* c;
    const u32* a;
    u32 b[2];
};
static float half_of(u32 pair, int which) { return float_of(which ? pair & 0xffff0000u : pair << 16); }
static float as_tf32(u32 bits) { return float_of(bits & 0xffffe000u); }  // the unit ignores the lowest 13 bits

template <int K>
static void multiply(Multiply* const* all) {
    float a[16][K], b[K][8];
    for (int lane = 0; lane < 32; lane++) {
        const int g = lane / 4, t = lane % 4;
        const Multiply& one = *all[lane];
        for (int i = 0; i < 4; i++) {
            const int row = g + 8 * (i & 1);
            if (K == 16) {
                for (int e = 0; e < 2; e++) a[row][(2 * t + 8 * (i >> 1) + e) % K] = half_of(one.a[i], e);
            } else {
                a[row][t + 4 * (i >> 1)] = as_tf32(one.a[i]);
            }
        }
        for (int i = 0; i < 2; i++) {
            if (K == 16) {
                for (int e = 0; e < 2; e++) b[(2 * t + 8 * i + e) % K][g] = half_of(one.b[i], e);
            } else {
                b[t + 4 * i][g] = as_tf32(one.b[i]);
            }
        }
    }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i >> 1), column = 2 * (lane % 4) + (i & 1);
            float sum = all[lane]->c[i];
            for (int k = 0; k < K; k++) sum += a[row][k] * b[k][column];
            all[lane]->c[i] = sum;
        }
}
}  // namespace host

inline void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    host::Multiply mine{c, a, {b0, b1}};
    host::together(21, mine, host::multiply<16>);
}
inline void multiply_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    host::Multiply mine{c, a, {b0, b1}};
    host::together(22, mine, host::multiply<8>);
}

namespace host {
static void copy(void* to, const void* from, int bytes, bool valid) {
    if (((std::uintptr_t)to | (std::uintptr_t)from) % bytes) fail("a copy is not at a multiple of its size");
    fibers[current].copies.push_back({to, from, bytes, valid});
}
}  // namespace host

inline void copy_16(void* shared, const void* global, bool valid = true) { host::copy(shared, global, 16, valid); }
inline void copy_4(void* shared, const void* global, bool valid = true) { host::copy(shared, global, 4, valid); }
inline void end_copies() {
    host::Fiber& fiber = host::fibers[host::current];
    fiber.pending.push_back(std::move(fiber.copies));
    fiber.copies.clear();
}
template <int PENDING = 0>
inline void copies_done() {
    host::Fiber& fiber = host::fibers[host::current];
    while ((int)fiber.pending.size() > PENDING) {
        fiber.has_hidden |= !fiber.pending.front().empty();
        for (const host::Copy& one : fiber.pending.front()) {
            if (one.valid) std::memcpy(one.to, one.from, one.bytes);
            else std::memset(one.to, 0, one.bytes);
        }
        fiber.pending.erase(fiber.pending.begin());
    }
}
inline u32 spread_signs(u32 bytes, int half) {
    const u32 pair = bytes >> (16 * half);
    return (pair & 0x80u ? 0xffffu : 0u) | (pair & 0x8000u ? 0xffff0000u : 0u);
}
inline u32 even_bytes(u32 a, u32 b) {
    return (a & 0xffu) | (a >> 8 & 0xff00u) | (b & 0xffu) << 16 | (b << 8 & 0xff000000u);
}
template <int WHICH>
u32 byte_below(u32 rest, u32 word) {
    return (rest & 0xffffff00u) | (word >> 8 * WHICH & 0xffu);
}
inline void wait_for_kernels_before() {}
inline void let_next_kernel_start() {}

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __ldg(const float* from) { return *from; }
inline uint4 __ldcg(const uint4* from) { return *from; }
inline int __popc(u32 bits) { return __builtin_popcount(bits); }
inline u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
