// The first block of a network in float32, forward: what stem_forward.cu does.
//
// A's results are planes of one channel in shared memory. A thread has eight filters of SQUARES_AT_ONCE neighbouring
// squares in registers: for each channel and row of taps it loads rows of pixels and the taps' weights, and four times
// SQUARES_AT_ONCE pixels use each weight. Blocks of one SLICE of SLICES have the same filters.
#include "stem_float32.cuh"

constexpr int ROWS = 2 * BAND_ROWS + B_KERNEL_H - 1, SETS = blocks_of(B_WIDTH, SQUARES_AT_ONCE);  // sets of squares in a row
constexpr int OUTPUTS = 2 * SQUARES_AT_ONCE, VECTOR = SQUARES_AT_ONCE % 2 == 0 ? 4 : 2;
constexpr int READ = blocks_of(OUTPUTS + B_KERNEL_W - 1, VECTOR) * VECTOR;  // pixels of a row
constexpr int PITCH = blocks_of(larger(OUTPUTS * (SETS - 1) + READ, A_WIDTH + B_PADDING_W), 4) * 4, PLANE = ROWS * PITCH;
typedef Planes<A_TAKES * ROWS + A_KERNEL_H - 1, A_TAKES * A_WIDTH + A_KERNEL_W - 1> Pixels;

constexpr int FILTERS = B_CHANNELS / SLICES, EIGHTS = FILTERS / 8;
static_assert(FILTERS % 8 == 0 && B_CHANNELS % SLICES == 0, "slices of eights");

// As many channels of A at a time as registers have weights for; items of channels and positions that divide among warps.
constexpr int A_AT_ONCE = A_INPUTS <= 18 ? 4 : A_INPUTS <= 36 ? 2 : 1, A_GROUPS = A_CHANNELS / A_AT_ONCE;
constexpr int common_divisor(int a, int b) { return b == 0 ? a : common_divisor(b, a % b); }
constexpr int A_PARTS = WARPS / common_divisor(A_GROUPS, WARPS);

constexpr int AT_PIXELS = 0, AT_WEIGHTS_A = AT_PIXELS + 2 * PIXELS_BYTES, AT_PLANES = AT_WEIGHTS_A + A_INPUTS * A_CHANNELS * 4;
constexpr int AT_WEIGHTS_B = AT_PLANES + Pixels::BYTES, AT_ACTIVATION = AT_WEIGHTS_B + B_TAPS * A_CHANNELS * FILTERS * 4;
static_assert(AT_ACTIVATION + A_CHANNELS * PLANE * 4 == SHARED_BYTES, "as the host has it");

// A, relu and pool of a band. ``first_row``: of A's results, the one that local row 0 is.
DEVICE void first_activation(float* to, const float* planes, const float* weights, const float* RESTRICT bias, int first_row, const Team& team) {
    for (int item = team.warp; item < A_GROUPS * A_PARTS; item += WARPS) {
        const int first = item % A_GROUPS * A_AT_ONCE;
        float weight[A_INPUTS][A_AT_ONCE], added[A_AT_ONCE];
#pragma unroll
        for (int i = 0; i < A_INPUTS * A_AT_ONCE; i++) weight[i / A_AT_ONCE][i % A_AT_ONCE] = weights[i / A_AT_ONCE * A_CHANNELS + first + i % A_AT_ONCE];
#pragma unroll
        for (int i = 0; i < A_AT_ONCE; i++) added[i] = first + i < A_FILTERS ? bias[first + i] : 0.f;
#pragma unroll 1
        for (int position = item / A_GROUPS * 32 + team.lane; position < ROWS * A_WIDTH; position += A_PARTS * 32) {
            const int y = position / A_WIDTH, x = position % A_WIDTH;
            const bool inside = first_row + y >= 0 && first_row + y < A_HEIGHT;
            float most[A_AT_ONCE];
#pragma unroll
            for (int place = 0; place < A_TAKES * A_TAKES; place++) {
                const float* from = planes + (A_TAKES * y + place / 2) * Pixels::PITCH + A_TAKES * x + place % 2;
                float sum[A_AT_ONCE];
#pragma unroll
                for (int i = 0; i < A_AT_ONCE; i++) sum[i] = 0.f;
#pragma unroll
                for (int input = 0; input < A_INPUTS; input++) {
                    const int tap = input / CHANNELS, channel = input % CHANNELS;
                    const float pixel = from[channel * Pixels::PLANE + tap / A_KERNEL_W * Pixels::PITCH + tap % A_KERNEL_W];
#pragma unroll
                    for (int i = 0; i < A_AT_ONCE; i++) sum[i] = fmaf(pixel, weight[input][i], sum[i]);
                }
#pragma unroll
                for (int i = 0; i < A_AT_ONCE; i++) most[i] = place == 0 ? sum[i] : fmaxf(most[i], sum[i]);
            }
#pragma unroll
            for (int i = 0; i < A_AT_ONCE; i++)
                to[(first + i) * PLANE + y * PITCH + x + B_PADDING_W] = inside ? fmaxf(most[i] + added[i], 0.f) : 0.f;
        }
    }
}

DEVICE void load_row(float (&row)[READ], const float* from) {
#pragma unroll
    for (int i = 0; i < READ; i += VECTOR) {
        if constexpr (VECTOR == 4) {
            load_four(row + i, from + i);
        } else {
            const float2 two = *(const float2*)(from + i);
            row[i] = two.x, row[i + 1] = two.y;
        }
    }
}

