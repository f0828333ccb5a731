// The first block of a network, forward: uint8 images -> A, relu, perhaps a pool -> B, relu, perhaps a pool.
//
//   y[image][p][q][k], and where each of them comes from: the place of the maximum in its square, row by row, the first
//   of several; plus 4 where it is not above 0, so that relu lets no gradient through. Without B's pool: 0 or 4.
//
// stem.cuh says how. B's weights stay in registers: a warp has 16 B_TILES of the filters and every
// (WARPS / SLICES)th eight squares of a band. BANDS of an image, of BAND_ROWS rows of squares.
#include "stem.cuh"

typedef BandOfB<BAND_ROWS> Band;
typedef Band::Activation Activation;
typedef Band::Lines Lines;

constexpr int A_COUNT = tiles_at_once(A_CHANNELS / 8, 4);
constexpr int CHUNK = chunk_of(Activation::PIECES);
typedef Steps<B_TAPS, CHUNK> Order;
constexpr int STEPS = Order::COUNT * (Activation::PIECES / CHUNK);
constexpr int COUNT = 2 * B_TILES;  // eights of filters
constexpr int SETS = 2 / B_TILES;   // of sums: a product of few filters need not wait for the one before
constexpr int B_COLUMNS = blocks_of(B_CHANNELS, 8 * COUNT) * 8 * COUNT, SLICES = B_COLUMNS / (8 * COUNT);
constexpr int NUMBER_WORDS = COUNT * Number::BYTES / 2;  // of the filters that a lane has of a square
constexpr int B_WEIGHT_BYTES = B_TAPS * A_CHANNELS * pixel_bytes(B_COLUMNS);

// Shared memory. B's weights are on their way through it where the activation will be.
constexpr int AT_PIXELS = 0, AT_WEIGHTS = AT_PIXELS + PIXELS_BYTES, AT_LINES = AT_WEIGHTS + A_WEIGHT_BYTES;
constexpr int AT_ACTIVATION = AT_LINES + Lines::BYTES;
static_assert(AT_ACTIVATION + larger(Activation::BYTES, B_WEIGHT_BYTES) == SHARED_BYTES, "as the host has it");
static_assert(WARPS % SLICES == 0, "every warp has a slice of the filters");

// An 8 x 8 matrix of numbers as they are kept, transposed in registers; those of 32 bits half by half.
template <int BYTES>
DEVICE void transpose_pair(u32* words, float first, float second) {
    if constexpr (BYTES == 2) {
        words[0] = transpose_matrix(pack(first, second));
    } else {
        const u32 a = word_of(first), b = word_of(second);
        const u32 low = transpose_matrix((a & 0xffffu) | b << 16), high = transpose_matrix(a >> 16 | (b & 0xffff0000u));
        words[0] = (low & 0xffffu) | high << 16, words[1] = low >> 16 | (high & 0xffff0000u);
    }
}

// Of a warp's eight squares, at ``place`` or, with a pool, at all places: what is kept and its code. Filters are rows and
// squares columns; transposed, a lane has the filters from 2 COUNT (lane % 4) on of square lane / 4.
DEVICE void finish(u32 (&numbers)[NUMBER_WORDS], u32 (&codes)[COUNT], const float (&sum)[4][B_TILES][4], const float (&added)[COUNT], int place) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float values[2];
        u32 pair[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int tile = i / 2, at = i % 2 * 2 + e;
            float value = sum[place][tile][at];
            u32 code = 0;
            if (B_POOL) {
                const float right = sum[1][tile][at], below = sum[2][tile][at], last = sum[3][tile][at];
                code = right > value ? 1 : 0;
                value = fmaxf(value, right);
                const u32 lower = last > below ? 3 : 2;
                const float most = fmaxf(below, last);
                code = most > value ? lower : code;
                value = fmaxf(value, most);
            }
            value += added[i];
            pair[e] = value > 0.f ? code : code + 4;
            values[e] = relu(value);
        }
        transpose_pair<Number::BYTES>(numbers + i * Number::BYTES / 2, values[0], values[1]);
        codes[i] = transpose_matrix(pair[0] | pair[1] << 16);
    }
}

