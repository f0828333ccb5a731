// A warp's tile of a product, c (M x N) += left (M x k) right (k x N), in every precision.
//
// The operands lie in shared memory as numbers of the precision, each in one of two directions:
//   ALONG    a row holds k:         left is [m][k], right is [n][k]
//   ACROSS   a row holds one k:     left is [k][m], right is [k][n]
// so that a product with either operand transposed needs no copy. A step multiplies Tile::K of k's: 16 in bf16, 8 in
// tf32, both 32 bytes, and 4 in float32, 16 bytes. Rows of shared memory are to be ``row_bytes`` apart, which leaves
// no two lanes that meet in a bank.
//
//   Tile<P, M, N, ALONG, ACROSS> tile;  Left left;  Right right;
//   tile.clear();
//   const u8* a = shared + first_row * A_BYTES + tile.left_lane(A_BYTES);     // what differs from lane to lane, once
//   const u8* b = shared_b + tile.right_lane(B_BYTES);
//   tile.template load_left<A_BYTES>(left, a + bytes to the k's);
//   tile.template load_right<B_BYTES>(right, b + ...);
//   tile.multiply(left, right);
//   tile.at(r, q) is element (tile.row(r), tile.column(q)), r < ROWS, q < COLUMNS; RUN columns at a time are neighbours.
//
// A left operand ALONG whose rows lie anywhere: left_row(i) says the row whose address load i wants of this lane, and
// left_byte() how many bytes along it (the lane's own, k's come on top).
#pragma once
#include "portable.cuh"

constexpr bool ALONG = false, ACROSS = true;

// Bytes from a row of ``numbers`` of precision P to the next, in shared memory.
template <int P, bool DIRECTION>
constexpr int row_bytes(int numbers) {
    // Rows ACROSS are read as 4-byte words of four rows by tf32's lanes: 8 words apart in the banks they do not meet.
    // All else reads 16 bytes of eight rows: an odd number of these from row to row.
    return P == TF32 && DIRECTION == ACROSS ? ((numbers + 7) / 16 * 16 + 8) * 4
                                            : ((numbers * Kept<P>::BYTES + 15) / 16 | 1) * 16;
}

template <int P, int M_, int N_, bool LEFT, bool RIGHT>
struct Tile {
    static_assert(M_ % 16 == 0 && N_ % 8 == 0, "a warp's tile is made of 16 x 8");
    static constexpr int M = M_, N = N_, K = P == BFLOAT16 ? 16 : 8, STEP_BYTES = 32;
    static constexpr int ROWS = M / 8, COLUMNS = N / 4;  // of a lane
    static constexpr int LEFT_LOADS = M / 16;
    // tf32 reads an operand that lies ACROSS in vectors of this many numbers, which go to as many blocks of 8.
    static constexpr int ROW_VECTOR = P == TF32 && LEFT == ACROSS ? (M % 32 == 0 ? 4 : 2) : 1;
    static constexpr int COLUMN_VECTOR = P == TF32 && RIGHT == ACROSS ? (N % 32 == 0 ? 4 : N % 16 == 0 ? 2 : 1) : 1;
    static constexpr int RUN = 2 * COLUMN_VECTOR;
    static constexpr int LANES_OF_COLUMN = 0b11100;  // the bits in which lanes with the same columns differ

    struct Left {
        u32 value[M / 16][4];
    };
    struct Right {
        u32 value[N / 8][2];
    };

    float c[M / 16][N / 8][4];

