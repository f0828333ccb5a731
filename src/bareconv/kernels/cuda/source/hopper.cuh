// Words for what only GPUs of compute capability 9.0 have: a matrix unit that reads shared memory by itself and works
// while its warps go on, and barriers in shared memory. Kernels with these are compiled for "sm_90a".
#pragma once
#include "portable.cuh"

#if defined(__CUDACC__)

// Groups of four warps share out the block's registers anew: from here on so many, fewer or more, for each thread.
template <int COUNT>
DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// A barrier in shared memory, for everyone ``arrivals`` times. Then sync_block, before anyone uses it.
DEVICE void start_barrier(u64* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEVICE void arrive_at(u64* barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Until round number ``parity`` of the barrier, the first is 0, all modulo 2, has ended: all its arrivals were there.
DEVICE void wait_at(u64* barrier, u32 parity) {
    u32 done;
    do {
        asm volatile(
            "{\n\t.reg .pred done;\n\t"
            "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, done;\n\t}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (done == 0);
}

// What this thread has written to shared memory is seen by the matrix unit, for whoever learns of it after this.
DEVICE void show_matrix_unit() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Before multiply_group: registers that it reads or adds to have been written.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// The multiply_group's since the last call are a group.
DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Wait for the groups so far, all but the newest PENDING.
template <int PENDING = 0>
DEVICE void products_done() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// After products_done: the sums may be used. (It keeps the compiler from reading them earlier.)
template <int COUNT>
DEVICE void take_sums(float (&c)[COUNT][4]) {
#pragma unroll
    for (int j = 0; j < COUNT; j++)
        asm volatile("" : "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])::"memory");
}

#define SUMS_1(j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define SUMS_4(j) SUMS_1(j), SUMS_1(j + 1), SUMS_1(j + 2), SUMS_1(j + 3)
#define SUMS_8(j) SUMS_4(j), SUMS_4(j + 4)
#define NAMES_32                                                                                                 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
    "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                      \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
             "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// c (64 x 8 COUNT) (+)= a (64 x 16) b (16 x 8 COUNT) over a group of four warps, bf16 into float, some time until
// products_done. Warp w of the group has rows 16 w to 16 w + 15 of ``a`` and ``c``, as in multiply_bf16; c[j] is columns
// 8 j to 8 j + 7. ``b`` lies in shared memory where ``matrix`` says (matrix_along, matrix_across). Without ``add`` the
// sums start anew.
template <bool IS_ACROSS, int COUNT>
DEVICE void multiply_group(float (&c)[COUNT][4], const u32 (&a)[4], u64 matrix, bool add) {
    static_assert(COUNT == 8 || COUNT == 16, "64 or 128 columns");
    if constexpr (COUNT == 8) {
        asm volatile(
            "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %37, 0;\n\t"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" NAMES_32 "}, {%32, %33, %34, %35}, %36, "
            "add, 1, 1, %38;\n\t}"
            : SUMS_8(0)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(matrix), "r"((int)add), "n"((int)IS_ACROSS));
    } else {
        asm volatile(
            "{\n\t.reg .pred add;\n\tsetp.ne.b32 add, %69, 0;\n\t"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" NAMES_64 "}, {%64, %65, %66, %67}, %68, "
            "add, 1, 1, %70;\n\t}"
            : SUMS_8(0), SUMS_8(8)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(matrix), "r"((int)add), "n"((int)IS_ACROSS));
    }
}

#else
#include "host_hopper.hpp"
#endif

// Matrices in shared memory as the matrix unit reads them: lines of 128 bytes, eight of them at a multiple of 1024, in
// which the 16 bytes number i of line number l lie at i ^ l % 8, so that no two that meet share a bank.
//
// With rows of k (ACROSS), [n / 64][k][64 numbers]: the unit takes 16 rows. ``apart`` bytes lie between the n's of one
// 64 and of the next.
DEVICE u64 matrix_across(const u8* shared, int apart) {
    return (u64)(shared_address(shared) >> 4) | (u64)(apart >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}
// With rows of n (ALONG), [k / 64][n][64 numbers]: ``shared`` is where row 0 has the first of the 16 k's.
DEVICE u64 matrix_along(const u8* shared) {
    return (u64)(shared_address(shared) >> 4) | 1ull << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

// For what all lanes of a warp have done until here, one of them arrives. Racecheck does not follow __syncwarp to that
// lane: tests have every lane arrive for it.
#ifndef EVERY_LANE_ARRIVES
#define EVERY_LANE_ARRIVES 0
#endif
constexpr int ARRIVALS_OF_A_WARP = EVERY_LANE_ARRIVES ? 32 : 1;
DEVICE void warp_arrives_at(u64* barrier) {
    sync_warp();
    if (EVERY_LANE_ARRIVES || lane_of_warp() == 0) arrive_at(barrier);
}
