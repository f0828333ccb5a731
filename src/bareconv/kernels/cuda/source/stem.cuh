// What the kernels of a network's first block share: two convolutions, A on the pixels and B on what A makes of them,
// each followed by relu and perhaps by a max pool of 2 x 2. Everything between the pixels and the end of B stays in
// shared memory.
//
// Outputs are computed by *squares* of 2 x 2, eight squares at a time: a matrix row of 16 bytes is a piece of one
// pixel's channels, and a matrix has the pixels at the same place of eight squares. So the four values that a pool
// compares lie in one thread's registers, and a matrix that is loaded once serves all taps of the four outputs
// that read those pixels: (R + 1) (S + 1) loads instead of 4 R S.
//
// A convolution of few channels would waste most of each piece. So the pixels are spread first: a *line* holds the
// A_KERNEL_W pixels from its place to the right, and A is a convolution of A_KERNEL_H x 1 over lines.
//
// A *band* is some rows of squares of one image: what a team of WARPS warps does at a time.
#pragma once
#include "portable.cuh"

typedef Kept<PRECISION> Number;

constexpr int even(int count) { return (count + 1) / 2 * 2; }
constexpr int larger(int a, int b) { return a > b ? a : b; }

constexpr int PIECE = 16 / Number::BYTES;  // numbers of a piece
constexpr int pieces_of(int numbers) { return blocks_of(numbers, PIECE); }
// An odd number of pieces, so that eight pixels in a row lie in different banks.
constexpr int pixel_bytes(int numbers) { return (pieces_of(numbers) | 1) * 16; }
// So many that four pixels in a row do, of each of which eight lanes read 4, 8 or 16 bytes that follow each other.
constexpr int vector_pixel_bytes(int numbers) { return ((pieces_of(numbers) + 1) / 4 * 4 + 2) * 16; }

// Sizes: A's outputs, what is kept of them, the same of B. A pool drops an odd last row or column.
constexpr int A_TAKES = A_POOL ? 2 : 1, B_TAKES = B_POOL ? 2 : 1;
constexpr int A_HEIGHT = (HEIGHT + 2 * A_PADDING_H - A_KERNEL_H + 1) / A_TAKES;
constexpr int A_WIDTH = (WIDTH + 2 * A_PADDING_W - A_KERNEL_W + 1) / A_TAKES;
constexpr int B_HEIGHT = (A_HEIGHT + 2 * B_PADDING_H - B_KERNEL_H + 1) / B_TAKES;
constexpr int B_WIDTH = (A_WIDTH + 2 * B_PADDING_W - B_KERNEL_W + 1) / B_TAKES;
constexpr int A_CHANNELS = padded(A_FILTERS), B_CHANNELS = padded(B_FILTERS);
constexpr int A_TAPS = A_KERNEL_H * A_KERNEL_W, B_TAPS = B_KERNEL_H * B_KERNEL_W;
constexpr int LINE_NUMBERS = A_KERNEL_W * CHANNELS, LINE_PIECES = pieces_of(LINE_NUMBERS);
constexpr int LINE_ROWS = LINE_PIECES * PIECE;  // of A's weights, for one row of its taps
constexpr int IMAGE_BYTES = HEIGHT * WIDTH * CHANNELS;
constexpr int PIXELS_BYTES = blocks_of(IMAGE_BYTES, 16) * 16;
constexpr int THREADS = WARPS * 32;  // of a team

// Squares in a row: of A's outputs, of B's.
constexpr int A_SQUARES = A_POOL ? A_WIDTH : blocks_of(A_WIDTH, 2);
constexpr int B_SQUARES = B_POOL ? B_WIDTH : blocks_of(B_WIDTH, 2);
constexpr int B_SQUARE_ROWS = B_POOL ? B_HEIGHT : blocks_of(B_HEIGHT, 2);