    DEVICE static int group() { return lane_of_warp() >> 2; }
    DEVICE static int place() { return lane_of_warp() & 3; }
    DEVICE static int row(int r) {
        return r / ROW_VECTOR * (8 * ROW_VECTOR) + group() * ROW_VECTOR + r % ROW_VECTOR;
    }
    DEVICE static int column(int q) { return q / RUN * (8 * COLUMN_VECTOR) + place() * RUN + q % RUN; }
    DEVICE float& at(int r, int q) {
        return c[r / 2][q / RUN * COLUMN_VECTOR + q % COLUMN_VECTOR][2 * (r % 2) + q % RUN / COLUMN_VECTOR];
    }

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < M / 16; i++)
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) c[i][j][e] = 0.f;
    }

    DEVICE static int left_row(int load) { return 16 * load + (lane_of_warp() & 15); }
    DEVICE static int left_byte() { return (lane_of_warp() >> 4) * 16; }

    DEVICE static int left_lane(int bytes) {
        const int lane = lane_of_warp();
        if constexpr (LEFT == ALONG) return left_row(0) * bytes + left_byte();
        if constexpr (P == TF32) return place() * bytes + group() * (4 * ROW_VECTOR);
        return ((lane & 7) + (lane >> 4) * 8) * bytes + (lane >> 3 & 1) * 16;
    }

    DEVICE static int right_lane(int bytes) {
        const int lane = lane_of_warp();
        if constexpr (RIGHT == ALONG) return ((lane & 7) + (lane >> 4) * 8) * bytes + (lane >> 3 & 1) * 16;
        if constexpr (P == TF32) return place() * bytes + group() * (4 * COLUMN_VECTOR);
        return (lane & 15) * bytes + (lane >> 4) * 16;
    }

    DEVICE static void load_left_row(Left& to, int load, const u8* row) { load_matrices(to.value[load], row); }

    template <int BYTES>
    DEVICE static void load_left(Left& to, const u8* from) {
        if constexpr (LEFT == ALONG) {
#pragma unroll
            for (int i = 0; i < M / 16; i++) load_matrices(to.value[i], from + 16 * i * BYTES);
        } else if constexpr (P == TF32) {
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int i = 0; i < M / 8; i += ROW_VECTOR) {
                    u32 vector[ROW_VECTOR];
                    load_vector(vector, from + 4 * half * BYTES + 32 * i);
#pragma unroll
                    for (int v = 0; v < ROW_VECTOR; v++) to.value[(i + v) / 2][2 * half + (i + v) % 2] = vector[v];
                }
        } else {
#pragma unroll
            for (int i = 0; i < M / 16; i++) load_matrices_transposed(to.value[i], from + 32 * i);
        }
    }

    template <int BYTES>
    DEVICE static void load_right(Right& to, const u8* from) {
        if constexpr (P == TF32 && RIGHT == ACROSS) {
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int j = 0; j < N / 8; j += COLUMN_VECTOR) {
                    u32 vector[COLUMN_VECTOR];
                    load_vector(vector, from + 4 * half * BYTES + 32 * j);
#pragma unroll
                    for (int v = 0; v < COLUMN_VECTOR; v++) to.value[j + v][half] = vector[v];
                }
        } else {
#pragma unroll
            for (int j = 0; j + 1 < N / 8; j += 2) {
                u32 four[4];
                if constexpr (RIGHT == ALONG) load_matrices(four, from + 8 * j * BYTES);
                else load_matrices_transposed(four, from + 16 * j);
                to.value[j][0] = four[0], to.value[j][1] = four[1];
                to.value[j + 1][0] = four[2], to.value[j + 1][1] = four[3];
            }
            if constexpr (N % 16 == 8) {
                if constexpr (RIGHT == ALONG) load_matrices(to.value[N / 8 - 1], from + (N - 8) * BYTES);
                else load_matrices_transposed(to.value[N / 8 - 1], from + 2 * (N - 8));
            }
        }
    }

    // Of the k's in the operands the first DEPTH are not zero (which only float32 makes use of).
    template <int DEPTH = K>
    DEVICE void multiply(const Left& left, const Right& right) {
#pragma unroll
        for (int i = 0; i < M / 16; i++)
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                if constexpr (P == BFLOAT16) multiply_bf16(c[i][j], left.value[i], right.value[j][0], right.value[j][1]);
                else multiply_tf32(c[i][j], left.value[i], right.value[j][0], right.value[j][1]);
            }
    }

    template <int COUNT>
    DEVICE static void load_vector(u32 (&to)[COUNT], const u8* from) {
        if constexpr (COUNT == 4) {
            const uint4 value = *(const uint4*)from;
            to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
        } else if constexpr (COUNT == 2) {
            const uint2 value = *(const uint2*)from;
            to[0] = value.x, to[1] = value.y;
        } else {
            to[0] = *(const u32*)from;
        }
    }
};

// float32: 32 lanes of ROWS x COLUMNS numbers each, for a tile of 32 x 64, 64 x 32, 32 x 32, 64 x 16 or 128 x 8.
template <int M_, int N_, bool LEFT, bool RIGHT>
struct Tile<FLOAT32, M_, N_, LEFT, RIGHT> {
    static constexpr int M = M_, N = N_, K = 4, STEP_BYTES = 16;
    static constexpr int COLUMN_LANES = N >= 64 ? 8 : N >= 32 ? (M >= 64 ? 4 : 8) : N >= 16 ? 4 : 2;
    static constexpr int ROW_LANES = 32 / COLUMN_LANES;
    static constexpr int ROWS = M / ROW_LANES, COLUMNS = N / COLUMN_LANES;
    static_assert(ROWS * ROW_LANES == M && COLUMNS * COLUMN_LANES == N && ROWS % 4 == 0 && COLUMNS % 4 == 0,
                  "a warp's tile of float32 is 32 lanes of a multiple of 4 x 4");
    static constexpr int LEFT_LOADS = ROWS;
    static constexpr int RUN = RIGHT == ACROSS ? 4 : 1;

