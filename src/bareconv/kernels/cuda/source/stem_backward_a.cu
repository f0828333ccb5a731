// The first block of a network, backward, gradients of A's parameters, through B.
//
//   dA[h][w][c] = sum over (r, s, k) of dY[h + PADDING_H - r][w + PADDING_W - s][k] weight_b[r][s][c][k],
//   then through A's pool and relu, of which A is computed again from the pixels, then
//   partial_weight_a[part][r][s][c][k] = sum over images and (h, w) of pixel[h + r][w + s][c] dA[h][w][k]
//
// Here the channels of A are the rows of products and pixels are their columns: then dA comes out of one product as
// the next one wants it, and A computed again has the same layout. A warp has 16 of A's channels, B's weights for
// them in registers, and every (WARPS / slices)th eight squares of a band; BAND_ROWS rows of squares of A's results.
#include "stem_backward.cuh"

static_assert(PRECISION == BFLOAT16, "matrices of 16 bits are transposed");
constexpr int SQUARES = blocks_of(A_WIDTH, 2), SQUARE_ROWS = blocks_of(A_HEIGHT, 2);  // of A's results
typedef Picture<2 * BAND_ROWS + B_KERNEL_H - 1, 2 * SQUARES + B_KERNEL_W - 1, B_CHANNELS> Gradient;
typedef Picture<A_TAKES * 2 * BAND_ROWS + A_KERNEL_H - 1, A_TAKES * 2 * SQUARES, LINE_NUMBERS> Lines;

constexpr int CHUNK = chunk_of(B_PIECES);
typedef Steps<B_TAPS, CHUNK> Order;
constexpr int STEPS = Order::COUNT * (B_PIECES / CHUNK);
typedef Steps<A_KERNEL_H, A_CHUNK> OrderOfA;
constexpr int SLICES = blocks_of(A_CHANNELS, 16), TURNS = WARPS / SLICES;
constexpr int WEIGHT_BYTES = B_TAPS * A_CHANNELS * pixel_bytes(B_CHANNELS);
constexpr int LINE_TILES = A_KERNEL_H * LINE_PIECES, COUNT = LINE_TILES * 4 + 2;

// Shared memory of a team; B's weights are on their way through what all teams have.
constexpr int AT_PIXELS = 0, AT_WEIGHTS = AT_PIXELS + 2 * PIXELS_BYTES, AT_LINES = AT_WEIGHTS + A_WEIGHT_BYTES;
constexpr int AT_GRADIENT = AT_LINES + Lines::BYTES, TEAM_BYTES = AT_GRADIENT + Gradient::BYTES;
static_assert(larger(TEAMS * TEAM_BYTES, larger(WEIGHT_BYTES, TEAMS * TURNS > 1 ? SLICES * COUNT * 128 : 0)) == SHARED_BYTES, "as the host has it");
static_assert(WARPS % SLICES == 0, "every warp has a slice of A's channels");

// dY for a band, zeros where there is none: local (0, 0) is the first output of B that the band's first square goes into.
DEVICE void spread_gradient(u8* to, const Number::Type* RESTRICT dy, const u8* RESTRICT where, int image, int before, int thread) {
    // dY's row q is local row q + SHIFT - 2 before.
    constexpr int SHIFT_H = B_KERNEL_H - 1 - B_PADDING_H, SHIFT_W = B_KERNEL_W - 1 - B_PADDING_W;
    // With a pool by B's squares, which may lie across the local ones: those at ODD - 1 start a row early.
    constexpr int ODD_H = B_POOL ? SHIFT_H & 1 : 0, ODD_W = B_POOL ? SHIFT_W & 1 : 0;
    constexpr int STEP = B_POOL ? 2 : 1;
    constexpr int ROWS = Gradient::ROWS / STEP + ODD_H, COLUMNS = Gradient::COLUMNS / STEP + ODD_W;
    constexpr int BACK_H = (SHIFT_H - ODD_H) / STEP + ODD_H, BACK_W = (SHIFT_W - ODD_W) / STEP + ODD_W;
#pragma unroll 2
    for (int i = thread; i < ROWS * COLUMNS * B_PIECES; i += THREADS) {
        const int piece = i % B_PIECES, row = i / B_PIECES / COLUMNS, column = i / B_PIECES % COLUMNS;
        const int p = row - BACK_H + before * (2 / STEP), q = column - BACK_W;
        Piece gradient;
        if (p >= 0 && p < B_HEIGHT && q >= 0 && q < B_WIDTH) gradient = Piece(dy, where, place_of(image, p, q) + piece * PIECE);
        if (B_POOL) {
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const int y = 2 * row - ODD_H + place / 2, x = 2 * column - ODD_W + place % 2;
                const bool there = (!ODD_H || (y >= 0 && y < Gradient::ROWS)) && (!ODD_W || (x >= 0 && x < Gradient::COLUMNS));
                if (there) *(uint4*)(to + Gradient::at(y, x) + piece * 16) = gradient.at_place(place);
            }
        } else {
            *(uint4*)(to + Gradient::at(row, column) + piece * 16) = gradient.alive();
        }
    }
}

