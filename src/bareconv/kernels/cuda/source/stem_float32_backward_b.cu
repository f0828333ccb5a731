// The first block of a network in float32, backward, gradients of B's parameters: what stem_backward_b.cu does.
//
// A warp has FILTERS_AT_ONCE filters and 32 channels of A, for all taps, in registers from the first image to the last.
// It loads what a square reads, and for each of its filters whose maximum is alive adds the products of the taps from the
// maximum's place on. Where there are more warps than that takes, several have the same and share the squares.
#include "stem_float32.cuh"

static_assert(A_CHANNELS % 32 == 0, "a channel a lane");
constexpr int ROWS = 2 * BAND_ROWS + B_KERNEL_H - 1, COLUMNS = larger(2 * B_WIDTH + B_KERNEL_W - 1, A_WIDTH + B_PADDING_W);
constexpr int AT_ONCE = 4;  // of A's results in a row, while they are computed
typedef Planes<A_TAKES * ROWS + A_KERNEL_H - 1, A_TAKES * blocks_of(A_WIDTH, AT_ONCE) * AT_ONCE + A_KERNEL_W - 1> Pixels;

constexpr int CHANNEL_SHARES = A_CHANNELS / 32, SHARES = CHANNEL_SHARES * (B_CHANNELS / FILTERS_AT_ONCE), TURNS = WARPS / SHARES;
constexpr int SUMS = B_TAPS + 1, COUNT = FILTERS_AT_ONCE * SUMS;  // of taps, and of the bias
static_assert(WARPS % SHARES == 0 && B_CHANNELS % FILTERS_AT_ONCE == 0, "every warp has a share");
static_assert(32 % FILTERS_AT_ONCE == 0 && FILTERS_AT_ONCE % 4 == 0, "gradients are loaded by four, codes by lanes");

// Shared memory of a team.
constexpr int AT_PIXELS = 0, AT_PLANES = AT_PIXELS + 2 * PIXELS_BYTES, AT_ACTIVATION = AT_PLANES + Pixels::BYTES;
constexpr int AT_GRADIENT = AT_ACTIVATION + ROWS * COLUMNS * A_CHANNELS * 4, AT_CODES = AT_GRADIENT + BAND_ROWS * B_WIDTH * B_CHANNELS * 4;
constexpr int TEAM_BYTES = blocks_of(AT_CODES + BAND_ROWS * B_WIDTH * B_CHANNELS, 16) * 16;
static_assert(larger(TEAMS * TEAM_BYTES, TEAMS * TURNS > 1 ? SHARES * COUNT * 128 : 0) == SHARED_BYTES, "as the host has it");