KERNEL(WARPS * 32, BLOCKS)
stem_forward(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control,
             const Number::Type* RESTRICT weight_a, const float* RESTRICT bias_a, const Number::Type* RESTRICT weight_b,
             const float* RESTRICT bias_b, Number::Type* RESTRICT y, u8* RESTRICT where) {
    SHARED_MEMORY(shared);
    u8 *weights = shared + AT_WEIGHTS, *lines = shared + AT_LINES, *activation = shared + AT_ACTIVATION;
    const Team team;
    const int lane = team.lane, slice = team.warp % SLICES;
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    const int items = step.images * BANDS;
    if (blockIdx.x >= items) return;
    stage_weights<A_COUNT, A_CHANNELS, A_COLUMNS>(weights, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
    stage_weights<COUNT, B_CHANNELS, B_COLUMNS>(activation, weight_b, B_TAPS * A_CHANNELS, team.thread, THREADS, [](int row) { return row; });
    fetch_image(shared + AT_PIXELS, pixels, place_of(blockIdx.x / BANDS, order, &step), team.thread);
    end_copies();
    copies_done();
    sync_block();
    u32 weight[STEPS][B_TILES][4];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int within = i % Order::COUNT, chunk = i / Order::COUNT * CHUNK;
        const int first = Order::tap(within, 0) * A_CHANNELS + (chunk + Order::piece(within, 0)) * PIECE;
        const int second = Order::tap(within, 1) * A_CHANNELS + (chunk + Order::piece(within, 1)) * PIECE;
#pragma unroll
        for (int tile = 0; tile < B_TILES; tile++) {
            load_left<pixel_bytes(B_COLUMNS)>(weight[i][tile], activation, first, second, slice * 8 * COUNT + tile * 16, lane);
            if (!Order::exists(within, 1)) weight[i][tile][2] = weight[i][tile][3] = 0u;
        }
    }
    float added[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const int row = lane >> 2, filter = slice * 8 * COUNT + row / 2 * 2 * COUNT + 2 * i + row % 2;
        added[i] = filter < B_FILTERS ? bias_b[filter] : 0.f;
    }
    sync_block();
    clear(activation, Activation::BYTES, team.thread, THREADS);
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS, next = item + gridDim.x;
        const int next_place = next < items ? place_of(next / BANDS, order, &step) : 0;  // is here by the time of the copy
        copies_done();
        sync_block();
        spread_pixels<Lines>(lines, shared + AT_PIXELS, Band::first_pixel_row(before), team.thread);
        sync_block();
        first_activation<Band, A_COUNT>(activation, lines, weights, bias_a, Band::first_row(before), team);
        sync_block();
        if (next < items) {
            fetch_image(shared + AT_PIXELS, pixels, next_place, team.thread);
            end_copies();
        }
        const int squares = min(BAND_ROWS, B_SQUARE_ROWS - before) * B_SQUARES;
#pragma unroll 1
        for (int group = team.warp / SLICES; group < blocks_of(squares, 8); group += WARPS / SLICES) {
            const int read = min(group * 8 + (lane & 7), squares - 1);
            const u8* square = activation + read / B_SQUARES * Activation::ROW + read % B_SQUARES * Activation::PIXEL;
            float sum[SETS][4][B_TILES][4];
#pragma unroll
            for (int i = 0; i < SETS * 16 * B_TILES; i++) sum[i / (16 * B_TILES)][i / (4 * B_TILES) % 4][i / 4 % B_TILES][i % 4] = 0.f;
            convolve<Activation, B_KERNEL_H, B_KERNEL_W, Activation::PIECES>(sum, square + matrix_offset<Activation, CHUNK>(lane), weight);
            if constexpr (SETS == 2) {
#pragma unroll
                for (int i = 0; i < 16; i++) sum[0][i / 4][0][i % 4] += sum[1][i / 4][0][i % 4];
            }
            const int mine = group * 8 + (lane >> 2), row = before + mine / B_SQUARES, column = mine % B_SQUARES;
            const int filter = slice * 8 * COUNT + (lane & 3) * 2 * COUNT;
#pragma unroll
            for (int place = 0; place < (B_POOL ? 1 : 4); place++) {
                u32 numbers[NUMBER_WORDS], codes[COUNT], bytes[COUNT / 2];
                finish(numbers, codes, sum[0], added, place);
#pragma unroll
                for (int i = 0; i < COUNT / 2; i++) bytes[i] = even_bytes(codes[2 * i], codes[2 * i + 1]);
                const int p = B_POOL ? row : 2 * row + place / 2, q = B_POOL ? column : 2 * column + place % 2;
                if (mine < squares && p < B_HEIGHT && q < B_WIDTH && filter < B_CHANNELS) {
                    const long long to = (((long long)image * B_HEIGHT + p) * B_WIDTH + q) * B_CHANNELS + filter;
                    store_words(y + to, numbers);
                    store_words(where + to, bytes);
                }
            }
        }
    }
}
