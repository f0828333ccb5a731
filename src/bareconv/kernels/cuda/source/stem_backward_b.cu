// The first block of a network, backward, gradients of B's parameters: A's results are computed again from the pixels.
//
//   partial_weight_b[part][r][s][c][k] = sum over images and (p, q) of A[p + r][q + s][c] dY[p][q][k]
//   partial_bias_b[part][k]            = sum of dY[p][q][k]
//
// Both operands are pixel by pixel in shared memory, and the sum runs over pixels: matrices are transposed as they are
// loaded. A warp has 8 B_TILES filters and WARP_PIECES pieces of A's channels, for all taps, in registers from the
// first image to the last; where that is not enough for all of a team's warps, several have the same and share
// the pixels.
#include "stem_backward.cuh"

typedef BandOfB<BAND_ROWS> Band;
typedef Band::Activation Activation;
typedef Band::Lines Lines;

static_assert(PRECISION == BFLOAT16, "matrices of 16 bits are transposed");
constexpr int GROUPS = blocks_of(BAND_ROWS * B_SQUARES, 8);
constexpr int GRADIENT_PIXEL = pixel_bytes(B_CHANNELS), PLACE_BYTES = GROUPS * 8 * GRADIENT_PIXEL;
typedef Steps<B_TAPS, WARP_PIECES> Rows;  // 16 rows of the gradient: two pieces, each of one tap
constexpr int SHARES = Activation::PIECES / WARP_PIECES * (B_CHANNELS / (8 * B_TILES));
constexpr int TURNS = WARPS / SHARES;  // warps of a team that have the same share
constexpr int COUNT = Rows::COUNT * B_TILES * 4;

// Shared memory of a team.
constexpr int AT_PIXELS = 0, AT_WEIGHTS = AT_PIXELS + 2 * PIXELS_BYTES, AT_LINES = AT_WEIGHTS + A_WEIGHT_BYTES;
constexpr int AT_ACTIVATION = AT_LINES + Lines::BYTES, AT_GRADIENT = AT_ACTIVATION + Activation::BYTES;
constexpr int TEAM_BYTES = AT_GRADIENT + 4 * PLACE_BYTES;
constexpr int END_BYTES = larger(TEAMS * TURNS > 1 ? SHARES * COUNT * 128 : 0, TEAMS * THREADS * PIECE * 4);
static_assert(larger(TEAMS * TEAM_BYTES, END_BYTES) == SHARED_BYTES, "as the host has it");
static_assert(WARPS % SHARES == 0 && Activation::PIECES % WARP_PIECES == 0 && B_CHANNELS % (8 * B_TILES) == 0, "every warp has a share");

constexpr int SPREADING = THREADS / B_PIECES * B_PIECES;  // threads, each with a piece of its own

// dY of a band, [place in the square][square][filter], zeros where there is no output, and its sum over pixels.
DEVICE void spread_gradient(u8* to, float (&bias)[PIECE], const Number::Type* RESTRICT dy, const u8* RESTRICT where, int image, int before, int thread) {
    const int piece = thread % B_PIECES;
    if (thread >= SPREADING) return;
#pragma unroll 2
    for (int square = thread / B_PIECES; square < GROUPS * 8; square += SPREADING / B_PIECES) {
        const int row = before + square / B_SQUARES, column = square % B_SQUARES;
        u8* mine = to + square * GRADIENT_PIXEL + piece * 16;
        if (B_POOL) {
            Piece gradient;
            if (square < BAND_ROWS * B_SQUARES && row < B_HEIGHT) gradient = Piece(dy, where, place_of(image, row, column) + piece * PIECE);
            add_piece(bias, gradient.alive());
#pragma unroll
            for (int place = 0; place < 4; place++) *(uint4*)(mine + place * PLACE_BYTES) = gradient.at_place(place);
        } else {
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const int p = 2 * row + place / 2, q = 2 * column + place % 2;
                Piece gradient;
                if (square < BAND_ROWS * B_SQUARES && p < B_HEIGHT && q < B_WIDTH)
                    gradient = Piece(dy, where, place_of(image, p, q) + piece * PIECE);
                const uint4 alive = gradient.alive();
                add_piece(bias, alive);
                *(uint4*)(mine + place * PLACE_BYTES) = alive;
            }
        }
    }
}

