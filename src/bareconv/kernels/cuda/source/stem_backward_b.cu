// The first block of a network, backward, gradients of B's parameters: A's results are computed again from the pixels.
//
//   partial_weight_b[part][r][s][c][k] = sum over images and (p, q) of A[p + r][q + s][c] dY[p][q][k]
//   partial_bias_b[part][k]            = sum of dY[p][q][k]
//
// Both operands are pixel by pixel in shared memory, and the sum runs over pixels: matrices of 16 bits are transposed as
// they are loaded; of 32 bits a lane loads a vector of its own pixel, whose numbers are as many matrices' columns. A warp
// has 16 B_TILES filters and WARP_EIGHTS eights of A's channels, for all taps, in registers from the first image to the
// last; where there are more warps than that takes, several have the same and share the pixels.
#include "stem_backward.cuh"

constexpr int ACTIVATION_PIXEL = PRECISION == BFLOAT16 ? pixel_bytes(A_CHANNELS) : vector_pixel_bytes(A_CHANNELS);
typedef BandOfB<BAND_ROWS, ACTIVATION_PIXEL> Band;
typedef Band::Activation Activation;
typedef Band::Lines Lines;

constexpr int A_COUNT = tiles_at_once(A_CHANNELS / 8, 2);
constexpr int GROUPS = blocks_of(BAND_ROWS * B_SQUARES, 8);
constexpr int B_COLUMNS = blocks_of(B_CHANNELS, 16) * 16;
constexpr int GRADIENT_PIXEL = PRECISION == BFLOAT16 ? pixel_bytes(B_COLUMNS) : vector_pixel_bytes(B_COLUMNS);
constexpr int PLACE_BYTES = GROUPS * 8 * GRADIENT_PIXEL, PLACES = PLACED ? 1 : 4;  // that are apart in memory
constexpr int CHANNEL_SHARES = A_CHANNELS / 8 / WARP_EIGHTS, SHARES = CHANNEL_SHARES * (B_COLUMNS / (16 * B_TILES));
constexpr int TURNS = WARPS / SHARES;  // warps of a team that have the same share
constexpr int COUNT = B_TAPS * WARP_EIGHTS * B_TILES * 4;
constexpr bool CHANNELS_ARE_ROWS = PRECISION == TF32 && WARP_EIGHTS == 2;

// Of the gradient after B's pool.
constexpr int STEP = B_POOL ? 1 : 2;  // rows that a row of squares reads
typedef Rows<STEP * BAND_ROWS> Read;

// Shared memory of a team.
constexpr int AT_PIXELS = 0, AT_READ = AT_PIXELS + PIXELS_BYTES, AT_WEIGHTS = AT_READ + Read::BYTES, AT_LINES = AT_WEIGHTS + A_WEIGHT_BYTES;
constexpr int AT_ACTIVATION = AT_LINES + Lines::BYTES, AT_GRADIENT = AT_ACTIVATION + Activation::BYTES;
constexpr int TEAM_BYTES = AT_GRADIENT + PLACES * PLACE_BYTES;
constexpr int END_BYTES = larger(TEAMS * TURNS > 1 ? SHARES * COUNT * 128 : 0, TEAMS * THREADS * PIECE * 4);
static_assert(larger(TEAMS * TEAM_BYTES, END_BYTES) == SHARED_BYTES, "as the host has it");
static_assert(WARPS % SHARES == 0 && A_CHANNELS / 8 % WARP_EIGHTS == 0, "every warp has a share");

constexpr int SPREADING = THREADS / B_PIECES * B_PIECES;  // threads, each with a piece of its own

// dY of a band, [place in the square][square][filter] or in one with its places, zeros where there is no output, and its
// sum over pixels.
DEVICE void spread_gradient(u8* to, float (&bias)[PIECE], const Read& read, int before, int thread) {
    const int piece = thread % B_PIECES;
    if (thread >= SPREADING) return;
#pragma unroll 2
    for (int square = thread / B_PIECES; square < GROUPS * 8; square += SPREADING / B_PIECES) {
        const int row = before + square / B_SQUARES, column = square % B_SQUARES;
        u8* mine = to + square * GRADIENT_PIXEL + piece * 16;
        if (B_POOL) {
            Piece gradient;
            if (square < BAND_ROWS * B_SQUARES && row < B_HEIGHT) gradient = read.piece(row, column, piece);
            add_piece(bias, gradient.alive());
            if constexpr (PLACED) *(uint4*)mine = gradient.placed();
#pragma unroll
            for (int place = PLACED ? 4 : 0; place < 4; place++) *(uint4*)(mine + place * PLACE_BYTES) = gradient.at_place(place);
        } else {
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const int p = 2 * row + place / 2, q = 2 * column + place % 2;
                Piece gradient;
                if (square < BAND_ROWS * B_SQUARES && p < B_HEIGHT && q < B_WIDTH) gradient = read.piece(p, q, piece);
                const uint4 alive = gradient.alive();
                add_piece(bias, alive);
                *(uint4*)(mine + place * PLACE_BYTES) = alive;
            }
        }
    }
}