KERNEL(WARPS * 32, BLOCKS)
stem_forward(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control, const float* RESTRICT weight_a,
             const float* RESTRICT bias_a, const float* RESTRICT weight_b, const float* RESTRICT bias_b, float* RESTRICT y,
             u8* RESTRICT where) {
    SHARED_MEMORY(shared);
    float *weights_a = (float*)(shared + AT_WEIGHTS_A), *planes = (float*)(shared + AT_PLANES);
    float *weights_b = (float*)(shared + AT_WEIGHTS_B), *activation = (float*)(shared + AT_ACTIVATION);
    const Team team;
    const int first_filter = blockIdx.y * FILTERS;
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    const int items = step.images * BANDS;
    if (blockIdx.x >= items) return;
    fetch_image(shared + AT_PIXELS, pixels, place_of(blockIdx.x / BANDS, order, &step), team.thread);
    for (int i = team.thread; i < B_TAPS * A_CHANNELS * (FILTERS / 4); i += THREADS)
        copy_16(weights_b + i * 4, weight_b + i / (FILTERS / 4) * B_CHANNELS + first_filter + i % (FILTERS / 4) * 4);
    end_copies();
    for (int i = team.thread; i < A_INPUTS * A_CHANNELS; i += THREADS)
        weights_a[i] = weight_a[row_of_input(i / A_CHANNELS) * A_CHANNELS + i % A_CHANNELS];
    clear((u8*)activation, A_CHANNELS * PLANE * 4, team.thread, THREADS);
    int turn = 0;
    for (int item = blockIdx.x; item < items; item += gridDim.x, turn ^= 1) {
        const int image = item / BANDS, before = item % BANDS * BAND_ROWS, first_row = 2 * before - B_PADDING_H;
        copies_done();
        sync_block();
        const int next = item + gridDim.x;
        if (next < items) {
            fetch_image(shared + AT_PIXELS + (turn ^ 1) * PIXELS_BYTES, pixels, place_of(next / BANDS, order, &step), team.thread);
            end_copies();
        }
        Pixels::spread(planes, shared + AT_PIXELS + turn * PIXELS_BYTES, A_TAKES * first_row - A_PADDING_H, team.thread);
        sync_block();
        first_activation(activation, planes, weights_a, bias_a, first_row, team);
        sync_block();
        const int tasks = min(BAND_ROWS, B_HEIGHT - before) * SETS * EIGHTS;
#pragma unroll 1
        for (int task = team.thread; task < tasks; task += THREADS) {
            const int eight = task % EIGHTS, row = task / EIGHTS / SETS, set = task / EIGHTS % SETS;
            const float* from = activation + 2 * row * PITCH + OUTPUTS * set;
            const float* weight = weights_b + eight * 4;
            float sum[2][OUTPUTS][8];
#pragma unroll
            for (int i = 0; i < 16 * OUTPUTS; i++) sum[i / 8 / OUTPUTS][i / 8 % OUTPUTS][i % 8] = 0.f;
#pragma unroll 1
            for (int channel = 0; channel < A_CHANNELS; channel++, from += PLANE, weight += FILTERS) {
                float rows[2][READ];  // an even and an odd one
                load_row(rows[0], from);
#pragma unroll
                for (int r = 0; r < B_KERNEL_H; r++) {
                    load_row(rows[(r + 1) % 2], from + (r + 1) * PITCH);
#pragma unroll
                    for (int s = 0; s < B_KERNEL_W; s++) {
                        float w[8];
                        load_four(w, weight + (r * B_KERNEL_W + s) * A_CHANNELS * FILTERS);
                        load_four(w + 4, weight + (r * B_KERNEL_W + s) * A_CHANNELS * FILTERS + EIGHTS * 4);
#pragma unroll
                        for (int i = 0; i < 16 * OUTPUTS; i++) {
                            const int up = i / 8 / OUTPUTS, output = i / 8 % OUTPUTS, k = i % 8;
                            sum[up][output][k] = fmaf(rows[(r + up) % 2][output + s], w[k], sum[up][output][k]);
                        }
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int filter = first_filter + half * EIGHTS * 4 + eight * 4;
                float added[4];
#pragma unroll
                for (int i = 0; i < 4; i++) added[i] = filter + i < B_FILTERS ? bias_b[filter + i] : 0.f;
#pragma unroll
                for (int square = 0; square < SQUARES_AT_ONCE; square++) {
                    const int q = set * SQUARES_AT_ONCE + square;
                    if (q >= B_WIDTH) continue;
                    float values[4];
                    u32 codes = 0;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int k = half * 4 + i;
                        float most;
                        const u32 place = largest(most, sum[0][2 * square][k], sum[0][2 * square + 1][k], sum[1][2 * square][k], sum[1][2 * square + 1][k]);
                        most += added[i];
                        codes |= (most > 0.f ? place : place + 4) << 8 * i;
                        values[i] = fmaxf(most, 0.f);
                    }
                    const long long to = (((long long)image * B_HEIGHT + before + row) * B_WIDTH + q) * B_CHANNELS + filter;
                    *(float4*)(y + to) = float4{values[0], values[1], values[2], values[3]};
                    *(u32*)(where + to) = codes;
                }
            }
        }
    }
}