// A's outputs before relu of eight squares, [place in the square] with channels as rows: 0 to 7, 8 to 15.
DEVICE void outputs_of_a(float (&sum)[4][4], const u8* square, const u32 (&weight)[A_STEPS][4], float low, float high) {
#pragma unroll
    for (int place = 0; place < 4; place++) sum[place][0] = sum[place][1] = low, sum[place][2] = sum[place][3] = high;
#pragma unroll
    for (int chunk = 0; chunk < LINE_PIECES / A_CHUNK; chunk++) {
        u32 patch[even(A_KERNEL_H + 1)][2][A_CHUNK];
        load_patch<Lines, false>(patch, square + chunk * A_CHUNK * 16);
#pragma unroll
        for (int step = 0; step < OrderOfA::COUNT; step++)
#pragma unroll
            for (int place = 0; place < 4; place++)
                multiply(sum[place], weight[chunk * OrderOfA::COUNT + step],
                         patch[OrderOfA::tap(step, 0) + place / 2][place % 2][OrderOfA::piece(step, 0)],
                         patch[OrderOfA::tap(step, 1) + place / 2][place % 2][OrderOfA::piece(step, 1)]);
    }
}

// The gradient of A's weights += lines * dA, of the same squares.
DEVICE void add_products(float (&sum)[COUNT], const u8* square, const float (&da)[4][4]) {
    u32 left[2][4];  // pixels in the order of the products' columns, a row of the squares at a time
#pragma unroll
    for (int up = 0; up < 2; up++)
#pragma unroll
        for (int i = 0; i < 4; i++) left[up][i] = pack(da[2 * up + i / 2][i % 2 * 2], da[2 * up + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int chunk = 0; chunk < LINE_PIECES / A_CHUNK; chunk++) {
        u32 patch[even(A_KERNEL_H + 1)][2][A_CHUNK];
        load_patch<Lines, true>(patch, square + chunk * A_CHUNK * 16);
#pragma unroll
        for (int up = 0; up < 2; up++)
#pragma unroll
            for (int i = 0; i < A_KERNEL_H * A_CHUNK; i++) {
                const int r = i / A_CHUNK, piece = i % A_CHUNK;
                float(&to)[4] = *(float(*)[4]) & sum[(r * LINE_PIECES + chunk * A_CHUNK + piece) * 4];
                multiply(to, left[up], patch[r + up][0][piece], patch[r + up][1][piece]);
            }
    }
#pragma unroll
    for (int place = 0; place < 4; place++) {
        sum[LINE_TILES * 4] += da[place][0] + da[place][1];
        sum[LINE_TILES * 4 + 1] += da[place][2] + da[place][3];
    }
}

KERNEL(TEAMS * WARPS * 32, 1)
stem_backward_a(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control,
                const Number::Type* RESTRICT weight_a, const float* RESTRICT bias_a, const Number::Type* RESTRICT weight_b,
                const Number::Type* RESTRICT dy, const u8* RESTRICT where, float* RESTRICT partial_weight_a,
                float* RESTRICT partial_bias_a) {
    SHARED_MEMORY(shared);
    const Team team;
    u8* const own = shared + team.number * TEAM_BYTES;
    u8 *lines = own + AT_LINES, *gradient = own + AT_GRADIENT;
    const int lane = team.lane, slice = team.warp % SLICES, turn = team.warp / SLICES;
    float sum[COUNT];  // of A's weights and biases
#pragma unroll
    for (int i = 0; i < COUNT; i++) sum[i] = 0.f;
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    const int items = step.images * BANDS, stride = gridDim.x * TEAMS;
    int item = blockIdx.x * TEAMS + team.number, buffer = 0;
    u32 weight[STEPS][4], weight_of_a[A_STEPS][4];
    if (blockIdx.x * TEAMS < items) {
        constexpr int PIECES_OF_ROWS = B_TAPS * A_CHANNELS * B_PIECES;
        for (int i = threadIdx.x; i < PIECES_OF_ROWS; i += TEAMS * THREADS)
            copy_16(shared + i / B_PIECES * pixel_bytes(B_CHANNELS) + i % B_PIECES * 16, weight_b + i * PIECE);
        end_copies();
        copies_done();
        sync_block();
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int chunk = i / Order::COUNT, within = i % Order::COUNT, half = lane >> 4;
            // The taps of dA's sum run against those of the patch.
            const int tap = B_TAPS - 1 - (half ? Order::tap(within, 1) : Order::tap(within, 0));
            const int piece = chunk * CHUNK + (half ? Order::piece(within, 1) : Order::piece(within, 0));
            const int channel = min(slice * 16 + (lane & 15), A_CHANNELS - 1);
            load_matrices(weight[i], shared + (tap * A_CHANNELS + channel) * pixel_bytes(B_CHANNELS) + piece * 16);
            if (!Order::exists(within, 1)) weight[i][2] = weight[i][3] = 0u;
        }
        sync_block();
    }
    if (item < items) {
        fetch_image(own + AT_PIXELS, pixels, order, step, item / BANDS, team.thread);
        stage_weights<1, A_CHANNELS>(own + AT_WEIGHTS, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
        end_copies();
        copies_done();
        team.sync();
#pragma unroll
        for (int i = 0; i < A_STEPS; i++) {
            const int chunk = i / OrderOfA::COUNT, within = i % OrderOfA::COUNT;
            const int first = OrderOfA::tap(within, 0) * LINE_ROWS + (chunk * A_CHUNK + OrderOfA::piece(within, 0)) * PIECE;
            const int second = OrderOfA::tap(within, 1) * LINE_ROWS + (chunk * A_CHUNK + OrderOfA::piece(within, 1)) * PIECE;
            const int channel = min(slice * 16 + (lane & 8), A_CHANNELS - 8);
            load_matrices_transposed(weight_of_a[i], own + AT_WEIGHTS + ((lane & 16 ? second : first) + (lane & 7)) * pixel_bytes(A_CHANNELS) +
                                                         channel * Number::BYTES);
            if (!OrderOfA::exists(within, 1)) weight_of_a[i][2] = weight_of_a[i][3] = 0u;
        }
    }
    const int channel = slice * 16 + (lane >> 2);
    const float low = channel < A_FILTERS ? bias_a[channel] : 0.f, high = channel + 8 < A_FILTERS ? bias_a[channel + 8] : 0.f;
    for (; item < items; item += stride, buffer ^= 1) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS, next = item + stride;
        copies_done();
        team.sync();
        if (next < items) fetch_image(own + AT_PIXELS + (buffer ^ 1) * PIXELS_BYTES, pixels, order, step, next / BANDS, team.thread);
        spread_gradient(gradient, dy, where, image, before, team.thread);
        spread_pixels<Lines>(lines, own + AT_PIXELS + buffer * PIXELS_BYTES, A_TAKES * 2 * before - A_PADDING_H, team.thread);
        team.sync();
        const int squares = min(BAND_ROWS, SQUARE_ROWS - before) * SQUARES;
#pragma unroll 1
        for (int group = turn; group < blocks_of(squares, 8); group += TURNS) {
            const int read = min(group * 8 + (lane & 7), squares - 1), row = read / SQUARES, column = read % SQUARES;
            const u8* square = gradient + row * Gradient::ROW + column * Gradient::PIXEL + matrix_offset<Gradient, CHUNK>(lane);
            float parts[2][4][4];  // of dA, [odd or even step][place in the square], for products that do not wait for each other
#pragma unroll
            for (int i = 0; i < 32; i++) parts[i / 16][i / 4 % 4][i % 4] = 0.f;
#pragma unroll
            for (int chunk = 0; chunk < B_PIECES / CHUNK; chunk++) {
                u32 patch[even(B_KERNEL_H + 1)][even(B_KERNEL_W + 1)][CHUNK];
                load_patch<Gradient, false>(patch, square + chunk * CHUNK * 16);
#pragma unroll
                for (int i = 0; i < Order::COUNT; i++) {
                    const int r0 = Order::tap(i, 0) / B_KERNEL_W, s0 = Order::tap(i, 0) % B_KERNEL_W, p0 = Order::piece(i, 0);
                    const int r1 = Order::tap(i, 1) / B_KERNEL_W, s1 = Order::tap(i, 1) % B_KERNEL_W, p1 = Order::piece(i, 1);
#pragma unroll
                    for (int place = 0; place < 4; place++)
                        multiply(parts[i % 2][place], weight[chunk * Order::COUNT + i], patch[r0 + place / 2][s0 + place % 2][p0],
                                 patch[r1 + place / 2][s1 + place % 2][p1]);
                }
            }
            // A lane has squares group * 8 + 2 (lane % 4) and the one after it.
            float da[4][4];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int mine = group * 8 + (lane & 3) * 2 + e, y = 2 * (before + mine / SQUARES), x = 2 * (mine % SQUARES);
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    const bool there = mine < squares && y + place / 2 < A_HEIGHT && x + place % 2 < A_WIDTH;
#pragma unroll
                    for (int i = e; i < 4; i += 2) da[place][i] = there ? parts[0][place][i] + parts[1][place][i] : 0.f;
                }
            }
            const u8* line = lines + matrix_offset<Lines, A_CHUNK>(lane) + A_TAKES * (row * Lines::ROW + column * Lines::PIXEL);
            float outputs[4][4];
            if constexpr (A_POOL) {
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    const u8* pooled = line + place / 2 * Lines::ROW + place % 2 * Lines::PIXEL;
                    outputs_of_a(outputs, pooled, weight_of_a, low, high);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int best = 0;
                        float most = outputs[0][i];
#pragma unroll
                        for (int other = 1; other < 4; other++) {
                            best = outputs[other][i] > most ? other : best;
                            most = fmaxf(most, outputs[other][i]);
                        }
                        const float mine = most > 0.f ? da[place][i] : 0.f;
#pragma unroll
                        for (int other = 0; other < 4; other++) outputs[other][i] = other == best ? mine : 0.f;
                    }
                    add_products(sum, pooled, outputs);
                }
            } else {
                outputs_of_a(outputs, line, weight_of_a, low, high);
#pragma unroll
                for (int i = 0; i < 16; i++) da[i / 4][i % 4] = outputs[i / 4][i % 4] > 0.f ? da[i / 4][i % 4] : 0.f;
                add_products(sum, line, da);
            }
        }
    }
    copies_done();
    sum_over_turns<TEAMS * TURNS>(sum, shared, slice, team.number * TURNS + turn);
    if (team.number > 0 || turn > 0) return;
    float* to = partial_weight_a + (long long)blockIdx.x * (A_TAPS * CHANNELS * A_FILTERS);
#pragma unroll
    for (int i = 0; i < LINE_TILES * 4; i++) {
        const int k = channel + i % 4 / 2 * 8, number = i / 4 % LINE_PIECES * PIECE + (lane & 3) * 2 + i % 2;
        if (k < A_FILTERS && number < LINE_NUMBERS) to[(i / 4 / LINE_PIECES * LINE_NUMBERS + number) * A_FILTERS + k] = sum[i];
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = sum[LINE_TILES * 4 + half];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        if ((lane & 3) == 0 && channel + half * 8 < A_FILTERS) partial_bias_a[(long long)blockIdx.x * A_FILTERS + channel + half * 8] = total;
    }
}