// Pixels in shared memory, in four quarters: those of even and of odd rows and columns apart. Then the pixels at the
// same place of neighbouring squares are neighbours.
template <int ROWS_, int COLUMNS_, int NUMBERS, int PIXEL_ = pixel_bytes(NUMBERS)>
struct Picture {
    static constexpr int ROWS = even(ROWS_), COLUMNS = even(COLUMNS_), PIECES = pieces_of(NUMBERS);
    static constexpr int PIXEL = PIXEL_, ROW = COLUMNS / 2 * PIXEL, QUARTER = ROWS / 2 * ROW;
    static constexpr int BYTES = 4 * QUARTER;
    DEVICE static constexpr int at(int row, int column) {
        return ((row & 1) * 2 + (column & 1)) * QUARTER + (row >> 1) * ROW + (column >> 1) * PIXEL;
    }
};

// The warps that work on a band together.
struct Team {
    int number, thread, warp, lane;
    // What is 0 anyway must be a constant, or it takes a register.
    DEVICE Team() : number(TEAMS == 1 ? 0 : threadIdx.x / THREADS), thread(threadIdx.x % THREADS), warp(thread / 32), lane(thread & 31) {}
    DEVICE void sync() const {
        if (TEAMS == 1) sync_block();
        else sync_some(1 + number, THREADS);
    }
};

DEVICE void clear(u8* to, int bytes, int thread, int threads) {
    for (int i = thread * 16; i < bytes; i += threads * 16) *(uint4*)(to + i) = uint4{0u, 0u, 0u, 0u};
}

// Sums of several warps to one: of those with the same ``share``, which have the same elements, the first (``turn`` 0 of
// TURNS) gets them all, added in order. All of the block's threads must call it.
template <int TURNS, int COUNT>
DEVICE void sum_over_turns(float (&sum)[COUNT], u8* shared, int share, int turn) {
    float* mine = (float*)shared + share * COUNT * 32 + (threadIdx.x & 31);
#pragma unroll 1
    for (int other = 1; other < TURNS; other++) {
        sync_block();
        if (turn == other) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) mine[i * 32] = sum[i];
        }
        sync_block();
        if (turn == 0) {
#pragma unroll
            for (int i = 0; i < COUNT; i++) sum[i] += mine[i * 32];
        }
    }
}

// ---- Matrices ----

DEVICE void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if (PRECISION == TF32) multiply_tf32(sum, a, b0, b1);
    else multiply_bf16(sum, a, b0, b1);
}

// A product's contraction runs over (tap, piece), two at a time. Of CHUNK pieces a pixel:
template <int TAPS, int CHUNK>
struct Steps {
    static constexpr int COUNT = blocks_of(TAPS * CHUNK, 2);
    // Of the first or second half of a step; the second of the last may not exist.
    DEVICE static constexpr bool exists(int step, int half) { return 2 * step + half < TAPS * CHUNK; }
    DEVICE static constexpr int tap(int step, int half) { return exists(step, half) ? (2 * step + half) / CHUNK : 0; }
    DEVICE static constexpr int piece(int step, int half) { return exists(step, half) ? (2 * step + half) % CHUNK : 0; }
};

// How many pieces of a pixel are one step's: two, or one of two taps.
constexpr int chunk_of(int pieces) { return pieces % 2 ? 1 : 2; }

// What a lane adds to a square's address for convolve: four matrices are loaded at once.
template <class From, int CHUNK>
DEVICE int matrix_offset(int lane) {
    const int matrix = lane >> 3;
    return CHUNK == 2 ? (matrix & 1) * 16 + (matrix >> 1) * From::QUARTER : matrix * From::QUARTER;
}