// dW += A's results * dY of eight squares. ``channel``, ``filter``: the first ones.
template <int P>
DEVICE void add_products(float (&sum)[COUNT], const u8* activation, const u8* gradient, int group, int squares, int channel, int filter, int lane) {
    // Four matrices of A's results: a column of the squares and the one beside it, of two pieces or of the next squares
    // too. Four of dY: 16 filters of the left and of the right column.
    const int of_activation = (lane >> 3 & 1) * Activation::QUARTER + (lane >> 4) * (WARP_EIGHTS == 2 ? 16 : Activation::PIXEL) + channel * 2;
    const int of_gradient = (lane >> 3 & 1) * 16 + (lane >> 4) * PLACE_BYTES + (lane & 7) * GRADIENT_PIXEL + filter * 2;
    const int read = min(group * 8 + (lane & 7), squares - 1);
    const u8* from = activation + read / B_SQUARES * Activation::ROW + read % B_SQUARES * Activation::PIXEL + of_activation;
    u32 left[2][B_TILES][4];
#pragma unroll
    for (int i = 0; i < 2 * B_TILES; i++)
        load_matrices_transposed(left[i / B_TILES][i % B_TILES],
                                 gradient + group * 8 * GRADIENT_PIXEL + of_gradient + i / B_TILES * 2 * PLACE_BYTES + i % B_TILES * 32);
#pragma unroll
    for (int y = 0; y <= B_KERNEL_H; y++) {  // a row of pixels, for the two rows of outputs that read it
        constexpr int AT_ONCE = 4 / WARP_EIGHTS;
        u32 row[blocks_of(B_KERNEL_W + 1, AT_ONCE)][4];
#pragma unroll
        for (int i = 0; i < blocks_of(B_KERNEL_W + 1, AT_ONCE); i++) load_matrices_transposed(row[i], from + Activation::at(y, i * AT_ONCE));
#pragma unroll
        for (int i = 0; i < 2 * B_KERNEL_W * WARP_EIGHTS; i++) {
            const int s = i / 2 / WARP_EIGHTS, p = i / 2 % WARP_EIGHTS, up = i % 2, r = y - up;
            if (r < 0 || r >= B_KERNEL_H) continue;
            const u32 b0 = row[s / AT_ONCE][p * 2 + s % AT_ONCE], b1 = row[(s + 1) / AT_ONCE][p * 2 + (s + 1) % AT_ONCE];
#pragma unroll
            for (int tile = 0; tile < B_TILES; tile++) {
                float(&to)[4] = *(float(*)[4]) & sum[(((r * B_KERNEL_W + s) * WARP_EIGHTS + p) * B_TILES + tile) * 4];
                multiply(to, left[up][tile], b0, b1);
            }
        }
    }
}

// The same in 32 bits. A product has eight squares' pixels at one place; a lane reads those of squares lane % 4 and 4 more.
// Two eights of channels are rows: then what a lane loads of two squares is a left operand as it is. One is columns.
template <>
DEVICE void add_products<TF32>(float (&sum)[COUNT], const u8* activation, const u8* gradient, int group, int squares, int channel, int filter, int lane) {
    const u8* from[2];
    u32 by_place[4][2 * B_TILES][2];  // dY of an eight of filters, by place in the square
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int square = group * 8 + half * 4 + (lane & 3), read = min(square, squares - 1);
        from[half] = activation + read / B_SQUARES * Activation::ROW + read % B_SQUARES * Activation::PIXEL + (channel + (lane >> 2) * WARP_EIGHTS) * 4;
        const u8* mine = gradient + square * GRADIENT_PIXEL + (filter + (lane >> 2) * 2 * B_TILES) * 4;
        u32 words[2 * B_TILES];
        load_words(words, mine);
#pragma unroll
        for (int place = 0; place < 4; place++) {
            if (!PLACED && place > 0) load_words(words, mine + place * PLACE_BYTES);
#pragma unroll
            for (int i = 0; i < 2 * B_TILES; i++) by_place[place][i][half] = PLACED ? at_place(words[i], place) : words[i];
        }
    }
