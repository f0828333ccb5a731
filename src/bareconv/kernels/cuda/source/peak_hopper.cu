// What the matrix unit of compute capability 9.0 does at best by wgmma: two groups of warps, each with 64 rows of ``left``
// in registers and 128 columns of ``right`` in shared memory, ITERATIONS times the same product.
//
//   sums[block][group][thread] = the sum of what that thread has of it
#include "hopper.cuh"

constexpr int THREADS = 256, STEPS = 4, COUNT = 16;  // k16 at a time; columns in blocks of 8

KERNEL(THREADS, 1)
multiply_groups(const u32* RESTRICT left, const u32* RESTRICT right, float* RESTRICT sums) {
    SHARED_MEMORY(shared);
    constexpr int WORDS = STEPS * 16 * 128 / 2;
    for (int i = threadIdx.x; i < WORDS; i += THREADS) ((u32*)shared)[i] = right[i];
    show_matrix_unit();
    sync_block();
    wait_for_kernels_before();
    let_next_kernel_start();
    u32 a[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[step][i] = left[(step * 4 + i) * 128 + threadIdx.x % 128];
    float c[COUNT][4];
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) c[j][e] = 0.f;
    for (int iteration = 0; iteration < ITERATIONS; iteration++) {
        begin_products();
#pragma unroll
        for (int step = 0; step < STEPS; step++)
            multiply_group<true, COUNT>(c, a[step], matrix_across(shared + step * 2048, STEPS * 2048), true);
        end_products();
        products_done<1>();
    }
    products_done<0>();
    take_sums(c);
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum += c[j][e];
    sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}