// Eight squares' outputs, sum[set][place in the square][tile of 16 filters] with filters as rows and squares as columns,
// += weight * what the squares read. The sum is that over sets, of which there may be two so that a product need not wait
// for the one before. ``square``: of the lane's row. The weights are in registers, all PIECES in the order of Steps.
template <class From, int R, int S, int PIECES, int SETS, int TILES, int STEPS>
DEVICE void convolve(float (&sum)[SETS][4][TILES][4], const u8* square, const u32 (&weight)[STEPS][TILES][4]) {
    constexpr int CHUNK = chunk_of(PIECES);
    typedef Steps<R * S, CHUNK> Order;
    static_assert(STEPS == Order::COUNT * (PIECES / CHUNK), "weights of all steps");
#pragma unroll
    for (int chunk = 0; chunk < PIECES / CHUNK; chunk++) {
        if constexpr (CHUNK == 2) {  // row by row of pixels, each for the two rows of outputs that read it
#pragma unroll
            for (int y = 0; y <= R; y++) {
                u32 row[even(S + 1) / 2][4];
#pragma unroll
                for (int x = 0; x < even(S + 1); x += 2) load_matrices(row[x / 2], square + From::at(y, x) + chunk * 32);
#pragma unroll
                for (int s = 0; s < S; s++)
#pragma unroll
                    for (int place = 0; place < 4; place++) {
                        const int r = y - place / 2, x = s + place % 2;
                        if (r < 0 || r >= R) continue;
#pragma unroll
                        for (int tile = 0; tile < TILES; tile++)
                            multiply(sum[(r + s) % SETS][place][tile], weight[chunk * R * S + r * S + s][tile],
                                     row[x / 2][x % 2 * 2], row[x / 2][x % 2 * 2 + 1]);
                    }
            }
        } else {
            u32 patch[even(R + 1)][even(S + 1)];
#pragma unroll
            for (int i = 0; i < even(R + 1) * even(S + 1); i += 4) {
                const int y = i / 2 / even(S + 1) * 2, x = i / 2 % even(S + 1);
                u32 four[4];
                load_matrices(four, square + From::at(y, x) + chunk * 16);
                patch[y][x] = four[0], patch[y][x + 1] = four[1], patch[y + 1][x] = four[2], patch[y + 1][x + 1] = four[3];
            }
#pragma unroll
            for (int step = 0; step < Order::COUNT; step++)
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    const int first = Order::tap(step, 0), second = Order::tap(step, 1);
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++)
                        multiply(sum[step % SETS][place][tile], weight[chunk * Order::COUNT + step][tile],
                                 patch[first / S + place / 2][first % S + place % 2],
                                 patch[second / S + place / 2][second % S + place % 2]);
                }
        }
    }
}

// Where a filter's column lies among 8 COUNT of them, so that a lane that has columns 2 t and 2 t + 1 (t = lane % 4) of
// each eight has 2 COUNT filters that follow each other: those from 2 COUNT t on.
template <int COUNT>
DEVICE constexpr int column_of(int filter) {
    const int within = filter % (8 * COUNT), pair = within / 2;
    return filter - within + pair % COUNT * 8 + pair / COUNT * 2 + filter % 2;
}

// A product's right operand out of rows of PITCH bytes: eight columns, PIECE rows from ``first`` and from ``second``.
template <int PITCH>
DEVICE void load_right(u32 (&b)[2], const u8* rows, int first, int second, int column, int lane) {
    if (PRECISION == TF32) {
        const u8* from = rows + (lane & 3) * PITCH + (column + (lane >> 2)) * 4;
        b[0] = *(const u32*)(from + first * PITCH), b[1] = *(const u32*)(from + second * PITCH);
    } else {
        load_matrices_transposed(b, rows + ((lane & 8 ? second : first) + (lane & 7)) * PITCH + column * 2);
    }
}

// The left operand, likewise: sixteen columns become rows.
template <int PITCH>
DEVICE void load_left(u32 (&a)[4], const u8* rows, int first, int second, int column, int lane) {
    if (PRECISION == TF32) {
        const u8* from = rows + (lane & 3) * PITCH + (column + (lane >> 2)) * 4;
        a[0] = *(const u32*)(from + first * PITCH), a[1] = *(const u32*)(from + first * PITCH + 32);
        a[2] = *(const u32*)(from + second * PITCH), a[3] = *(const u32*)(from + second * PITCH + 32);
    } else {
        load_matrices_transposed(a, rows + ((lane & 16 ? second : first) + (lane & 7)) * PITCH + (column + (lane & 8)) * 2);
    }
}

