// Products of matrices: a block makes a tile (M x N) of the result, chunk by chunk of the sum, from shared memory.
//
// bf16 and tf32 by the matrix unit, a warp a tile of its own; float32 by plain multiplications, a thread a tile.
#pragma once
#include "portable.cuh"

// How an operand lies in memory: ALONG has the numbers that are summed over beside each other, a row for each row (or
// column) of the result; ACROSS has a row for each place of the sum.
constexpr int ALONG = 0, ACROSS = 1;

// 16 bytes of numbers as floats, and back.
template <int P>
struct Segment {
    typedef typename Kept<P>::Type Type;
    static constexpr int SIZE = 16 / Kept<P>::BYTES;

    DEVICE static void load(float (&values)[SIZE], const Type* from) {
        if constexpr (P == BFLOAT16) {
            const uint4 bits = *(const uint4*)from;
            values[0] = low_half(bits.x), values[1] = high_half(bits.x);
            values[2] = low_half(bits.y), values[3] = high_half(bits.y);
            values[4] = low_half(bits.z), values[5] = high_half(bits.z);
            values[6] = low_half(bits.w), values[7] = high_half(bits.w);
        } else {
            const float4 four = *(const float4*)from;
            values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
        }
    }

    DEVICE static void store(Type* to, const float (&values)[SIZE]) {
        if constexpr (P == BFLOAT16)
            *(uint4*)to = uint4{pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]),
                                pack(values[6], values[7])};
        else
            *(float4*)to = float4{Kept<P>::of(values[0]), Kept<P>::of(values[1]), Kept<P>::of(values[2]),
                                  Kept<P>::of(values[3])};
    }
};

// One operand's chunk in shared memory: SIZE rows (or columns) of the result, CHUNK places of the sum.
template <int P, int SIZE, int CHUNK, int LIE>
struct Operand {
    typedef typename Kept<P>::Type Type;
    static constexpr int SEGMENT = Segment<P>::SIZE;
    static constexpr int ROWS = LIE == ALONG ? SIZE : CHUNK, WIDTH = LIE == ALONG ? CHUNK : SIZE;
    // An odd number of segments: eight rows' segments lie in different banks. Where tf32 is read a number at a time,
    // 8 numbers: four rows of eight neighbours lie in different banks.
    static constexpr int PITCH = WIDTH + (P == TF32 && LIE == ACROSS ? 8 : SEGMENT);
    static constexpr int BYTES = ROWS * PITCH * Kept<P>::BYTES;
    static constexpr int STEP = P == BFLOAT16 ? 16 : 8;  // places of the sum in one multiplication of matrices
    static_assert(WIDTH % (2 * SEGMENT) == 0 && CHUNK % STEP == 0, "a row is an even number of segments");

    // Copy a chunk: ``source(row, column)`` is where the segment lies, or null where it counts as zeros.
    template <int THREADS, class Source>
    DEVICE static void copy(Type* to, const Type* readable, Source&& source) {
        constexpr int PER_ROW = WIDTH / SEGMENT, COUNT = ROWS * PER_ROW;
#pragma unroll
        for (int i = 0; i < blocks_of(COUNT, THREADS); i++) {
            const int index = i * THREADS + threadIdx.x;
            if (COUNT % THREADS != 0 && index >= COUNT) break;
            const int row = index / PER_ROW, column = index % PER_ROW * SEGMENT;
            const Type* from = source(row, column);
            copy_16(to + row * PITCH + column, from == nullptr ? readable : from, from != nullptr);
        }
    }

    // 16 rows of the left operand, from ``row``, and STEP places of the sum from ``place``.
    DEVICE static void load_left(u32 (&a)[4], const Type* from, int row, int place) {
        const int lane = lane_of_warp();
        if constexpr (LIE == ALONG)
            load_matrices(a, from + (row + lane % 16) * PITCH + place + lane / 16 * SEGMENT);
        else if constexpr (P == BFLOAT16)
            load_matrices_transposed(a, from + (place + lane % 8 + lane / 16 * 8) * PITCH + row + lane / 8 % 2 * 8);
        else
            load_numbers(a[0], a[1], a[2], a[3], from, row, place);
    }