#pragma unroll
    for (int pixel = 0; pixel < (B_KERNEL_H + 1) * (B_KERNEL_W + 1); pixel++) {
        const int y = pixel / (B_KERNEL_W + 1), x = pixel % (B_KERNEL_W + 1);
        u32 channels[2][WARP_EIGHTS];
#pragma unroll
        for (int half = 0; half < 2; half++) load_words(channels[half], from[half] + Activation::at(y, x));
#pragma unroll
        for (int place = 0; place < 4; place++) {
            const int r = y - place / 2, s = x - place % 2;
            if (r < 0 || r >= B_KERNEL_H || s < 0 || s >= B_KERNEL_W) continue;
#pragma unroll
            for (int i = 0; i < WARP_EIGHTS * B_TILES; i++) {
                float(&to)[4] = *(float(*)[4]) & sum[((r * B_KERNEL_W + s) * WARP_EIGHTS * B_TILES + i) * 4];
                const u32(&filters)[2 * B_TILES][2] = by_place[place];
                if constexpr (CHANNELS_ARE_ROWS) {
                    const u32 left[4] = {channels[0][0], channels[0][WARP_EIGHTS - 1], channels[1][0], channels[1][WARP_EIGHTS - 1]};
                    multiply(to, left, filters[i][0], filters[i][1]);
                } else {
                    const u32 left[4] = {filters[2 * i][0], filters[2 * i + 1][0], filters[2 * i][1], filters[2 * i + 1][1]};
                    multiply(to, left, channels[0][0], channels[1][0]);
                }
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
    const int channel = share % CHANNEL_SHARES * 8 * WARP_EIGHTS, filter = share / CHANNEL_SHARES * 16 * B_TILES;
    float sum[COUNT], bias[PIECE];
#pragma unroll
    for (int i = 0; i < COUNT; i++) sum[i] = 0.f;
#pragma unroll
    for (int i = 0; i < PIECE; i++) bias[i] = 0.f;
    // Of what is read only dY is written by the kernel just before, and that has waited for the rest.
    const Control step = *control;
    const int items = step.images * BANDS, stride = gridDim.x * TEAMS;
    int item = blockIdx.x * TEAMS + team.number;
    if (item < items) {
        stage_weights<A_COUNT, A_CHANNELS, A_COLUMNS>(own + AT_WEIGHTS, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
        fetch_image(own + AT_PIXELS, pixels, place_of(item / BANDS, order, &step), team.thread);
        end_copies();
        clear(activation, Activation::BYTES, team.thread, THREADS);
    } else {
        wait_for_kernels_before();
    }
    for (bool first = true; item < items; item += stride, first = false) {
        const int before = item % BANDS * BAND_ROWS, next = item + stride;
        const int next_place = next < items ? place_of(next / BANDS, order, &step) : 0;  // is here by the time of the copy
        copies_done();
        team.sync();
        spread_pixels<Lines>(lines, own + AT_PIXELS, Band::first_pixel_row(before), team.thread);
        team.sync();
        if (first) {
            wait_for_kernels_before();
            let_next_kernel_start();
            Read::fetch(own + AT_READ, dy, where, item / BANDS, STEP * before, team.thread);
            end_copies();
        }
        first_activation<Band, A_COUNT>(activation, lines, own + AT_WEIGHTS, bias_a, Band::first_row(before), team);
        if (STAGED && first) {
            copies_done();
            team.sync();
        }
        spread_gradient(gradient, bias, Read(own + AT_READ, dy, where, item / BANDS, STEP * before), before, team.thread);
        team.sync();
        if (next < items) {
            Read::fetch(own + AT_READ, dy, where, next / BANDS, STEP * (next % BANDS * BAND_ROWS), team.thread);
            fetch_image(own + AT_PIXELS, pixels, next_place, team.thread);
            end_copies();
        }
        const int squares = min(BAND_ROWS, B_SQUARE_ROWS - before) * B_SQUARES;
#pragma unroll 1
        for (int group = turn; group < blocks_of(squares, 8); group += TURNS) {
            add_products<PRECISION>(sum, activation, gradient, group, squares, channel, filter, lane);
        }
    }
    copies_done();
    sum_over_turns<TEAMS * TURNS>(sum, shared, share, team.number * TURNS + turn);
    if (team.number == 0 && turn == 0) {
        float* to = partial_weight_b + (long long)blockIdx.x * (B_TAPS * A_FILTERS * B_FILTERS);
        // Of a product's rows the lane has lane / 4 and 8 more, of its columns 2 (lane % 4) and the next. In tf32 a matrix's
        // rows or columns are not neighbours, as vectors were loaded.
        constexpr bool VECTORS = PRECISION == TF32;
        const int row = lane >> 2, column = (lane & 3) * 2;
        const int first_channel = channel + (CHANNELS_ARE_ROWS ? row * 2 : column);
        const int first_filter = filter + (CHANNELS_ARE_ROWS ? column * 2 * B_TILES : VECTORS ? row * 2 * B_TILES : row);
        to += first_channel * B_FILTERS + first_filter;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            const int tap = i / 4 / B_TILES / WARP_EIGHTS, within = i / 4 % (B_TILES * WARP_EIGHTS), below = i % 4 / 2, right = i % 2;
            const int c = CHANNELS_ARE_ROWS ? below : within / B_TILES * 8 + right;
            const int k = CHANNELS_ARE_ROWS ? right * 2 * B_TILES + within : VECTORS ? within * 2 + below : within % B_TILES * 16 + below * 8;
            const bool there = (A_FILTERS % 8 == 0 || first_channel + c < A_FILTERS) && (B_FILTERS % 16 == 0 || first_filter + k < B_FILTERS);
            if (there) to[(tap * A_FILTERS + c) * B_FILTERS + k] = sum[i];
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