// Weights [row][FILTERS] into shared memory, rows of pixel_bytes(COLUMNS) with zeros in the columns that are too many,
// columns where column_of<COUNT> has them. ``row_of(row)``: the row to copy, below 0 for zeros. Before they are there:
// copies_done and a barrier.
template <int COUNT, int FILTERS, int COLUMNS, class RowOf>
DEVICE void stage_weights(u8* to, const Number::Type* from, int rows, int thread, int threads, RowOf row_of) {
    constexpr int WORDS = COLUMNS * Number::BYTES / 4, NUMBERS = 4 / Number::BYTES;
    for (int i = thread; i < rows * WORDS; i += threads) {
        const int row = i / WORDS, column = i % WORDS * NUMBERS, source = row_of(row);
        const bool there = source >= 0 && column < FILTERS;
        copy_4(to + row * pixel_bytes(COLUMNS) + column_of<COUNT>(column) * Number::BYTES,
               from + (there ? source * FILTERS + column : 0), there);
    }
}

// The row of A's weights, [tap][padded channels], that row ``row`` of [row of taps][LINE_ROWS] is; -1: none.
DEVICE int row_of_line(int row) {
    const int number = row % LINE_ROWS, tap = row / LINE_ROWS * A_KERNEL_W + number / CHANNELS;
    return number < LINE_NUMBERS ? tap * padded(CHANNELS) + number % CHANNELS : -1;
}

// As many tiles at a time, of at most MOST, as divide all of them.
constexpr int tiles_at_once(int tiles, int most) { return tiles % most == 0 ? most : tiles_at_once(tiles, most / 2); }

template <int WORDS>
DEVICE void store_words(void* to, const u32 (&words)[WORDS]) {
    if constexpr (WORDS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < WORDS; i += 4) ((uint4*)to)[i / 4] = uint4{words[i], words[i + 1], words[i + 2], words[i + 3]};
    } else if constexpr (WORDS == 2) {
        *(uint2*)to = uint2{words[0], words[1]};
    } else {
#pragma unroll
        for (int i = 0; i < WORDS; i++) ((u32*)to)[i] = words[i];
    }
}

// A number as it is kept in 32 bits.
DEVICE u32 word_of(float value) { return bits_of(PRECISION == TF32 ? round_tf32(value) : value); }

template <int WORDS>
DEVICE void load_words(u32 (&words)[WORDS], const void* from) {
    static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4, "as one load has them");
    if constexpr (WORDS == 4) {
        const uint4 four = *(const uint4*)from;
        words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
    } else if constexpr (WORDS == 2) {
        const uint2 two = *(const uint2*)from;
        words[0] = two.x, words[1] = two.y;
    } else {
        words[0] = *(const u32*)from;
    }
}

// Numbers that follow each other.
template <int COUNT>
DEVICE void store_numbers(void* to, const float (&values)[COUNT]) {
    u32 words[COUNT * Number::BYTES / 4];
#pragma unroll
    for (int i = 0; i < COUNT; i += 4 / Number::BYTES) {
        if constexpr (Number::BYTES == 2) words[i / 2] = pack(values[i], values[i + 1]);
        else words[i] = word_of(values[i]);
    }
    store_words(to, words);
}


// ---- The pixels, and A ----

// The pixels of the image at ``place``, as they are, on their way into shared memory.
DEVICE void fetch_image(u8* to, const u8* pixels, int place, int thread) {
    const u8* from = pixels + (long long)place * IMAGE_BYTES;
    if (IMAGE_BYTES % 16 == 0) {
        for (int i = thread * 16; i < IMAGE_BYTES; i += THREADS * 16) copy_16(to + i, from + i);
    } else if (IMAGE_BYTES % 4 == 0) {
        for (int i = thread * 4; i < IMAGE_BYTES; i += THREADS * 4) copy_4(to + i, from + i);
    } else {
        for (int i = thread; i < IMAGE_BYTES; i += THREADS) to[i] = from[i];
    }
}