// A, relu and pool of a band, [row][column][channel]. A warp has a row of 32 channels at a time.
DEVICE void first_activation(float* to, const float* planes, const float* RESTRICT weight_a, const float* RESTRICT bias_a, int first_row, const Team& team) {
#pragma unroll 1
    for (int item = team.warp; item < CHANNEL_SHARES * ROWS; item += WARPS) {
        const int channel = item % CHANNEL_SHARES * 32 + team.lane, y = item / CHANNEL_SHARES;
        const bool inside = first_row + y >= 0 && first_row + y < A_HEIGHT;
        const float added = channel < A_FILTERS ? bias_a[channel] : 0.f;
        float weight[A_INPUTS];
#pragma unroll
        for (int i = 0; i < A_INPUTS; i++) weight[i] = weight_a[row_of_input(i) * A_CHANNELS + channel];
#pragma unroll 1
        for (int x = 0; x < A_WIDTH; x += AT_ONCE) {
            float sum[A_TAKES][A_TAKES * AT_ONCE];
#pragma unroll
            for (int i = 0; i < A_TAKES * A_TAKES * AT_ONCE; i++) sum[i / (A_TAKES * AT_ONCE)][i % (A_TAKES * AT_ONCE)] = 0.f;
            const float* from = planes + A_TAKES * (y * Pixels::PITCH + x);
#pragma unroll
            for (int i = 0; i < A_TAKES * A_INPUTS; i++) {
                const int row = i / A_INPUTS, input = i % A_INPUTS, tap = input / CHANNELS;
                const float* pixel = from + input % CHANNELS * Pixels::PLANE + (row + tap / A_KERNEL_W) * Pixels::PITCH + tap % A_KERNEL_W;
#pragma unroll
                for (int column = 0; column < A_TAKES * AT_ONCE; column++) sum[row][column] = fmaf(pixel[column], weight[input], sum[row][column]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                float most = sum[0][A_TAKES * i];
                if (A_POOL) {
                    most = fmaxf(most, sum[0][A_TAKES * i + A_TAKES - 1]);
                    most = fmaxf(most, fmaxf(sum[A_TAKES - 1][A_TAKES * i], sum[A_TAKES - 1][A_TAKES * i + A_TAKES - 1]));
                }
                if (x + i < A_WIDTH) to[(y * COLUMNS + x + i + B_PADDING_W) * A_CHANNELS + channel] = inside ? fmaxf(most + added, 0.f) : 0.f;
            }
        }
    }
}

typedef float Patch[B_KERNEL_H + 1][B_KERNEL_W + 1];

// A filter's sums += gradient * what the output at ``PLACE`` of the square reads.
template <int PLACE>
DEVICE void add_products(float (&sum)[COUNT], int filter, const Patch& patch, float gradient) {
#pragma unroll
    for (int tap = 0; tap < B_TAPS; tap++) {
        float& to = sum[filter * SUMS + tap];
        to = fmaf(patch[PLACE / 2 + tap / B_KERNEL_W][PLACE % 2 + tap % B_KERNEL_W], gradient, to);
    }
    sum[filter * SUMS + B_TAPS] += gradient;
}

KERNEL(TEAMS * WARPS * 32, 1)
stem_backward_b(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control, const float* RESTRICT weight_a,
                const float* RESTRICT bias_a, const float* RESTRICT dy, const u8* RESTRICT where, float* RESTRICT partial_weight_b,
                float* RESTRICT partial_bias_b) {
    SHARED_MEMORY(shared);
    const Team team;
    u8* const own = shared + team.number * TEAM_BYTES;
    float *planes = (float*)(own + AT_PLANES), *activation = (float*)(own + AT_ACTIVATION), *gradient = (float*)(own + AT_GRADIENT);
    u8* codes = own + AT_CODES;
    const int lane = team.lane, share = team.warp % SHARES, turn = team.warp / SHARES;
    const int channel = share % CHANNEL_SHARES * 32 + lane, filter = share / CHANNEL_SHARES * FILTERS_AT_ONCE;
    float sum[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) sum[i] = 0.f;
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    const int items = step.images * BANDS, stride = gridDim.x * TEAMS;
    int item = blockIdx.x * TEAMS + team.number, buffer = 0;
    if (item < items) {
        fetch_image(own + AT_PIXELS, pixels, place_of(item / BANDS, order, &step), team.thread);
        end_copies();
        clear((u8*)activation, ROWS * COLUMNS * A_CHANNELS * 4, team.thread, THREADS);
    }
    for (; item < items; item += stride, buffer ^= 1) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS, next = item + stride, first_row = 2 * before - B_PADDING_H;
        const int squares = min(BAND_ROWS, B_HEIGHT - before) * B_WIDTH;
        copies_done();
        team.sync();
        const long long from = ((long long)image * B_HEIGHT + before) * (B_WIDTH * B_CHANNELS);
        for (int i = team.thread * 4; i < squares * B_CHANNELS; i += THREADS * 4) {
            copy_16(gradient + i, dy + from + i);
            copy_4(codes + i, where + from + i);
        }
        end_copies();
        Pixels::spread(planes, own + AT_PIXELS + buffer * PIXELS_BYTES, A_TAKES * first_row - A_PADDING_H, team.thread);
        team.sync();
        if (next < items) fetch_image(own + AT_PIXELS + (buffer ^ 1) * PIXELS_BYTES, pixels, place_of(next / BANDS, order, &step), team.thread);
        end_copies();
        first_activation(activation, planes, weight_a, bias_a, first_row, team);
        copies_done<1>();
        team.sync();
        constexpr int SQUARES_AT_ONCE = 32 / FILTERS_AT_ONCE;
#pragma unroll 1
        for (int first = turn * SQUARES_AT_ONCE; first < squares; first += TURNS * SQUARES_AT_ONCE) {
            const int mine = first + lane / FILTERS_AT_ONCE;
            const u32 code = mine < squares ? codes[mine * B_CHANNELS + filter + lane % FILTERS_AT_ONCE] : 4u;
            u32 alive = ballot(code < 4), right = ballot(code & 1), lower = ballot(code & 2);
#pragma unroll 1
            for (int square = first; alive != 0; square++) {
                const float* read = activation + (square / B_WIDTH * 2 * COLUMNS + square % B_WIDTH * 2) * A_CHANNELS + channel;
                Patch patch;
#pragma unroll
                for (int i = 0; i < (B_KERNEL_H + 1) * (B_KERNEL_W + 1); i++) {
                    const int y = i / (B_KERNEL_W + 1), x = i % (B_KERNEL_W + 1);
                    patch[y][x] = read[(y * COLUMNS + x) * A_CHANNELS];
                }
                float g[FILTERS_AT_ONCE];
#pragma unroll
                for (int i = 0; i < FILTERS_AT_ONCE; i += 4) load_four(g + i, gradient + square * B_CHANNELS + filter + i);
#pragma unroll
                for (int i = 0; i < FILTERS_AT_ONCE; i++) {
                    const u32 bit = 1u << i;
                    if (!(alive & bit)) continue;
                    if (lower & bit) {
                        if (right & bit) add_products<3>(sum, i, patch, g[i]);
                        else add_products<2>(sum, i, patch, g[i]);
                    } else {
                        if (right & bit) add_products<1>(sum, i, patch, g[i]);
                        else add_products<0>(sum, i, patch, g[i]);
                    }
                }
                alive >>= FILTERS_AT_ONCE, right >>= FILTERS_AT_ONCE, lower >>= FILTERS_AT_ONCE;
            }
        }
    }
    copies_done();
    sum_over_turns<TEAMS * TURNS>(sum, shared, share, team.number * TURNS + turn);
    if (team.number > 0 || turn > 0) return;
    float* to = partial_weight_b + (long long)blockIdx.x * (B_TAPS * A_FILTERS * B_FILTERS) + channel * B_FILTERS + filter;
#pragma unroll
    for (int i = 0; i < FILTERS_AT_ONCE; i++) {
        if (filter + i >= B_FILTERS) continue;
#pragma unroll
        for (int tap = 0; tap < B_TAPS; tap++)
            if (channel < A_FILTERS) to[tap * A_FILTERS * B_FILTERS + i] = sum[i * SUMS + tap];
        if (channel == 0) partial_bias_b[(long long)blockIdx.x * B_FILTERS + filter + i] = sum[i * SUMS + B_TAPS];
    }
}
