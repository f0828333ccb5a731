// What every kernel is written in: types, and one small function around each instruction that C++ has no word for.
//
// Compiled by NVRTC it is CUDA. Without a CUDA compiler "host.hpp" takes the place of each function here, and the same
// kernels run on a CPU, one fiber a thread: slowly, but under a debugger and in tests.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A number's upper half: 8 bits of exponent, 7 of mantissa.
struct bf16 {
    u16 bits;
};

#if defined(__CUDACC__)

#define DEVICE __device__ __forceinline__
// An entry: at most THREADS threads a block, and registers such that BLOCKS blocks fit on a multiprocessor.
#define KERNEL(THREADS, BLOCKS) extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
// The block's shared memory, of the size that the launch says.
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) u8 name[]
// A variable of the block; only for the few that are not worth a place in SHARED_MEMORY.
#define SHARED __shared__
#define RESTRICT __restrict__

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// A barrier of THREADS threads, a multiple of 32, of the block; number 0 is sync_block's.
DEVICE void sync_some(int number, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

DEVICE u32 bits_of(float value) { return __float_as_uint(value); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE u32 shuffle_xor(u32 value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE int shuffle_xor(int value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE u32 shuffle(u32 value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// The lanes for which it holds, as bits.
DEVICE u32 ballot(bool holds) { return __ballot_sync(0xffffffffu, holds); }

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// max(value, 0); a NaN stays one.
DEVICE float relu(float value) {
#if __CUDA_ARCH__ >= 800
    float result;
    asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
    return result;
#else
    return value < 0.f ? 0.f : value;
#endif
}

// Two numbers as bf16, the first in the lower half; to nearest, ties to even.
DEVICE u32 pack(float low, float high) {
#if __CUDA_ARCH__ >= 800
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
#else
    u32 a = bits_of(low), b = bits_of(high);
    a = low != low ? 0x7fffu : (a + 0x7fffu + ((a >> 16) & 1u)) >> 16;
    b = high != high ? 0x7fffu : (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return a | b << 16;
#endif
}

// To nearest of the numbers that have 10 bits of mantissa.
DEVICE float round_tf32(float value) {
#if __CUDA_ARCH__ >= 800
    u32 result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return float_of(result);
#else
    u32 bits = bits_of(value);
    return (bits & 0x7f800000u) == 0x7f800000u ? value : float_of((bits + 0x1000u) & 0xffffe000u);
#endif
}

// Four 8 x 8 matrices of bf16 from shared memory. Lane 8 i + r names row r of matrix i, 16 bytes at a multiple of 16;
// lane 4 r + c gets the numbers 2 c and 2 c + 1 of row r of matrix i in result[i].
DEVICE void load_matrices(u32 (&result)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, each matrix transposed: lane 4 c + r gets column c's numbers of rows 2 r and 2 r + 1.
DEVICE void load_matrices_transposed(u32 (&result)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Two matrices; lanes 0 to 15 name the rows.
DEVICE void load_matrices(u32 (&result)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(result[0]), "=r"(result[1])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void load_matrices_transposed(u32 (&result)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(result[0]), "=r"(result[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// An 8 x 8 matrix of bf16, spread over the lanes as load_matrices does it, transposed in registers.
DEVICE u32 transpose_matrix(u32 value) {
    u32 result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
    return result;
}

// c (16 x 8) += a (16 x 16) b (16 x 8) over a warp, bf16 into float. With g = lane / 4 and t = lane % 4:
//   a[0] rows g     columns 2 t, 2 t + 1      a[2] rows g     columns 2 t + 8, 2 t + 9
//   a[1] rows g + 8 columns 2 t, 2 t + 1      a[3] rows g + 8 columns 2 t + 8, 2 t + 9
//   b[0] rows 2 t, 2 t + 1 column g           b[1] rows 2 t + 8, 2 t + 9 column g
//   c[0], c[1] row g, columns 2 t, 2 t + 1    c[2], c[3] row g + 8
DEVICE void multiply_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // Without the instruction: every lane asks its neighbours for the rows and columns that it needs.
    const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const u32 top = shuffle(a[2 * half], 4 * g + k), bottom = shuffle(a[2 * half + 1], 4 * g + k);
            const u32 mine = half ? b1 : b0;
            const u32 left = shuffle(mine, 8 * t + k), right = shuffle(mine, 8 * t + 4 + k);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int up = e ? 0 : 16;
                const u32 upper = 0xffff0000u;
                const float p = float_of(top << up & upper), q = float_of(bottom << up & upper);
                const float l = float_of(left << up & upper), r = float_of(right << up & upper);
                c[0] = fmaf(p, l, c[0]), c[1] = fmaf(p, r, c[1]);
                c[2] = fmaf(q, l, c[2]), c[3] = fmaf(q, r, c[3]);
            }
        }
#endif
}

// c (16 x 8) += a (16 x 8) b (8 x 8) over a warp, tf32 into float. With g and t as above:
//   a[0] row g column t    a[1] row g + 8 column t    a[2] row g column t + 4    a[3] row g + 8 column t + 4
//   b[0] row t column g    b[1] row t + 4 column g    c as above
DEVICE void multiply_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float p = float_of(shuffle(a[2 * half], 4 * g + k)), q = float_of(shuffle(a[2 * half + 1], 4 * g + k));
            const u32 mine = half ? b1 : b0;
            const float l = float_of(shuffle(mine, 8 * t + k)), r = float_of(shuffle(mine, 8 * t + 4 + k));
            c[0] = fmaf(p, l, c[0]), c[1] = fmaf(p, r, c[1]);
            c[2] = fmaf(q, l, c[2]), c[3] = fmaf(q, r, c[3]);
        }
#endif
}

// Bytes 2 half and 2 half + 1 of ``bytes``, each spread over 16 bits that all equal its highest bit.
DEVICE u32 spread_signs(u32 bytes, int half) {
    u32 result;
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(bytes), "r"(half ? 0xbbaau : 0x9988u));
    return result;
}

// Bytes 0 and 2 of ``a``, then those of ``b``.
DEVICE u32 even_bytes(u32 a, u32 b) { return __byte_perm(a, b, 0x6420); }

// Byte WHICH of ``word`` below the upper three of ``rest``.
template <int WHICH>
DEVICE u32 byte_below(u32 rest, u32 word) {
    return __byte_perm(word, rest, 0x7650 | WHICH);
}

// 16 bytes from global to shared memory, both at multiples of 16, or zeros where not ``valid`` (the address must then
// still be one that may be read from, but nothing is). There once ``copies_done`` says so, and a barrier has followed.
DEVICE void copy_16(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    uint4 value = {0u, 0u, 0u, 0u};
    if (valid) value = *(const uint4*)global;
    *(uint4*)shared = value;
#endif
}

// 4 bytes.
DEVICE void copy_4(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 4 : 0)
                 : "memory");
#else
    *(u32*)shared = valid ? *(const u32*)global : 0u;
#endif
}

// The copies so far, since the last call, are a group.
DEVICE void end_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait for this thread's groups of copies, all but the newest PENDING.
template <int PENDING = 0>
DEVICE void copies_done() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Kernels that follow each other may overlap: from here on what the kernels before have written may be read.
DEVICE void wait_for_kernels_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel's blocks may start where there is room for them.
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else
#include "host.hpp"
#endif

DEVICE int lane_of_warp() { return threadIdx.x & 31; }
DEVICE int warp_of_block() { return threadIdx.x >> 5; }

// Precisions, by the number that PRECISION has.
#define FLOAT32 0
#define TF32 1
#define BFLOAT16 2

DEVICE float to_float(bf16 value) { return float_of((u32)value.bits << 16); }
DEVICE float to_float(float value) { return value; }
DEVICE float low_half(u32 pair) { return float_of(pair << 16); }
DEVICE float high_half(u32 pair) { return float_of(pair & 0xffff0000u); }

// What numbers of a precision are kept as: rounded where they are written, so that readers need not.
template <int P>
struct Kept {
    typedef float Type;
    static constexpr int BYTES = 4;
    DEVICE static float of(float value) { return P == TF32 ? round_tf32(value) : value; }
    // Two neighbours, at a multiple of their size.
    DEVICE static void store_pair(float* to, float a, float b) { *(float2*)to = float2{of(a), of(b)}; }
    DEVICE static float2 load_pair(const float* from) { return *(const float2*)from; }
};

template <>
struct Kept<BFLOAT16> {
    typedef bf16 Type;
    static constexpr int BYTES = 2;
    DEVICE static bf16 of(float value) { return bf16{(u16)pack(value, 0.f)}; }
    DEVICE static void store_pair(bf16* to, float a, float b) { *(u32*)to = pack(a, b); }
    DEVICE static float2 load_pair(const bf16* from) {
        const u32 pair = *(const u32*)from;
        return float2{low_half(pair), high_half(pair)};
    }
};

// Channels as they lie in memory: up to the next multiple of 8, the rest zeros.
constexpr int padded(int channels) { return (channels + 7) / 8 * 8; }
constexpr int blocks_of(int count, int size) { return (count + size - 1) / size; }

// The step that is under way, in device memory: what a captured graph reads instead of arguments.
struct Control {
    int position;    // of the step among those that were asked for
    int images;      // of this step's batch
    int total;       // images in the order
    int batch;       // images of a full batch; 0: every step takes all images
    int first_step;  // the number of the step at position 0, counted from the training's start
};

// Where an image of the step is among all of them. ``order`` null: they are taken as they lie.
DEVICE int place_of(int image, const int* order, const Control* control) {
    const int place = control->position * control->batch + image;
    return order == nullptr ? place : order[place];
}

// The step's position for its last kernel, which moves ``control`` on: there, no block but the one that does may read
// it. To be called by all threads of the kernel that has the loss. ``position`` null: nobody asks.
DEVICE void hand_on(int* position, const Control* control) {
    if (position != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *position = control->position;
}
