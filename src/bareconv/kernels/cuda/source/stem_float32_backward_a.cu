// The first block of a network in float32, backward, gradients of A's parameters: what stem_backward_a.cu does.
//
// A warp has 32 channels of A and a *run* of SQUARES_AT_ONCE squares of B in a row: what they read is its part of dA, in
// registers while it goes through the filters. A filter of a square adds its taps' weights from the maximum's place on.
// All else is linear in dA, so parts go through A's relu and into its weights' gradient one by one, and none is kept.
//
// SLICES: blocks are of so many kinds, which have some of the filters each, so that their weights fit.
#include "stem_float32.cuh"

static_assert(A_CHANNELS % 32 == 0 && !A_POOL, "a channel a lane; no pool to go back through");
constexpr int RUNS = blocks_of(B_WIDTH, SQUARES_AT_ONCE);
constexpr int ROWS = B_KERNEL_H + 1, COLUMNS = 2 * SQUARES_AT_ONCE + B_KERNEL_W - 1;  // of a run's dA
typedef Planes<2 * BAND_ROWS + B_KERNEL_H + A_KERNEL_H - 2, 2 * SQUARES_AT_ONCE * (RUNS - 1) + COLUMNS + A_KERNEL_W - 1, B_PADDING_W> Pixels;
constexpr bool ALWAYS_INSIDE = B_PADDING_W == 0 && B_WIDTH % SQUARES_AT_ONCE == 0;  // no run reads beyond A's results

constexpr int SHARES = A_CHANNELS / 32, TURNS = WARPS / SHARES;
constexpr int FILTERS = blocks_of(B_CHANNELS / 4, SLICES) * 4;
constexpr int COUNT = A_INPUTS + 1;
static_assert(WARPS % SHARES == 0, "every warp has a share");

// Shared memory of a team; after what the teams have are A's weights and B's, those as [filter][tap][channel].
constexpr int AT_PIXELS = 0, AT_PLANES = AT_PIXELS + 2 * PIXELS_BYTES, AT_GRADIENT = AT_PLANES + Pixels::BYTES;
constexpr int BAND_NUMBERS = BAND_ROWS * B_WIDTH * FILTERS, AT_CODES = AT_GRADIENT + BAND_NUMBERS * 4;
constexpr int TEAM_BYTES = blocks_of(AT_CODES + BAND_NUMBERS, 16) * 16, AT_WEIGHTS_A = TEAMS * TEAM_BYTES;
constexpr int AT_WEIGHTS = AT_WEIGHTS_A + A_INPUTS * A_CHANNELS * 4;
static_assert(larger(AT_WEIGHTS + FILTERS * B_TAPS * A_CHANNELS * 4, TEAMS * TURNS > 1 ? SHARES * COUNT * 128 : 0) == SHARED_BYTES, "as the host has it");

// A run's dA += gradient * weights, of the output at ``PLACE`` of a square.
template <int PLACE>
DEVICE void add_weights(float (&da)[ROWS][COLUMNS], int square, const float (&weight)[B_TAPS], float gradient) {
#pragma unroll
    for (int tap = 0; tap < B_TAPS; tap++) {
        float& to = da[PLACE / 2 + tap / B_KERNEL_W][2 * square + PLACE % 2 + tap % B_KERNEL_W];
        to = fmaf(weight[tap], gradient, to);
    }
}