// Lines of a band: local row 0 is row ``first_row`` of the image, column 0 is A_PADDING_W to its left.
template <class Lines>
DEVICE void spread_pixels(u8* lines, const u8* image, int first_row, int thread) {
    for (int i = thread; i < Lines::ROWS * Lines::COLUMNS; i += THREADS) {
        const int row = i / Lines::COLUMNS, column = i % Lines::COLUMNS, h = first_row + row;
#pragma unroll
        for (int piece = 0; piece < LINE_PIECES; piece++) {
            float values[PIECE];
#pragma unroll
            for (int e = 0; e < PIECE; e++) {
                const int number = piece * PIECE + e, w = column + number / CHANNELS - A_PADDING_W;
                values[e] = 0.f;
                if (number < LINE_NUMBERS && h >= 0 && h < HEIGHT && w >= 0 && w < WIDTH) {
                    const float pixel = image[(h * WIDTH + w) * CHANNELS + number % CHANNELS];
                    values[e] = (pixel - (float)(MEAN)) * (float)(1.0 / (STD));
                }
            }
            store_numbers(lines + Lines::at(row, column) + piece * 16, values);
        }
    }
}

// What a band of B's squares reads: rows of A's results, and of lines for them.
template <int SQUARE_ROWS, int PIXEL = pixel_bytes(A_CHANNELS)>
struct BandOfB {
    static constexpr int ROWS = 2 * SQUARE_ROWS + B_KERNEL_H - 1;
    static constexpr int A_SQUARE_ROWS = A_POOL ? ROWS : blocks_of(ROWS, 2);
    typedef Picture<ROWS, 2 * B_SQUARES + B_KERNEL_W - 1, A_CHANNELS, PIXEL> Activation;
    typedef Picture<2 * A_SQUARE_ROWS + A_KERNEL_H - 1, 2 * A_SQUARES, LINE_NUMBERS> Lines;
    // Rows of squares before it -> the row of A's results, and of the image, that local row 0 is.
    DEVICE static int first_row(int squares) { return 2 * squares - B_PADDING_H; }
    DEVICE static int first_pixel_row(int squares) { return A_TAKES * first_row(squares) - A_PADDING_H; }
};

constexpr int A_CHUNK = chunk_of(LINE_PIECES);
typedef Steps<A_KERNEL_H, A_CHUNK> OrderOfA;
constexpr int A_STEPS = OrderOfA::COUNT * (LINE_PIECES / A_CHUNK);
constexpr int A_COLUMNS = blocks_of(A_CHANNELS, 16) * 16;  // of its weights in shared memory
constexpr int A_WEIGHT_BYTES = A_KERNEL_H * LINE_ROWS * pixel_bytes(A_COLUMNS);

// The first row of A's weights for half a step.
DEVICE constexpr int row_of_a(int step, int half) {
    const int within = step % OrderOfA::COUNT, chunk = step / OrderOfA::COUNT;
    return OrderOfA::tap(within, half) * LINE_ROWS + (chunk * A_CHUNK + OrderOfA::piece(within, half)) * PIECE;
}

