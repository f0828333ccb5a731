// Products of matrices: a block makes a tile (M x N) of the result, chunk by chunk of the sum, from shared memory.
//
// bf16 and tf32 by the matrix unit, a warp a tile of its own; float32, and everything where MATRIX_UNIT is 0, by plain
// multiplications, a thread a tile.
#pragma once
#include "portable.cuh"

// Names of template parameters here are not those of any kernel's constants, which are macros.

#if !defined(MATRIX_UNIT)
#define MATRIX_UNIT 1
#endif

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

// One operand's chunk in shared memory: SIZE rows (or columns) of the result, DEPTH places of the sum.
template <int P, int SIZE, int DEPTH, int LIE>
struct Operand {
    typedef typename Kept<P>::Type Type;
    static constexpr int SEGMENT = Segment<P>::SIZE;
    static constexpr int PLACES = DEPTH;
    static constexpr bool ALONG_SUM = LIE == ALONG;
    static constexpr int ROWS = LIE == ALONG ? SIZE : DEPTH, WIDTH = LIE == ALONG ? DEPTH : SIZE;
    // An odd number of segments: eight rows' segments lie in different banks. Where tf32 is read a number at a time,
    // 8 numbers: four rows of eight neighbours lie in different banks.
    static constexpr int PITCH = WIDTH + (P == TF32 && LIE == ACROSS ? 8 : SEGMENT);
    static constexpr int BYTES = ROWS * PITCH * Kept<P>::BYTES;
    static constexpr int STEP = P == BFLOAT16 ? 16 : 8;  // places of the sum in one multiplication of matrices
    static_assert(WIDTH % (2 * SEGMENT) == 0 && DEPTH % STEP == 0, "a row is an even number of segments");

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

// Where a block of ALL threads copies an operand's chunks from, one after the other: a matrix whose rows are FROM_PITCH
// numbers apart. What lies beyond its end counts as zeros; ROWS_FIT, COLUMNS_FIT: nothing ever does.
template <class Operand, int ALL, int FROM_PITCH, bool ROWS_FIT, bool COLUMNS_FIT>
struct Source {
    typedef typename Operand::Type Type;
    static constexpr int PER_ROW = Operand::WIDTH / Operand::SEGMENT, STEP = ALL / PER_ROW;
    static_assert(ALL % PER_ROW == 0, "a thread copies the same columns of rows that are STEP apart");

    const Type* from;   // this thread's first segment
    int rows, columns;  // how many there are from there on
    int place;          // of the first segment in shared memory

    // The first chunk begins at ``row`` and ``column`` of a matrix that ends before ``end_row`` and ``end_column``.
    DEVICE Source(const Type* matrix, int row, int column, int end_row, int end_column) {
        const int my_row = threadIdx.x / PER_ROW, my_column = threadIdx.x % PER_ROW * Operand::SEGMENT;
        from = matrix + (long long)(row + my_row) * FROM_PITCH + column + my_column;
        rows = end_row - row - my_row, columns = end_column - column - my_column;
        place = my_row * Operand::PITCH + my_column;
    }

    // Start to copy the next chunk.
    DEVICE void copy(Type* to) {
#pragma unroll
        for (int i = 0; i < blocks_of(Operand::ROWS, STEP); i++) {
            if (Operand::ROWS % STEP != 0 && threadIdx.x / PER_ROW + i * STEP >= Operand::ROWS) break;
            copy_16(to + place + i * (STEP * Operand::PITCH), from + i * (STEP * FROM_PITCH),
                    (ROWS_FIT || i * STEP < rows) && (COLUMNS_FIT || columns > 0));
        }
        if (Operand::ALONG_SUM) {
            from += Operand::PLACES, columns -= Operand::PLACES;
        } else {
            from += Operand::PLACES * FROM_PITCH, rows -= Operand::PLACES;
        }
    }
};

// A block's tile of the result. HIGH x WIDE warps share it.
template <int P, int M, int N, int DEPTH, int HIGH, int WIDE, int LEFT_LIE, int RIGHT_LIE>
struct Tile {
    typedef Kept<P> Number;
    typedef typename Number::Type Type;
    typedef Operand<P, M, DEPTH, LEFT_LIE> Left;
    typedef Operand<P, N, DEPTH, RIGHT_LIE> Right;
    static constexpr int HEIGHT = M, WIDTH = N, SIZE = 32 * HIGH * WIDE;  // SIZE: threads
    static constexpr int STAGE_BYTES = Left::BYTES + Right::BYTES;
    static constexpr int PITCH = N + 8;  // of the result in shared memory, in floats
    static constexpr int RESULT_BYTES = M * PITCH * 4;
    static constexpr int WARP_M = M / HIGH, WARP_N = N / WIDE;
    static constexpr bool SCALAR = P == FLOAT32 || !MATRIX_UNIT;
    // Without the matrix unit: 4 x 8 lanes a warp, each with PER_M x PER_N numbers, in groups of neighbours where the
    // operand lies ACROSS, of lanes apart where it lies ALONG: so that a load takes four of them.
    static constexpr int PER_M = WARP_M / 4, PER_N = WARP_N / 8;
    static constexpr int ROWS = SCALAR ? PER_M : WARP_M / 16, COLUMNS = SCALAR ? PER_N : WARP_N / 8;
    static constexpr int EACH = SCALAR ? 1 : 4;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "a warp's tile is made of 16 x 16");

