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

// A's outputs before its bias of eight squares, [place in the square] with 16 channels from ``slice`` on as rows.
DEVICE void outputs_of_a(float (&sum)[1][4][1][4], const u8* square, const u8* weights, int slice, int lane) {
    u32 weight[A_STEPS][1][4];
#pragma unroll
    for (int i = 0; i < A_STEPS; i++) {
        load_left<pixel_bytes(A_COLUMNS)>(weight[i][0], weights, row_of_a(i, 0), row_of_a(i, 1), slice * 16, lane);
        if (!OrderOfA::exists(i % OrderOfA::COUNT, 1)) weight[i][0][2] = weight[i][0][3] = 0u;
    }
#pragma unroll
    for (int i = 0; i < 16; i++) sum[0][i / 4][0][i % 4] = 0.f;
    convolve<Lines, A_KERNEL_H, 1, LINE_PIECES>(sum, square + matrix_offset<Lines, A_CHUNK>(lane), weight);
}

// The gradient of A's weights and biases += lines * dA, of the same squares.
DEVICE void add_products(float (&sum)[COUNT], const u8* square, const float (&da)[4][4], int lane) {
    u32 left[2][4];  // the squares' upper and lower row
#pragma unroll
    for (int i = 0; i < 8; i++) left[i / 4][i % 4] = pack(da[i / 2][i % 2 * 2], da[i / 2][i % 2 * 2 + 1]);
    // Four matrices: both columns of the squares, of two pieces or of the next row too.
    const u8* from = square + (lane >> 3 & 1) * Lines::QUARTER + (lane >> 4) * (A_CHUNK == 2 ? 16 : 2 * Lines::QUARTER);
#pragma unroll
    for (int chunk = 0; chunk < LINE_PIECES / A_CHUNK; chunk++)
#pragma unroll
        for (int y = 0; y <= A_KERNEL_H; y += 3 - A_CHUNK) {
            u32 four[4];
            load_matrices_transposed(four, from + Lines::at(y, 0) + chunk * A_CHUNK * 16);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int up = i % 2, r = y + (A_CHUNK == 2 ? 0 : i / 2) - up, piece = A_CHUNK == 2 ? i / 2 : 0;
                if (r < 0 || r >= A_KERNEL_H) continue;
                float(&to)[4] = *(float(*)[4]) & sum[(r * LINE_PIECES + chunk * A_CHUNK + piece) * 4];
                multiply(to, left[up], four[i / 2 * 2], four[i / 2 * 2 + 1]);
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
    u32 weight[STEPS][1][4];
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
            load_matrices(weight[i][0], shared + (tap * A_CHANNELS + channel) * pixel_bytes(B_CHANNELS) + piece * 16);
            if (!Order::exists(within, 1)) weight[i][0][2] = weight[i][0][3] = 0u;
        }
        sync_block();
    }
    if (item < items) {
        fetch_image(own + AT_PIXELS, pixels, order, step, item / BANDS, team.thread);
        stage_weights<1, A_CHANNELS, A_COLUMNS>(own + AT_WEIGHTS, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
        end_copies();
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
            float parts[2][4][1][4];  // of dA, [set][place in the square]
#pragma unroll
            for (int i = 0; i < 32; i++) parts[i / 16][i / 4 % 4][0][i % 4] = 0.f;
            convolve<Gradient, B_KERNEL_H, B_KERNEL_W, B_PIECES>(parts, square, weight);
            // A lane has squares group * 8 + 2 (lane % 4) and the one after it.
            float da[4][4];
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int mine = group * 8 + (lane & 3) * 2 + e, y = 2 * (before + mine / SQUARES), x = 2 * (mine % SQUARES);
#pragma unroll
                for (int place = 0; place < 4; place++) {
                    const bool there = mine < squares && y + place / 2 < A_HEIGHT && x + place % 2 < A_WIDTH;
#pragma unroll
                    for (int i = e; i < 4; i += 2) da[place][i] = there ? parts[0][place][0][i] + parts[1][place][0][i] : 0.f;
                }
            }
            sync_warp();
            const u8* line = lines + A_TAKES * (row * Lines::ROW + column * Lines::PIXEL);
            float outputs[1][4][1][4];
            if constexpr (A_POOL) {  // a pixel of A's results has a square of outputs
#pragma unroll 1
                for (int place = 0; place < 4; place++) {
                    const u8* pooled = line + place / 2 * Lines::ROW + place % 2 * Lines::PIXEL;
                    outputs_of_a(outputs, pooled, own + AT_WEIGHTS, slice, lane);
                    float chosen[4][4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int best = 0;
                        float most = outputs[0][0][0][i];
#pragma unroll
                        for (int other = 1; other < 4; other++) {
                            best = outputs[0][other][0][i] > most ? other : best;
                            most = fmaxf(most, outputs[0][other][0][i]);
                        }
                        const float mine = most + (i < 2 ? low : high) > 0.f ? da[0][i] : 0.f;
#pragma unroll
                        for (int other = 0; other < 4; other++) chosen[other][i] = other == best ? mine : 0.f;
                    }
                    add_products(sum, pooled, chosen, lane);
                    // The next place's are the first now: an index that is not constant would put them into memory.
#pragma unroll
                    for (int i = 0; i < 12; i++) da[i / 4][i % 4] = da[i / 4 + 1][i % 4];
                }
            } else {
                outputs_of_a(outputs, line, own + AT_WEIGHTS, slice, lane);
#pragma unroll
                for (int i = 0; i < 16; i++)
                    da[i / 4][i % 4] = outputs[0][i / 4][0][i % 4] + (i % 4 < 2 ? low : high) > 0.f ? da[i / 4][i % 4] : 0.f;
                add_products(sum, line, da, lane);
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