KERNEL(TEAMS * WARPS * 32, 1)
stem_backward_b(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control,
                const Number::Type* RESTRICT weight_a, const float* RESTRICT bias_a, const Number::Type* RESTRICT dy,
                const u8* RESTRICT where, float* RESTRICT partial_weight_b, float* RESTRICT partial_bias_b) {
    SHARED_MEMORY(shared);
    const Team team;
    u8* const own = shared + team.number * TEAM_BYTES;
    u8 *lines = own + AT_LINES, *activation = own + AT_ACTIVATION, *gradient = own + AT_GRADIENT;
    const int lane = team.lane, share = team.warp % SHARES, turn = team.warp / SHARES;
    const int piece = share % (Activation::PIECES / WARP_PIECES) * WARP_PIECES;
    const int filter = share / (Activation::PIECES / WARP_PIECES) * 8 * B_TILES;
    float sum[COUNT], bias[PIECE];
#pragma unroll
    for (int i = 0; i < COUNT; i++) sum[i] = 0.f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) bias[i] = 0.f;
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    const int items = step.images * BANDS, stride = gridDim.x * TEAMS;
    int item = blockIdx.x * TEAMS + team.number, buffer = 0;
    if (item < items) {
        fetch_image(own + AT_PIXELS, pixels, order, step, item / BANDS, team.thread);
        stage_weights<A_TILES, A_CHANNELS>(own + AT_WEIGHTS, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
        end_copies();
        clear(activation, Activation::BYTES, team.thread, THREADS);
    }
    for (; item < items; item += stride, buffer ^= 1) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS, next = item + stride;
        copies_done();
        team.sync();
        if (next < items) fetch_image(own + AT_PIXELS + (buffer ^ 1) * PIXELS_BYTES, pixels, order, step, next / BANDS, team.thread);
        spread_gradient(gradient, bias, dy, where, image, before, team.thread);
        spread_pixels<Lines>(lines, own + AT_PIXELS + buffer * PIXELS_BYTES, Band::first_pixel_row(before), team.thread);
        team.sync();
        first_activation<Band>(activation, lines, own + AT_WEIGHTS, bias_a, Band::first_row(before), team);
        team.sync();
        const int squares = min(BAND_ROWS, B_SQUARE_ROWS - before) * B_SQUARES;
#pragma unroll 1
        for (int group = turn; group < blocks_of(squares, 8); group += TURNS) {
            const int read = min(group * 8 + (lane & 7), squares - 1);
            u32 patch[even(B_KERNEL_H + 1)][even(B_KERNEL_W + 1)][WARP_PIECES];
            load_patch<Activation, true>(patch, activation + read / B_SQUARES * Activation::ROW + read % B_SQUARES * Activation::PIXEL +
                                                    piece * 16 + matrix_offset<Activation, WARP_PIECES>(lane));
            u32 right[B_TILES][4];
#pragma unroll
            for (int tile = 0; tile < B_TILES; tile++)
                load_matrices_transposed(right[tile], gradient + (lane >> 3) * PLACE_BYTES + (group * 8 + (lane & 7)) * GRADIENT_PIXEL +
                                                          filter * Number::BYTES + tile * 16);
#pragma unroll
            for (int up = 0; up < 2; up++)
#pragma unroll
                for (int i = 0; i < Rows::COUNT; i++) {
                    const int r0 = Rows::tap(i, 0) / B_KERNEL_W + up, s0 = Rows::tap(i, 0) % B_KERNEL_W, p0 = Rows::piece(i, 0);
                    const int r1 = Rows::tap(i, 1) / B_KERNEL_W + up, s1 = Rows::tap(i, 1) % B_KERNEL_W, p1 = Rows::piece(i, 1);
                    const u32 left[4] = {patch[r0][s0][p0], patch[r1][s1][p1], patch[r0][s0 + 1][p0], patch[r1][s1 + 1][p1]};
#pragma unroll
                    for (int tile = 0; tile < B_TILES; tile++) {
                        float(&to)[4] = *(float(*)[4]) & sum[(i * B_TILES + tile) * 4];
                        multiply(to, left, right[tile][2 * up], right[tile][2 * up + 1]);
                    }
                }
        }
    }
    copies_done();
    sum_over_turns<TEAMS * TURNS>(sum, shared, share, team.number * TURNS + turn);
    if (team.number == 0 && turn == 0) {
        float* to = partial_weight_b + (long long)blockIdx.x * (B_TAPS * A_FILTERS * B_FILTERS);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int row = i / 4 / B_TILES, half = i % 4 / 2;
            const int channel = (piece + Rows::piece(row, half)) * PIECE + (lane >> 2);
            const int k = filter + i / 4 % B_TILES * 8 + (lane & 3) * 2 + i % 2;
            if (Rows::exists(row, half) && channel < A_FILTERS && k < B_FILTERS)
                to[(Rows::tap(row, half) * A_FILTERS + channel) * B_FILTERS + k] = sum[i];
        }
    }
    sync_block();
    float* biases = (float*)shared;
#pragma unroll
    for (int i = 0; i < PIECE; i++) biases[threadIdx.x * PIECE + i] = bias[i];
    sync_block();
    for (int k = threadIdx.x; k < B_FILTERS; k += TEAMS * THREADS) {
        float total = 0.f;
        for (int other = 0; other < TEAMS; other++)
            for (int thread = k / PIECE; thread < SPREADING; thread += B_PIECES) total += biases[(other * THREADS + thread) * PIECE + k % PIECE];
        partial_bias_b[(long long)blockIdx.x * B_FILTERS + k] = total;
    }
}
