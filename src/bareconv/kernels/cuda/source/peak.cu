// What the units of a GPU do at best, by the instructions that the other kernels use: multiplications whose operands
// never leave the registers, a copy of memory, and a kernel that does nothing.
//
// PRECISION says which multiplication; LEFT_ROWS, RIGHT_COLUMNS of a warp's tile, TERMS of its sums. TARGET: whether a
// copy writes what it has read. A constant that an entry does not need has its default.
#include "matrix.cuh"

#if !defined(PRECISION)
#define PRECISION 0
#endif
#if !defined(BLOCKS)
#define BLOCKS 1
#endif
#if !defined(TERMS)
#define TERMS 8
#define LEFT_ROWS 32
#define RIGHT_COLUMNS 64
#endif
#if !defined(ITERATIONS)
#define ITERATIONS 1
#endif
#if !defined(PASSES)
#define PASSES 1
#define TARGET 1
#endif

constexpr int HIGH = 2, WIDE = 4, SIZE = 32 * HIGH * WIDE;
constexpr int M = LEFT_ROWS * HIGH, N = RIGHT_COLUMNS * WIDE;
typedef Tile<PRECISION, M, N, TERMS, HIGH, WIDE, ALONG, ACROSS> Block;
typedef Block::Type Type;

// The warp's part of left times right, ITERATIONS times, from operands that are loaded once.
template <class Tile>
DEVICE void multiply_again(Tile& tile, const Type* left, const Type* right) {
    const int warp = warp_of_block(), row = warp / WIDE * LEFT_ROWS, column = warp % WIDE * RIGHT_COLUMNS;
    if constexpr (Tile::SCALAR) {
        float a[Tile::PER_M][4], b[Tile::PER_N][4];
        Tile::template load_scalars<ALONG, Tile::PER_M, 4, Tile::Left::PITCH>(a, left, row, lane_of_warp() / 8, 0);
        Tile::template load_scalars<ACROSS, Tile::PER_N, 8, Tile::Right::PITCH>(b, right, column, lane_of_warp() % 8, 0);
#pragma unroll 1
        for (int i = 0; i < ITERATIONS; i++)
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int y = 0; y < Tile::PER_M; y++)
#pragma unroll
                    for (int x = 0; x < Tile::PER_N; x++)
                        tile.sums[y][x][0] = fmaf(a[y][k], b[x][k], tile.sums[y][x][0]);
    } else {
        u32 a[Tile::ROWS][4], b[Tile::COLUMNS / 2][4];
#pragma unroll
        for (int y = 0; y < Tile::ROWS; y++) Tile::Left::load_left(a[y], left, row + 16 * y, 0);
#pragma unroll
        for (int x = 0; x < Tile::COLUMNS / 2; x++) Tile::Right::load_right(b[x], right, column + 16 * x, 0);
#pragma unroll 2
        for (int i = 0; i < ITERATIONS; i++)
#pragma unroll
            for (int y = 0; y < Tile::ROWS; y++)
#pragma unroll
                for (int x = 0; x < Tile::COLUMNS; x++) {
                    if constexpr (PRECISION == BFLOAT16)
                        multiply_bf16(tile.sums[y][x], a[y], b[x / 2][x % 2 * 2], b[x / 2][x % 2 * 2 + 1]);
                    else
                        multiply_tf32(tile.sums[y][x], a[y], b[x / 2][x % 2 * 2], b[x / 2][x % 2 * 2 + 1]);
                }
    }
}

// sums[block] = ITERATIONS times left (M x TERMS) right (TERMS x N), a row every Block::PITCH numbers; number by number
// only the first four TERMS.
KERNEL(SIZE, BLOCKS)
multiply(const Type* RESTRICT left, const Type* RESTRICT right, float* RESTRICT sums) {
    SHARED_MEMORY(shared);
    Type* const left_rows = (Type*)shared;
    Type* const right_rows = (Type*)(shared + Block::Left::BYTES);
    wait_for_kernels_before();
    Source<Block::Left, SIZE, TERMS, true, true>(left, 0, 0, M, TERMS).copy(left_rows);
    Source<Block::Right, SIZE, N, true, true>(right, 0, 0, TERMS, N).copy(right_rows);
    end_copies();
    copies_done();
    sync_block();
    Block tile;
    multiply_again(tile, left_rows, right_rows);
    tile.store(sums + (long long)blockIdx.x * (M * Block::PITCH));
}

// The whole of ``source`` to ``target``, PASSES times, every block another piece of PIECE uint4 each time. Without TARGET
// it is only read; then something is written where all of it is the same number as never occurs.
constexpr int COPY_THREADS = 256, AT_ONCE = 4, PIECE = COPY_THREADS * AT_ONCE;

KERNEL(COPY_THREADS, 1)
copy_memory(const uint4* source, uint4* target) {
    wait_for_kernels_before();
    u32 mixed = 0u;
#pragma unroll 1
    for (int pass = 0; pass < PASSES; pass++) {
        const int piece = (blockIdx.x + pass) % gridDim.x;
        const long long first = (long long)piece * PIECE + threadIdx.x;
        uint4 values[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) values[i] = __ldcg(source + first + i * COPY_THREADS);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (TARGET) target[first + i * COPY_THREADS] = values[i];
            else mixed |= values[i].x | values[i].y | values[i].z | values[i].w;
        }
    }
    if (!TARGET && mixed == 0xffffffffu) target[0] = uint4{mixed, mixed, mixed, mixed};
}

// What a launch costs.
KERNEL(32, 1)
do_nothing() {
    wait_for_kernels_before();
    let_next_kernel_start();
}