    // 16 columns of the right operand: b[0], b[1] for the first eight, b[2], b[3] for the others.
    DEVICE static void load_right(u32 (&b)[4], const Type* from, int column, int place) {
        const int lane = lane_of_warp();
        if constexpr (LIE == ALONG)
            load_matrices(b, from + (column + lane % 8 + lane / 16 * 8) * PITCH + place + lane / 8 % 2 * SEGMENT);
        else if constexpr (P == BFLOAT16)
            load_matrices_transposed(b, from + (place + lane % 16) * PITCH + column + lane / 16 * 8);
        else
            load_numbers(b[0], b[2], b[1], b[3], from, column, place);
    }

    // (place, index), (place, index + 8), (place + 4, index), (place + 4, index + 8), as the matrix unit wants tf32.
    DEVICE static void load_numbers(u32& a, u32& b, u32& c, u32& d, const Type* from, int index, int place) {
        if constexpr (P == TF32) {
            const float* mine = from + (place + lane_of_warp() % 4) * PITCH + index + lane_of_warp() / 4;
            a = bits_of(mine[0]), b = bits_of(mine[8]), c = bits_of(mine[4 * PITCH]), d = bits_of(mine[4 * PITCH + 8]);
        }
    }
};

// A block's tile of the result. WARPS_M x WARPS_N warps share it.
template <int P, int M, int N, int CHUNK, int WARPS_M, int WARPS_N, int LEFT_LIE, int RIGHT_LIE>
struct Tile {
    typedef Kept<P> Number;
    typedef typename Number::Type Type;
    typedef Operand<P, M, CHUNK, LEFT_LIE> Left;
    typedef Operand<P, N, CHUNK, RIGHT_LIE> Right;
    static constexpr int HEIGHT = M, WIDTH = N, THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int STAGE_BYTES = Left::BYTES + Right::BYTES;
    static constexpr int PITCH = N + 8;  // of the result in shared memory, in floats
    static constexpr int RESULT_BYTES = M * PITCH * 4;
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N;
    static constexpr bool SCALAR = P == FLOAT32;
    // Without the matrix unit: 4 x 8 lanes a warp, each with PER_M x PER_N numbers, in groups of neighbours where the
    // operand lies ACROSS, of lanes apart where it lies ALONG: so that a load takes 16 bytes.
    static constexpr int PER_M = WARP_M / 4, PER_N = WARP_N / 8;
    static constexpr int ROWS = SCALAR ? PER_M : WARP_M / 16, COLUMNS = SCALAR ? PER_N : WARP_N / 8;
    static constexpr int EACH = SCALAR ? 1 : 4;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp's tile is made of 16 x 16");

    float sums[ROWS][COLUMNS][EACH] = {};

    // sums += left right, a chunk of both.
    DEVICE void add(const Type* left, const Type* right) {
        const int warp = warp_of_block(), row = warp / WARPS_N * WARP_M, column = warp % WARPS_N * WARP_N;
        if constexpr (SCALAR) {
            const int y = lane_of_warp() / 8, x = lane_of_warp() % 8;
#pragma unroll
            for (int place = 0; place < CHUNK; place += 4) {
                float a[PER_M][4], b[PER_N][4];
                load_scalars<LEFT_LIE, PER_M, 4, Left::PITCH>(a, left, row, y, place);
                load_scalars<RIGHT_LIE, PER_N, 8, Right::PITCH>(b, right, column, x, place);
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int i = 0; i < PER_M; i++)
#pragma unroll
                        for (int j = 0; j < PER_N; j++) sums[i][j][0] = fmaf(a[i][k], b[j][k], sums[i][j][0]);
            }
        } else {
#pragma unroll
            for (int place = 0; place < CHUNK; place += Left::STEP) {
                u32 a[ROWS][4], b[COLUMNS / 2][4];
#pragma unroll
                for (int i = 0; i < ROWS; i++) Left::load_left(a[i], left, row + 16 * i, place);
#pragma unroll
                for (int j = 0; j < COLUMNS / 2; j++) Right::load_right(b[j], right, column + 16 * j, place);
#pragma unroll
                for (int i = 0; i < ROWS; i++)
#pragma unroll
                    for (int j = 0; j < COLUMNS; j++) {
                        if constexpr (P == BFLOAT16)
                            multiply_bf16(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                        else if constexpr (P == TF32)
                            multiply_tf32(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
                    }
            }
        }
    }

    // The tile, in floats, to shared memory: a row every PITCH.
    DEVICE void store(float* result) const {
        const int warp = warp_of_block(), row = warp / WARPS_N * WARP_M, column = warp % WARPS_N * WARP_N;
        const int lane = lane_of_warp();
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                if constexpr (SCALAR) {
                    const int y = index_of<LEFT_LIE, PER_M, 4>(lane / 8, i), x = index_of<RIGHT_LIE, PER_N, 8>(lane % 8, j);
                    result[(row + y) * PITCH + column + x] = sums[i][j][0];
                } else {
                    float* to = result + (row + 16 * i + lane / 4) * PITCH + column + 8 * j + lane % 4 * 2;
                    *(float2*)to = float2{sums[i][j][0], sums[i][j][1]};
                    *(float2*)(to + 8 * PITCH) = float2{sums[i][j][2], sums[i][j][3]};
                }
            }
    }

