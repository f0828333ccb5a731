// The gradient of what B gives, as the backward kernels of a network's first block read it: dY of B's outputs before
// its pool, out of the gradient after it and where the maxima were.
#pragma once
#include "stem.cuh"

// In tf32 the lowest bits of a number are free, and the place of the maximum is kept there: a square has one number
// then instead of four, of which three are zeros.
constexpr bool PLACED = PRECISION == TF32 && B_POOL;

// Such a number at ``place``.
DEVICE u32 at_place(u32 placed, int place) { return (placed & 3u) == (u32)place ? placed : 0u; }

// A piece of a pixel's gradients, and the code of each: the place of the maximum in its square, plus 4 where relu
// lets nothing through.
struct Piece {
    u32 numbers[4], codes[PIECE / 4];

    DEVICE Piece() : numbers{}, codes{} {}
    DEVICE Piece(const Number::Type* RESTRICT dy, const u8* RESTRICT where, long long at) {
        const uint4 four = *(const uint4*)(dy + at);
        numbers[0] = four.x, numbers[1] = four.y, numbers[2] = four.z, numbers[3] = four.w;
        if constexpr (PIECE == 8) {
            const uint2 two = *(const uint2*)(where + at);
            codes[0] = two.x, codes[1] = two.y;
        } else {
            codes[0] = *(const u32*)(where + at);
        }
    }

    // Those numbers whose byte in ``refused`` has not its highest bit set; zeros for the others.
    DEVICE uint4 without(const u32 (&refused)[PIECE / 4]) const {
        u32 kept[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (PIECE == 8) kept[i] = numbers[i] & ~spread_signs(refused[i / 2], i % 2);
            else kept[i] = refused[0] >> (8 * i + 7) & 1u ? 0u : numbers[i];
        }
        return uint4{kept[0], kept[1], kept[2], kept[3]};
    }
    // What belongs to ``place`` of the square.
    DEVICE uint4 at_place(int place) const {
        u32 refused[PIECE / 4];
#pragma unroll
        for (int i = 0; i < PIECE / 4; i++) refused[i] = (codes[i] ^ 0x01010101u * place) + 0x7f7f7f7fu;  // 0 has no sign
        return without(refused);
    }
    DEVICE uint4 alive() const {
        u32 refused[PIECE / 4];
#pragma unroll
        for (int i = 0; i < PIECE / 4; i++) refused[i] = codes[i] << 5;
        return without(refused);
    }
    // Of 32 bits: with their places.
    DEVICE uint4 placed() const {
        const uint4 four = alive();
        return uint4{four.x | (codes[0] & 3u), four.y | (codes[0] >> 8 & 3u), four.z | (codes[0] >> 16 & 3u), four.w | (codes[0] >> 24 & 3u)};
    }
};

DEVICE void add_piece(float (&sum)[PIECE], uint4 piece) {
    const u32 words[4] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
    for (int i = 0; i < PIECE; i++) {
        if constexpr (PIECE == 8) sum[i] += i % 2 ? high_half(words[i / 2]) : low_half(words[i / 2]);
        else sum[i] += float_of(words[i]);
    }
}

constexpr int B_PIECES = pieces_of(B_CHANNELS);

// What a band reads of the gradient after B's pool: at most ROWS_ rows of it, of which the image may lack some. They
// follow each other in memory. Where they are STAGED, they are copied as they are into shared memory while the band before
// is at work; there are then no loads to wait for.
template <int ROWS_>
struct Rows {
    static constexpr int ROWS = ROWS_ < B_HEIGHT ? ROWS_ : B_HEIGHT, ROW = B_WIDTH * B_CHANNELS;
    static constexpr int NUMBER_BYTES = ROWS * ROW * Number::BYTES;
    static constexpr int BYTES = STAGED ? NUMBER_BYTES + blocks_of(ROWS * ROW, 16) * 16 : 0;
    int first;  // row of the image, of which the pointers are
    const Number::Type* dy;
    const u8* where;

    // ``row``: the first one, which may be above the image.
    DEVICE Rows(const u8* staged, const Number::Type* dy_, const u8* where_, int image, int row) : first(row > 0 ? row : 0) {
        const long long at = ((long long)image * B_HEIGHT + first) * ROW;
        dy = STAGED ? (const Number::Type*)staged : dy_ + at;
        where = STAGED ? staged + NUMBER_BYTES : where_ + at;
    }
    // A piece from a pixel that the image has.
    DEVICE Piece piece(int p, int q, int number) const { return Piece(dy, where, ((p - first) * B_WIDTH + q) * B_CHANNELS + number * PIECE); }

    // They are on their way once this has been called, of which end_copies makes a group.
    DEVICE static void fetch(u8* to, const Number::Type* dy, const u8* where, int image, int row, int thread) {
        if (!STAGED) return;
        const int from = row > 0 ? row : 0, numbers = (min(row + ROWS_, B_HEIGHT) - from) * ROW;
        const long long at = ((long long)image * B_HEIGHT + from) * ROW;
#pragma unroll 1
        for (int i = thread * PIECE; i < numbers; i += THREADS * PIECE) copy_16(to + i * Number::BYTES, dy + at + i);
        constexpr int AT_ONCE = ROW % 16 == 0 ? 16 : 4;
#pragma unroll 1
        for (int i = thread * AT_ONCE; i < numbers; i += THREADS * AT_ONCE) {
            if (AT_ONCE == 16) copy_16(to + NUMBER_BYTES + i, where + at + i);
            else copy_4(to + NUMBER_BYTES + i, where + at + i);
        }
    }
};