// A, relu and pool of a band, 8 COUNT filters at a time: lines -> B's input, whose border must hold zeros already.
// Pixels are rows here, so that a lane has filters that follow each other: a tile is 8 squares' outputs in a column of the
// squares, upper ones first. ``weights``: as stage_weights<COUNT> leaves them. ``first_row``: of A's results, the one that
// local row 0 is.
template <class Band, int COUNT>
DEVICE void first_activation(u8* to, const u8* lines, const u8* weights, const float* RESTRICT bias, int first_row, const Team& team) {
    typedef typename Band::Lines Lines;
    typedef typename Band::Activation To;
    constexpr int SQUARES = Band::A_SQUARE_ROWS * A_SQUARES;
    const int lane = team.lane, matrix = lane >> 3;
    // A left operand's matrices: outputs of the upper row, of the lower row, and both for the second half of the step,
    // which is the next tap below, or the next piece. From an odd row on, what follows is in other quarters.
    const int from_even = A_CHUNK == 1 ? Lines::at(matrix == 0 ? 0 : matrix == 3 ? 2 : 1, 0) : Lines::at(matrix & 1, 0) + (matrix >> 1) * 16;
    const int from_odd = A_CHUNK == 1 ? 0 : Lines::at(1 + (matrix & 1), 0) - Lines::at(1, 0) + (matrix >> 1) * 16;
#pragma unroll 1
    for (int first = 0; first < A_CHANNELS; first += 8 * COUNT) {
        u32 weight[A_STEPS][COUNT][2];
#pragma unroll
        for (int i = 0; i < A_STEPS * COUNT; i++) {
            const int step = i / COUNT, tile = i % COUNT;
            load_right<pixel_bytes(A_COLUMNS)>(weight[step][tile], weights, row_of_a(step, 0), row_of_a(step, 1), first + tile * 8, lane);
            if (!OrderOfA::exists(step % OrderOfA::COUNT, 1)) weight[step][tile][1] = 0u;
        }
        const int filter = first + (lane & 3) * 2 * COUNT;
        float added[2 * COUNT];
#pragma unroll
        for (int i = 0; i < 2 * COUNT; i++) added[i] = filter + i < A_FILTERS ? bias[filter + i] : 0.f;
        for (int group = team.warp; group < blocks_of(SQUARES, 8); group += WARPS) {
            const u8* square = lines + min(group * 8 + (lane & 7), SQUARES - 1) * Lines::PIXEL;
            float sum[2][COUNT][4];
#pragma unroll
            for (int i = 0; i < 2 * COUNT * 4; i++) sum[i / 4 / COUNT][i / 4 % COUNT][i % 4] = 0.f;
#pragma unroll
            for (int i = 0; i < A_STEPS * 2; i++) {
                const int step = i / 2, column = i % 2, tap = OrderOfA::tap(step % OrderOfA::COUNT, 0);
                u32 pixels[4];
                load_matrices(pixels, square + (tap % 2 ? from_odd : from_even) + Lines::at(tap, column) + step / OrderOfA::COUNT * A_CHUNK * 16);
#pragma unroll
                for (int tile = 0; tile < COUNT; tile++) multiply(sum[column][tile], pixels, weight[step][tile][0], weight[step][tile][1]);
            }
            const int mine = group * 8 + (lane >> 2), row = mine / A_SQUARES, column = mine % A_SQUARES;
            if (mine < SQUARES) {
#pragma unroll
                for (int at = 0; at < (A_POOL ? 1 : 4); at++) {
                    const int y = A_POOL ? row : 2 * row + at / 2, x = A_POOL ? column : 2 * column + at % 2;
                    const bool inside = first_row + y >= 0 && first_row + y < A_HEIGHT;
                    float values[2 * COUNT];
#pragma unroll
                    for (int i = 0; i < 2 * COUNT; i++) {
                        const int tile = i / 2, e = i % 2;
                        float value = sum[at % 2][tile][at / 2 * 2 + e];
                        if (A_POOL) {
                            value = fmaxf(value, sum[1][tile][e]);
                            value = fmaxf(value, fmaxf(sum[0][tile][2 + e], sum[1][tile][2 + e]));
                        }
                        values[i] = inside ? relu(value + added[i]) : 0.f;
                    }
                    if (x < A_WIDTH && x + B_PADDING_W < To::COLUMNS && y < To::ROWS)
                        store_numbers(to + To::at(y, x + B_PADDING_W) + filter * Number::BYTES, values);
                }
            }
        }
    }
}
