// hopper.cuh's functions on a CPU, after host.hpp's and as strict: a product reads its operands, and changes the sums,
// only when it is waited for.
#pragma once

#include <map>

namespace host {

struct SharedBarrier {
    int needed = 0;
    Barrier barrier;
};
static std::map<const void*, SharedBarrier> shared_barriers;

struct Product {
    float* c[128];
    const u32* a[128];
    u64 matrix;
    int columns;
    bool is_across, add;
};

struct Group {  // of four warps
    Barrier barrier;
    void* operands[128];
    std::vector<Product> products;              // since the last end_products
    std::vector<std::vector<Product>> pending;  // groups
};
static std::map<int, Group> groups;

static const bool is_listed = [] {
    at_start.push_back([] { shared_barriers.clear(), groups.clear(); });
    return true;
}();

static SharedBarrier& shared_barrier(const void* place) {
    const auto found = shared_barriers.find(place);
    if (found == shared_barriers.end()) fail("a barrier in shared memory that was not started");
    return found->second;
}

// The last of a group's 128 threads does the work for all.
template <class F>
static void together_in_group(void* mine, F&& work) {
    Group& group = groups[current / 128];
    group.operands[current % 128] = mine;
    arrive(group.barrier, 128, [&] { work(group); });
}

// Number (k, n) of the matrix.
static float number_of(const Product& product, int k, int n) {
    const int start = (int)(product.matrix & 0x3fff) << 4;
    const int leading = (int)(product.matrix >> 16 & 0x3fff) << 4, stride = (int)(product.matrix >> 32 & 0x3fff) << 4;
    int at = product.is_across ? start + n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2
                               : start + n / 8 * stride + n % 8 * 128 + k * 2;
    at ^= (at >> 7 & 7) << 4;
    u16 bits;
    std::memcpy(&bits, shared_memory + at, 2);
    return float_of((u32)bits << 16);
}

static void multiply(const Product& product) {
    if (product.matrix >> 62 != 1) fail("a matrix that does not lie in lines of 128 bytes");
    for (const Fiber& fiber : fibers)
        if (fiber.has_hidden) fail("writes to shared memory that the matrix unit was not shown");
    std::vector<float> b(16 * product.columns);
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < product.columns; n++) b[k * product.columns + n] = number_of(product, k, n);
    float a[64][16];
    for (int thread = 0; thread < 128; thread++)
        for (int i = 0; i < 4; i++)
            for (int e = 0; e < 2; e++)
                a[thread / 32 * 16 + thread % 32 / 4 + 8 * (i & 1)][2 * (thread % 4) + 8 * (i >> 1) + e] = half_of(product.a[thread][i], e);
    for (int thread = 0; thread < 128; thread++)
        for (int i = 0; i < product.columns / 2; i++) {
            const float* row = a[thread / 32 * 16 + thread % 32 / 4 + 8 * (i >> 1 & 1)];
            const int n = i / 4 * 8 + 2 * (thread % 4) + (i & 1);
            float sum = product.add ? product.c[thread][i] : 0.f;
            for (int k = 0; k < 16; k++) sum += row[k] * b[k * product.columns + n];
            product.c[thread][i] = sum;
        }
}

struct ProductOperands {
    float* c;
    const u32* a;
    u64 matrix;
};

static void multiply_group(float* c, const u32* a, u64 matrix, int columns, bool is_across, bool add) {
    ProductOperands mine{c, a, matrix};
    together_in_group(&mine, [=](Group& group) {
        Product product{{}, {}, matrix, columns, is_across, add};
        for (int thread = 0; thread < 128; thread++) {
            const ProductOperands& one = *static_cast<ProductOperands*>(group.operands[thread]);
            if (one.matrix != matrix) fail("threads of a group name different matrices");
            product.c[thread] = one.c, product.a[thread] = one.a;
        }
        group.products.push_back(product);
    });
}

}  // namespace host

template <int COUNT>
inline void give_registers() {}
template <int COUNT>
inline void take_registers() {}

inline u32 shared_address(const void* pointer) { return (u32)((const u8*)pointer - host::shared_memory); }

inline void start_barrier(u64* barrier, int arrivals) { host::shared_barriers[barrier].needed = arrivals; }
inline void arrive_at(u64* barrier) {
    host::SharedBarrier& one = host::shared_barrier(barrier);
    if (++one.barrier.arrived == one.needed) one.barrier.arrived = 0, one.barrier.generation++;
}
inline void wait_at(u64* barrier, u32 parity) {
    host::Barrier& one = host::shared_barrier(barrier).barrier;
    while ((one.generation & 1) == parity) {
        host::Fiber& fiber = host::fibers[host::current];
        fiber.at = &one, fiber.generation = one.generation;
        host::leave();
        fiber.at = nullptr;
    }
}
inline void show_matrix_unit() { host::fibers[host::current].has_hidden = false; }
inline void begin_products() {}
inline void end_products() {
    host::together_in_group(nullptr, [](host::Group& group) {
        group.pending.push_back(std::move(group.products));
        group.products.clear();
    });
}
template <int PENDING = 0>
inline void products_done() {
    host::together_in_group(nullptr, [](host::Group& group) {
        while ((int)group.pending.size() > PENDING) {
            for (const host::Product& one : group.pending.front()) host::multiply(one);
            group.pending.erase(group.pending.begin());
        }
    });
}
template <int COUNT>
inline void take_sums(float (&)[COUNT][4]) {}
template <bool IS_ACROSS, int COUNT>
inline void multiply_group(float (&c)[COUNT][4], const u32 (&a)[4], u64 matrix, bool add) {
    host::multiply_group(&c[0][0], a, matrix, 8 * COUNT, IS_ACROSS, add);
}