    float sums[ROWS][COLUMNS][EACH] = {};

    // sums += left right, a chunk of both.
    DEVICE void add(const Type* left, const Type* right) {
        const int warp = warp_of_block(), row = warp / WIDE * WARP_M, column = warp % WIDE * WARP_N;
        if constexpr (SCALAR) {
            const int y = lane_of_warp() / 8, x = lane_of_warp() % 8;
#pragma unroll
            for (int place = 0; place < DEPTH; place += 4) {
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
            for (int place = 0; place < DEPTH; place += Left::STEP) {
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
        const int warp = warp_of_block(), row = warp / WIDE * WARP_M, column = warp % WIDE * WARP_N;
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

    // Which of the warp's rows (or columns) is number ``i`` of lane ``of`` among SPREAD.
    template <int LIE, int PER, int SPREAD>
    DEVICE static int index_of(int of, int i) {
        constexpr int GROUP = PER < 4 ? PER : 4;
        return LIE == ALONG ? i * SPREAD + of : (i / GROUP * SPREAD + of) * GROUP + i % GROUP;
    }

    template <int LIE, int PER, int SPREAD, int ROW_PITCH>
    DEVICE static void load_scalars(float (&values)[PER][4], const Type* from, int first, int of, int place) {
        if constexpr (SCALAR) {
            if constexpr (LIE == ALONG) {
#pragma unroll
                for (int i = 0; i < PER; i++) {
                    const Type* mine = from + (first + i * SPREAD + of) * ROW_PITCH + place;
                    const float2 a = Number::load_pair(mine), b = Number::load_pair(mine + 2);
                    values[i][0] = a.x, values[i][1] = a.y, values[i][2] = b.x, values[i][3] = b.y;
                }
            } else {
                constexpr int GROUP = PER < 4 ? PER : 4;
                static_assert(PER % GROUP == 0 && (GROUP == 4 || GROUP == 2), "neighbours are loaded by 2 or by 4");
#pragma unroll
                for (int k = 0; k < 4; k++)
#pragma unroll
                    for (int i = 0; i < PER; i += 2) {
                        const Type* group = from + (place + k) * ROW_PITCH + first + (i / GROUP * SPREAD + of) * GROUP;
                        const float2 two = Number::load_pair(group + i % GROUP);
                        values[i][k] = two.x, values[i + 1][k] = two.y;
                    }
            }
        }
    }
};

// All ``chunks`` of the sum from both sources, AHEAD of them on their way at a time. At the end the shared memory is free
// again. ``before_left`` is called once the first copies of the right operand are on their way.
template <int AHEAD, class Tile, class LeftSource, class RightSource, class BeforeLeft>
DEVICE void add_chunks(Tile& tile, u8* shared, int chunks, LeftSource left, RightSource right, BeforeLeft&& before_left) {
    typedef typename Tile::Type Type;
    const auto left_of = [&](int stage) { return (Type*)(shared + stage * Tile::STAGE_BYTES); };
    const auto right_of = [&](int stage) { return (Type*)(shared + stage * Tile::STAGE_BYTES + Tile::Left::BYTES); };
    const auto start = [&](int stage) {
        left.copy(left_of(stage));
        right.copy(right_of(stage));
    };
#pragma unroll
    for (int stage = 0; stage < AHEAD - 1; stage++)
        if (stage < chunks) right.copy(right_of(stage));
    before_left();
#pragma unroll
    for (int stage = 0; stage < AHEAD - 1; stage++) {
        if (stage < chunks) left.copy(left_of(stage));
        end_copies();
    }
    int stage = 0, free = AHEAD - 1;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; chunk++) {
        copies_done<AHEAD - 2>();
        sync_block();
        if (chunk + AHEAD - 1 < chunks) start(free);
        end_copies();
        const u8* from = shared + stage * Tile::STAGE_BYTES;
        tile.add((const Type*)from, (const Type*)(from + Tile::Left::BYTES));
        free = stage, stage = stage + 1 == AHEAD ? 0 : stage + 1;
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
    for (int i = 0; i < blocks_of(COUNT, Tile::SIZE); i++) {
        const int index = i * Tile::SIZE + threadIdx.x;
        if (COUNT % Tile::SIZE != 0 && index >= COUNT) break;
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