    // Lanes as rows x columns: bit 0 counts columns, then as many bits as rows take, the rest columns again, so that a
    // quarter of a warp, which reads 16 bytes a lane together, names few different rows and few different columns.
    static constexpr int ROW_MASK = (ROW_LANES - 1) << 1;
    static constexpr int LANES_OF_COLUMN = ROW_MASK;

    struct Left {
        float value[ROWS][4];
    };
    struct Right {
        float value[COLUMNS][4];
    };

    float c[ROWS][COLUMNS];

    DEVICE static int row_lane() { return (lane_of_warp() & ROW_MASK) >> 1; }
    DEVICE static int column_lane() {
        const int lane = lane_of_warp();
        return (lane & 1) | lane / (2 * ROW_LANES) * 2;
    }
    DEVICE static int row(int r) {
        return LEFT == ACROSS ? r / 4 * (4 * ROW_LANES) + row_lane() * 4 + r % 4 : r * ROW_LANES + row_lane();
    }
    DEVICE static int column(int q) {
        return RIGHT == ACROSS ? q / 4 * (4 * COLUMN_LANES) + column_lane() * 4 + q % 4 : q * COLUMN_LANES + column_lane();
    }
    DEVICE float& at(int r, int q) { return c[r][q]; }

    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) c[i][j] = 0.f;
    }

    DEVICE static int left_row(int load) { return row(load); }
    DEVICE static int left_byte() { return 0; }
    DEVICE static int left_lane(int bytes) { return LEFT == ALONG ? row_lane() * bytes : row_lane() * 16; }
    DEVICE static int right_lane(int bytes) { return RIGHT == ALONG ? column_lane() * bytes : column_lane() * 16; }

    DEVICE static void load_left_row(Left& to, int load, const u8* row) { load_four(to.value[load], row); }

    template <int BYTES>
    DEVICE static void load_left(Left& to, const u8* from) {
        load<LEFT, BYTES, ROWS, ROW_LANES>(to.value, from);
    }
    template <int BYTES>
    DEVICE static void load_right(Right& to, const u8* from) {
        load<RIGHT, BYTES, COLUMNS, COLUMN_LANES>(to.value, from);
    }

    template <int DEPTH = K>
    DEVICE void multiply(const Left& left, const Right& right) {
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) c[i][j] = fmaf(left.value[i][k], right.value[j][k], c[i][j]);
    }

    template <bool DIRECTION, int BYTES, int COUNT, int LANES>
    DEVICE static void load(float (&to)[COUNT][4], const u8* from) {
        if constexpr (DIRECTION == ALONG) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) load_four(to[i], from + i * LANES * BYTES);
        } else {
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
                for (int i = 0; i < COUNT; i += 4) {
                    float four[4];
                    load_four(four, from + k * BYTES + i * LANES * 4);
#pragma unroll
                    for (int v = 0; v < 4; v++) to[i + v][k] = four[v];
                }
        }
    }

    DEVICE static void load_four(float (&to)[4], const u8* from) {
        const float4 value = *(const float4*)from;
        to[0] = value.x, to[1] = value.y, to[2] = value.z, to[3] = value.w;
    }
};

// The sum over the lanes that hold the same columns, in every one of them.
template <class T>
DEVICE float sum_of_column(float value) {
#pragma unroll
    for (int bit = 1; bit < 32; bit *= 2)
        if (T::LANES_OF_COLUMN & bit) value += shuffle_xor(value, bit);
    return value;
}

// Four lanes side by side hold 4 x 4 numbers, a lane a column: afterwards a lane holds a row. Lane place() gets the
// number ``place()`` of each lane, in the lanes' order.
DEVICE void transpose_4(u32 (&value)[4]) {
    const int lane = lane_of_warp();
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if ((i & bit) == 0) {
                const bool upper = lane & bit;
                const u32 got = shuffle_xor(upper ? value[i] : value[i + bit], bit);
                if (upper) value[i] = got;
                else value[i + bit] = got;
            }
}
