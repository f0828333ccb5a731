// The first block of a network, forward: uint8 images -> A, relu, perhaps a pool -> B, relu, perhaps a pool.
//
//   y[image][p][q][k], and where each of them comes from: the place of the maximum in its square, row by row, the first
//   of several; plus 4 where it is not above 0, so that relu lets no gradient through. Without B's pool: 0 or 4.
//
// stem.cuh says how. B's weights stay in registers: a warp has 8 B_TILES of the filters and every
// (WARPS / slices)th eight squares of a band. BANDS of an image, of BAND_ROWS rows of squares.
#include "stem.cuh"

typedef BandOfB<BAND_ROWS> Band;
typedef Band::Activation Activation;
typedef Band::Lines Lines;

constexpr int B_CHUNK = chunk_of(Activation::PIECES);
typedef Steps<B_TAPS, B_CHUNK> Order;
constexpr int B_STEPS = Order::COUNT * (Activation::PIECES / B_CHUNK);
constexpr int SLICES = B_CHANNELS / (8 * B_TILES);
constexpr int B_WEIGHT_BYTES = B_TAPS * A_CHANNELS * pixel_bytes(B_CHANNELS);

// Shared memory. B's weights are on their way through it where the activation will be.
constexpr int AT_PIXELS = 0, AT_WEIGHTS = AT_PIXELS + 2 * PIXELS_BYTES, AT_LINES = AT_WEIGHTS + A_WEIGHT_BYTES;
constexpr int AT_ACTIVATION = AT_LINES + Lines::BYTES;
static_assert(AT_ACTIVATION + larger(Activation::BYTES, B_WEIGHT_BYTES) == SHARED_BYTES, "as the host has it");
static_assert(WARPS % SLICES == 0 && B_CHANNELS % (8 * B_TILES) == 0, "every warp has a slice of the filters");

// Eight squares' outputs, those of a lane, to y and where.
DEVICE void finish(const float (&sum)[2][B_TILES][4], int row, int column, long long image, Number::Type* RESTRICT y, u8* RESTRICT where) {
    const int filter = threadIdx.x / 32 % SLICES * 8 * B_TILES + (threadIdx.x & 3) * 2 * B_TILES;
#pragma unroll
    for (int at = 0; at < (B_POOL ? 1 : 4); at++) {
        const int p = B_POOL ? row : 2 * row + at / 2, q = B_POOL ? column : 2 * column + at % 2;
        if (p >= B_HEIGHT || q >= B_WIDTH) continue;
        float values[2 * B_TILES];
        u32 codes[2 * B_TILES];
#pragma unroll
        for (int i = 0; i < 2 * B_TILES; i++) {
            const int tile = i / 2, e = i % 2;
            float value = sum[at % 2][tile][at / 2 * 2 + e];
            u32 code = 0;
            if (B_POOL) {
                const float right = sum[1][tile][e], below = sum[0][tile][2 + e], last = sum[1][tile][2 + e];
                code = right > value ? 1 : 0;
                value = fmaxf(value, right);
                const u32 lower = last > below ? 3 : 2;
                const float most = fmaxf(below, last);
                code = most > value ? lower : code;
                value = fmaxf(value, most);
            }
            codes[i] = value > 0.f ? code : code + 4;
            values[i] = fmaxf(value, 0.f);
        }
        const long long place = ((image * B_HEIGHT + p) * B_WIDTH + q) * B_CHANNELS + filter;
        store_numbers(y + place, values);
        store_bytes(where + place, codes);
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
    fetch_image(shared + AT_PIXELS, pixels, order, step, blockIdx.x / BANDS, team.thread);
    stage_weights<A_TILES, A_CHANNELS>(weights, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
    stage_weights<B_TILES, B_CHANNELS>(activation, weight_b, B_TAPS * A_CHANNELS, team.thread, THREADS, [](int row) { return row; });
    end_copies();
    copies_done();
    sync_block();
    u32 weight[B_STEPS][B_TILES][2];
    float added[2 * B_TILES];
#pragma unroll
    for (int i = 0; i < B_STEPS; i++) {
        const int chunk = i / Order::COUNT, within = i % Order::COUNT;
        int row[2];
#pragma unroll
        for (int half = 0; half < 2; half++)
            row[half] = Order::tap(within, half) * A_CHANNELS + (chunk * B_CHUNK + Order::piece(within, half)) * PIECE;
#pragma unroll
        for (int tile = 0; tile < B_TILES; tile++) {
            load_right<pixel_bytes(B_CHANNELS)>(weight[i][tile], activation, row[0], row[1], (slice * B_TILES + tile) * 8, lane);
            if (!Order::exists(within, 1)) weight[i][tile][1] = 0u;
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * B_TILES; i++) {
        const int filter = slice * 8 * B_TILES + (lane & 3) * 2 * B_TILES + i;
        added[i] = filter < B_FILTERS ? bias_b[filter] : 0.f;
    }
    sync_block();
    clear(activation, Activation::BYTES, team.thread, THREADS);
    int turn = 0;
    for (int item = blockIdx.x; item < items; item += gridDim.x, turn ^= 1) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS;
        copies_done();
        sync_block();
        const int next = item + gridDim.x;
        if (next < items) fetch_image(shared + AT_PIXELS + (turn ^ 1) * PIXELS_BYTES, pixels, order, step, next / BANDS, team.thread);
        spread_pixels<Lines>(lines, shared + AT_PIXELS + turn * PIXELS_BYTES, Band::first_pixel_row(before), team.thread);
        sync_block();
        first_activation<Band>(activation, lines, weights, bias_a, Band::first_row(before), team);
        sync_block();
        const int squares = min(BAND_ROWS, B_SQUARE_ROWS - before) * B_SQUARES;
#pragma unroll 1
        for (int group = team.warp / SLICES; group < blocks_of(squares, 8); group += WARPS / SLICES) {
            const int read = min(group * 8 + (lane & 7), squares - 1);
            const int from = read / B_SQUARES * Activation::ROW + read % B_SQUARES * Activation::PIXEL;
            float sum[2][B_TILES][4];
#pragma unroll
            for (int i = 0; i < 2 * B_TILES * 4; i++) sum[i / 4 / B_TILES][i / 4 % B_TILES][i % 4] = added[i / 4 % B_TILES * 2 + i % 2];
            convolve<Activation, B_KERNEL_H, B_KERNEL_W, Activation::PIECES>(
                sum, activation + from + matrix_offset<Activation, B_CHUNK>(lane), weight);
            const int square = group * 8 + (lane >> 2);
            if (square < squares) finish(sum, before + square / B_SQUARES, square % B_SQUARES, image, y, where);
        }
    }
}