KERNEL(TEAMS * WARPS * 32, 1)
stem_backward_a(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control, const float* RESTRICT weight_a,
                const float* RESTRICT bias_a, const float* RESTRICT weight_b, const float* RESTRICT dy, const u8* RESTRICT where,
                float* RESTRICT partial_weight_a, float* RESTRICT partial_bias_a) {
    SHARED_MEMORY(shared);
    const Team team;
    u8* const own = shared + team.number * TEAM_BYTES;
    float *planes = (float*)(own + AT_PLANES), *gradient = (float*)(own + AT_GRADIENT), *weights = (float*)(shared + AT_WEIGHTS);
    float* weights_a = (float*)(shared + AT_WEIGHTS_A);
    u8* codes = own + AT_CODES;
    const int lane = team.lane, share = team.warp % SHARES, turn = team.warp / SHARES, channel = share * 32 + lane;
    // Blocks that are one too many for the slices have nothing to do.
    const int first_filter = blockIdx.x % SLICES * FILTERS, filters = min(FILTERS, B_CHANNELS - first_filter), workers = gridDim.x / SLICES;
    float sum[COUNT];  // of A's weights and its bias
#pragma unroll
    for (int i = 0; i < COUNT; i++) sum[i] = 0.f;
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    const int items = blockIdx.x / SLICES < workers ? step.images * BANDS : 0, stride = workers * TEAMS;
    int item = blockIdx.x / SLICES * TEAMS + team.number, buffer = 0;
    if (blockIdx.x / SLICES * TEAMS < items) {
        for (int i = threadIdx.x; i < filters * B_TAPS * A_CHANNELS; i += TEAMS * THREADS) {
            const int filter = i % filters, c = i / filters % A_CHANNELS, tap = i / filters / A_CHANNELS;
            copy_4(weights + (filter * B_TAPS + tap) * A_CHANNELS + c, weight_b + (tap * A_CHANNELS + c) * B_CHANNELS + first_filter + filter);
        }
        for (int i = threadIdx.x; i < A_INPUTS * A_CHANNELS; i += TEAMS * THREADS)
            weights_a[i] = weight_a[row_of_input(i / A_CHANNELS) * A_CHANNELS + i % A_CHANNELS];
        end_copies();
        copies_done();
        sync_block();
    }
    if (item < items) {
        fetch_image(own + AT_PIXELS, pixels, place_of(item / BANDS, order, &step), team.thread);
        end_copies();
    }
    const float bias = channel < A_FILTERS ? bias_a[channel] : 0.f;
    for (; item < items; item += stride, buffer ^= 1) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS, next = item + stride, first_row = 2 * before - B_PADDING_H;
        const int rows = min(BAND_ROWS, B_HEIGHT - before);
        copies_done();
        team.sync();
        for (int i = team.thread * 4; i < rows * B_WIDTH * filters; i += THREADS * 4) {
            const int square = i / filters, filter = i % filters;
            const long long from = (((long long)image * B_HEIGHT + before) * B_WIDTH + square) * B_CHANNELS + first_filter + filter;
            copy_16(gradient + square * FILTERS + filter, dy + from);
            copy_4(codes + square * FILTERS + filter, where + from);
        }
        end_copies();
        Pixels::spread(planes, own + AT_PIXELS + buffer * PIXELS_BYTES, first_row - A_PADDING_H, team.thread);
        copies_done();
        team.sync();
        if (next < items) {
            fetch_image(own + AT_PIXELS + (buffer ^ 1) * PIXELS_BYTES, pixels, place_of(next / BANDS, order, &step), team.thread);
            end_copies();
        }
#pragma unroll 1
        for (int run = turn; run < rows * RUNS; run += TURNS) {
            const int row = run / RUNS, column = run % RUNS * SQUARES_AT_ONCE;
            float da[ROWS][COLUMNS];
#pragma unroll
            for (int i = 0; i < ROWS * COLUMNS; i++) da[i / COLUMNS][i % COLUMNS] = 0.f;
#pragma unroll 1
            for (int first = 0; first < filters; first += 32) {
                u32 alive[SQUARES_AT_ONCE], right[SQUARES_AT_ONCE], lower[SQUARES_AT_ONCE];
#pragma unroll
                for (int i = 0; i < SQUARES_AT_ONCE; i++) {
                    const bool there = column + i < B_WIDTH && first + lane < filters;
                    const u32 code = there ? codes[(row * B_WIDTH + column + i) * FILTERS + first + lane] : 4u;
                    alive[i] = ballot(code < 4), right[i] = ballot(code & 1), lower[i] = ballot(code & 2);
                }
                const float* weight_row = weights + first * (B_TAPS * A_CHANNELS) + channel;
                const float* g_row = gradient + (row * B_WIDTH + column) * FILTERS + first;
                const int last = min(32, filters - first);
#pragma unroll 1
                for (int i = 0; i < last; i++, weight_row += B_TAPS * A_CHANNELS, g_row++) {
                    const u32 bit = 1u << i;
                    float weight[B_TAPS], g[SQUARES_AT_ONCE];
#pragma unroll
                    for (int tap = 0; tap < B_TAPS; tap++) weight[tap] = weight_row[tap * A_CHANNELS];
#pragma unroll
                    for (int square = 0; square < SQUARES_AT_ONCE; square++) g[square] = g_row[square * FILTERS];
#pragma unroll
                    for (int square = 0; square < SQUARES_AT_ONCE; square++) {
                        if (!(alive[square] & bit)) continue;
                        if (lower[square] & bit) {
                            if (right[square] & bit) add_weights<3>(da, square, weight, g[square]);
                            else add_weights<2>(da, square, weight, g[square]);
                        } else {
                            if (right[square] & bit) add_weights<1>(da, square, weight, g[square]);
                            else add_weights<0>(da, square, weight, g[square]);
                        }
                    }
                }
            }
            float weight_of_a[A_INPUTS];
#pragma unroll
            for (int i = 0; i < A_INPUTS; i++) weight_of_a[i] = weights_a[i * A_CHANNELS + channel];
            // Row by row through A, which is computed again. The next row is the first then: an index that is not
            // constant would put dA into memory.
#pragma unroll 1
            for (int y = 0; y < ROWS; y++) {
                const int h = first_row + 2 * row + y;
                const float* pixel = planes + (2 * row + y) * Pixels::PITCH + 2 * column;
                if (h >= 0 && h < A_HEIGHT) {
#pragma unroll
                    for (int x = 0; x < COLUMNS; x++) {
                        const int w = 2 * column + x - B_PADDING_W;
                        float output = 0.f;
#pragma unroll
                        for (int i = 0; i < A_INPUTS; i++) {
                            const int tap = i / CHANNELS;
                            output = fmaf(pixel[i % CHANNELS * Pixels::PLANE + tap / A_KERNEL_W * Pixels::PITCH + x + tap % A_KERNEL_W], weight_of_a[i], output);
                        }
                        const float mine = (ALWAYS_INSIDE || (w >= 0 && w < A_WIDTH)) && output + bias > 0.f ? da[0][x] : 0.f;
#pragma unroll
                        for (int i = 0; i < A_INPUTS; i++) {
                            const int tap = i / CHANNELS;
                            sum[i] = fmaf(pixel[i % CHANNELS * Pixels::PLANE + tap / A_KERNEL_W * Pixels::PITCH + x + tap % A_KERNEL_W], mine, sum[i]);
                        }
                        sum[A_INPUTS] += mine;
                    }
                }
#pragma unroll
                for (int i = 0; i < (ROWS - 1) * COLUMNS; i++) da[i / COLUMNS][i % COLUMNS] = da[i / COLUMNS + 1][i % COLUMNS];
            }
        }
    }
    copies_done();
    sum_over_turns<TEAMS * TURNS>(sum, shared, share, team.number * TURNS + turn);
    if (team.number > 0 || turn > 0 || channel >= A_FILTERS) return;
#pragma unroll
    for (int i = 0; i < A_INPUTS; i++) partial_weight_a[((long long)blockIdx.x * A_INPUTS + i) * A_FILTERS + channel] = sum[i];
    partial_bias_a[(long long)blockIdx.x * A_FILTERS + channel] = sum[A_INPUTS];
}