    // Which of the warp's rows (or columns) is number ``i`` of lane ``of`` among LANES.
    template <int LIE, int PER, int LANES>
    DEVICE static int index_of(int of, int i) {
        constexpr int GROUP = PER < 4 ? PER : 4;
        return LIE == ALONG ? i * LANES + of : (i / GROUP * LANES + of) * GROUP + i % GROUP;
    }

    template <int LIE, int PER, int LANES, int ROW_PITCH>
    DEVICE static void load_scalars(float (&values)[PER][4], const Type* from, int first, int of, int place) {
        if constexpr (SCALAR) {
            if constexpr (LIE == ALONG) {
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    const float4 four = *(const float4*)(from + (first + i * LANES + of) * ROW_PITCH + place);
                    values[i][0] = four.x, values[i][1] = four.y, values[i][2] = four.z, values[i][3] = four.w;
                }
            } else {
                constexpr int GROUP = PER < 4 ? PER : 4;
                static_assert(PER % GROUP == 0 && (GROUP == 4 || GROUP == 2), "neighbours are loaded by 2 or by 4");
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int i = 0; i < PER; i += GROUP) {
                        const float* mine = from + (place + k) * ROW_PITCH + first + (i / GROUP * LANES + of) * GROUP;
                        if constexpr (GROUP == 4) {
                            const float4 four = *(const float4*)mine;
                            values[i][k] = four.x, values[i + 1][k] = four.y;
                            values[i + 2][k] = four.z, values[i + 3][k] = four.w;
                        } else {
                            const float2 two = *(const float2*)mine;
                            values[i][k] = two.x, values[i + 1][k] = two.y;
                        }
                    }
            }
        }
    }
};

// All ``chunks`` of the sum, STAGES of them on their way at a time. ``copy(left, right, chunk)`` starts the copies of
// one. At the end the shared memory is free again.
template <int STAGES, class Tile, class Copy>
DEVICE void add_chunks(Tile& tile, u8* shared, int chunks, Copy&& copy) {
    typedef typename Tile::Type Type;
    const auto left = [=](int stage) { return (Type*)(shared + stage * Tile::STAGE_BYTES); };
    const auto right = [=](int stage) { return (Type*)(shared + stage * Tile::STAGE_BYTES + Tile::Left::BYTES); };
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < chunks) copy(left(stage), right(stage), stage);
        end_copies();
    }
    int stage = 0, free = STAGES - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
        copies_done<STAGES - 2>();
        sync_block();
        if (chunk + STAGES - 1 < chunks) copy(left(free), right(free), chunk + STAGES - 1);
        end_copies();
        tile.add(left(stage), right(stage));
        free = stage, stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    copies_done();
    sync_block();
}

// ``work(i, row, column, values)`` for every WIDTH neighbours of a tile that ``store`` has written, over all threads: the
// i-th of each.
template <int WIDTH, class Tile, class Work>
DEVICE void for_each_group(const float* result, Work&& work) {
    constexpr int PER_ROW = Tile::WIDTH / WIDTH, COUNT = Tile::HEIGHT * PER_ROW;
#pragma unroll
    for (int i = 0; i < blocks_of(COUNT, Tile::THREADS); i++) {
        const int index = i * Tile::THREADS + threadIdx.x;
        if (COUNT % Tile::THREADS != 0 && index >= COUNT) break;
        const int row = index / PER_ROW, column = index % PER_ROW * WIDTH;
        float values[WIDTH];
#pragma unroll
        for (int part = 0; part < WIDTH; part += 4) {
            const float4 four = *(const float4*)(result + row * Tile::PITCH + column + part);
            values[part] = four.x, values[part + 1] = four.y, values[part + 2] = four.z, values[part + 3] = four.w;
        }
        work(i, row, column, values);
    }
}
