// A dense layer of few units upon the images themselves, uint8, which are gathered by the order and normalised on the
// way, x[n][f] = (pixel - MEAN) / STD: nothing is written that is as large as the images. FEATURES of an image, a
// pixel's CHANNELS. PRECISION says what the weights, and dy, are kept as.
//
// The matrix unit multiplies without loss in every precision: a pixel less a whole number, MIDDLE, has 9 bits of which
// tf32 keeps 11; what it is multiplied with is either rounded to tf32 already or, being float32, the sum of two such
// numbers, PARTS, which have a column each. MEAN - MIDDLE and STD come in at the end. Sums are float32.
#include "portable.cuh"

typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);
constexpr int QUADS = blocks_of(UNITS, 4);  // groups of four units
constexpr int PARTS = PRECISION == FLOAT32 ? 2 : 1;
constexpr int COLUMN_UNITS = 8 / PARTS;  // units of a matrix of eight columns
constexpr int MATRICES = blocks_of(UNITS, COLUMN_UNITS);
constexpr int WARPS = THREADS / 32;
constexpr int MIDDLE = (MEAN) < 0 ? 0 : (MEAN) > 255 ? 255 : (int)((MEAN) + 0.5);
constexpr float REST = (float)(MIDDLE - (MEAN)), SCALE = (float)(1.0 / (STD));

// Pixel WHICH of a word of four, less MIDDLE. A conversion takes longer: the byte is put into the lowest bits of 2^23.
template <int WHICH>
DEVICE u32 centred(u32 word) {
    return bits_of(float_of(byte_below<WHICH>(0x4b000000u, word)) - (float)(8388608 + MIDDLE));
}

// COUNT pixels as words of four; zeros where there are fewer than that ``left`` in the image.
template <int COUNT>
DEVICE void load_pixels(u32 (&words)[COUNT / 4], const u8* RESTRICT from, int left) {
#pragma unroll
    for (int i = 0; i < COUNT / 4; i++) words[i] = 0u;
    if constexpr (FEATURES % COUNT == 0) {
        if (left <= 0) return;
        if constexpr (COUNT == 16) {
            const uint4 four = *(const uint4*)from;
            words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
        } else {
            const uint2 two = *(const uint2*)from;
            words[0] = two.x, words[1] = two.y;
        }
    } else if constexpr (FEATURES % 4 == 0) {
#pragma unroll
        for (int i = 0; i < COUNT / 4; i++)
            if (4 * i < left) words[i] = ((const u32*)from)[i];
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (i < left) words[i / 4] |= (u32)from[i] << 8 * (i % 4);
    }
}

// Right operands lie in shared memory as lanes want them: [..][MATRICES][lane][2]. Four units' numbers of one place of
// the sum, which is number ``t`` or ``t + 4`` (half 1) of the eight that ``step`` multiplies.
DEVICE void store_right(float* operands, int step, int t, int half, int quad, const float (&values)[4]) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int unit = 4 * quad + e, matrix = unit / COLUMN_UNITS;
        if (matrix >= MATRICES) break;
        float* to = operands + (step * MATRICES + matrix) * 64 + (unit % COLUMN_UNITS * PARTS * 4 + t) * 2 + half;
        const float high = PARTS == 2 ? round_tf32(values[e]) : values[e];
        to[0] = high;
        if (PARTS == 2) to[8] = round_tf32(values[e] - high);
    }
}

DEVICE void load_right(float2 (&b)[MATRICES], const float* operands, int step) {
#pragma unroll
    for (int j = 0; j < MATRICES; j++)
        b[j] = ((const float2*)operands)[(step * MATRICES + j) * 32 + lane_of_warp()];
}

// ``work(unit, sum)`` of a row's sums in a lane: ``first`` and ``second`` neighbouring columns of matrix ``j``.
template <class Work>
DEVICE void for_units(int j, float first, float second, Work&& work) {
    const int t = lane_of_warp() % 4;
    if constexpr (PARTS == 2) {
        work(COLUMN_UNITS * j + t, first + second);
    } else {
        work(COLUMN_UNITS * j + 2 * t, first);
        work(COLUMN_UNITS * j + 2 * t + 1, second);
    }
}

template <class Type>
DEVICE void load_quad(float (&values)[4], const Type* from) {
    const float2 a = Number::load_pair(from), b = Number::load_pair(from + 2);
    values[0] = a.x, values[1] = a.y, values[2] = b.x, values[3] = b.y;
}

#if GRADIENT_OF_WEIGHT

// dw[f][k] = sum over n of x[n][f] dy[n][k], db[k] = sum over n of dy[n][k], over PART_IMAGES images from those of the
// part on. A warp: 64 features, of which a lane loads eight neighbours of two images at a time, those of four steps
// ahead. As rows of the result are in any order, a lane's eight are rows of four matrices.
constexpr int STEPS = 4;  // of eight images each, on their way at once

KERNEL(THREADS, 1)
dense_pixels_gradient(const u8* RESTRICT pixels, const int* RESTRICT order, const Number::Type* RESTRICT dy,
                      const Control* RESTRICT control, float* RESTRICT weight_partial, float* RESTRICT bias_partial) {
    SHARED_MEMORY(shared);
    float* gradients = (float*)shared;                        // [AT_ONCE / 8][MATRICES][32][2]
    int* places = (int*)(gradients + AT_ONCE * 8 * MATRICES);  // [AT_ONCE]
    const int part = blockIdx.x, g = lane_of_warp() / 4, t = lane_of_warp() % 4;
    const int first_feature = (blockIdx.y * WARPS + warp_of_block()) * 64 + 8 * g;
    wait_for_kernels_before();
    let_next_kernel_start();
    const int first_image = part * PART_IMAGES, last_image = min(first_image + PART_IMAGES, control->images);
    float sums[4][MATRICES][4] = {}, bias_sums[MATRICES] = {};
    for (int begin = first_image; begin < last_image; begin += AT_ONCE) {
        const int count = min(AT_ONCE, last_image - begin), all = blocks_of(count, 8 * STEPS) * 8 * STEPS;
        sync_block();
        for (int index = threadIdx.x; index < all; index += THREADS)
            places[index] = place_of(begin + min(index, count - 1), order, control);
#pragma unroll 4
        for (int index = threadIdx.x; index < all * QUADS; index += THREADS) {
            const int image = index / QUADS, quad = index % QUADS;
            float values[4] = {0.f, 0.f, 0.f, 0.f};
            if (image < count) load_quad(values, dy + (long long)(begin + image) * PITCH + 4 * quad);
            store_right(gradients, image / 8, image % 4, image % 8 / 4, quad, values);
        }
        sync_block();
        if (first_feature - 8 * g >= FEATURES) continue;
        u32 next[STEPS][2][2];
        const auto load = [&](int step) {
#pragma unroll
            for (int i = 0; i < STEPS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int place = places[(step + i) * 8 + half * 4 + t];
                    load_pixels<8>(next[i][half], pixels + (long long)place * FEATURES + first_feature,
                                   FEATURES - first_feature);
                }
        };
        load(0);
#pragma unroll 1
        for (int step = 0; step < all / 8; step += STEPS) {
            u32 mine[STEPS][2][2];
#pragma unroll
            for (int i = 0; i < STEPS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    mine[i][half][0] = next[i][half][0], mine[i][half][1] = next[i][half][1];
            if (step + STEPS < all / 8) load(step + STEPS);
#pragma unroll
            for (int i = 0; i < STEPS; i++) {
                float2 b[MATRICES];
                load_right(b, gradients, step + i);
#pragma unroll
                for (int j = 0; j < MATRICES; j++) bias_sums[j] += b[j].x + b[j].y;
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    const u32 one = mine[i][0][m / 2], other = mine[i][1][m / 2];
                    u32 a[4];
                    if (m % 2 == 0) {
                        a[0] = centred<0>(one), a[1] = centred<1>(one);
                        a[2] = centred<0>(other), a[3] = centred<1>(other);
                    } else {
                        a[0] = centred<2>(one), a[1] = centred<3>(one);
                        a[2] = centred<2>(other), a[3] = centred<3>(other);
                    }
#pragma unroll
                    for (int j = 0; j < MATRICES; j++) multiply_tf32(sums[m][j], a, bits_of(b[j].x), bits_of(b[j].y));
                }
            }
        }
    }
    if (first_feature - 8 * g >= FEATURES) return;
    // A lane has summed a column of two numbers in four; it needs all of the columns of its results.
#pragma unroll
    for (int j = 0; j < MATRICES; j++) {
        float column = bias_sums[j];
        column += shuffle_xor(column, 1);
        column += shuffle_xor(column, 2);
        const float first_sum = shuffle(column, 8 * t), second_sum = shuffle(column, 8 * t + 4);
        const auto store = [&](int feature, float first, float second) {
            if (feature >= FEATURES) return;
            float* to = weight_partial + (long long)part * (FEATURES * UNITS) + feature * UNITS;
            for_units(j, fmaf(REST, first_sum, first), fmaf(REST, second_sum, second), [&](int unit, float sum) {
                if (unit < UNITS) to[unit] = sum * SCALE;
            });
        };
#pragma unroll
        for (int m = 0; m < 4; m++) {
            store(first_feature + 2 * m, sums[m][j][0], sums[m][j][1]);
            store(first_feature + 2 * m + 1, sums[m][j][2], sums[m][j][3]);
        }
        if (bias_partial != nullptr && blockIdx.y == 0 && threadIdx.x < 4)
            for_units(j, first_sum, second_sum, [&](int unit, float sum) {
                if (unit < UNITS) bias_partial[(long long)part * UNITS + unit] = sum;
            });
    }
}

#else

// sums[n][k] = sum over f of x[n][f] w[f][k]. A warp: 32 images, and more that are WARPS * gridDim.x times as many
// away. A lane loads 16 neighbouring pixels of four images at a time, two of its turns ahead; the order in which features are
// summed is that in which pixels come: of 64 features, step i takes numbers 2 i and 2 i + 1 of each lane's 16.
constexpr int TURNS = blocks_of(FEATURES, 64);

KERNEL(THREADS, 1)
dense_pixels_product(const u8* RESTRICT pixels, const int* RESTRICT order, const Number::Type* RESTRICT w,
                     const Control* RESTRICT control, float* RESTRICT sums) {
    SHARED_MEMORY(shared);
    float* weights = (float*)shared;                      // [TURNS * 8][MATRICES][32][2]
    float* offsets = weights + TURNS * 8 * MATRICES * 64;  // [MATRICES * COLUMN_UNITS]
    const int g = lane_of_warp() / 4, t = lane_of_warp() % 4;
    wait_for_kernels_before();
    let_next_kernel_start();
    const int images = control->images, groups = blocks_of(images, 32);
    if (blockIdx.x >= groups) return;
#pragma unroll 8
    for (int index = threadIdx.x; index < TURNS * 64 * QUADS; index += THREADS) {
        const int feature = index / QUADS, quad = index % QUADS;
        float values[4] = {0.f, 0.f, 0.f, 0.f};
        // The working copy pads a pixel's channels.
        const int row = feature / CHANNELS * padded(CHANNELS) + feature % CHANNELS;
        if (feature < FEATURES) load_quad(values, w + (long long)row * PITCH + 4 * quad);
        store_right(weights, feature / 64 * 8 + feature % 16 / 2, feature % 64 / 16, feature % 2, quad, values);
    }
    sync_block();
    for (int column = warp_of_block(); column < 8 * MATRICES; column += WARPS) {
        float sum = 0.f;
        const float2* mine = (const float2*)weights + column / 8 * 32 + column % 8 * 4 + t;
#pragma unroll 4
        for (int step = g; step < TURNS * 8; step += 8) {
            const float2 two = mine[step * MATRICES * 32];
            sum += two.x + two.y;
        }
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) sum += shuffle_xor(sum, mask);
        if (lane_of_warp() == 0) offsets[column] = sum * REST;
    }
    sync_block();
    for (int group = warp_of_block() * gridDim.x + blockIdx.x; group < groups; group += WARPS * gridDim.x) {
        const u8* rows[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            rows[i] = pixels + 16 * t +
                      (long long)place_of(min(group * 32 + 8 * i + g, images - 1), order, control) * FEATURES;
        float total[2][MATRICES][4] = {};
        u32 next[4][4], second[4][4];
        const auto load = [&](u32(&to)[4][4], int turn) {
            if (turn >= TURNS) return;
#pragma unroll
            for (int i = 0; i < 4; i++) load_pixels<16>(to[i], rows[i] + turn * 64, FEATURES - turn * 64 - 16 * t);
        };
        load(next, 0);
        load(second, 1);
#pragma unroll 1
        for (int turn = 0; turn < TURNS; turn++) {
            u32 mine[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int word = 0; word < 4; word++) mine[i][word] = next[i][word], next[i][word] = second[i][word];
            load(second, turn + 2);
#pragma unroll
            for (int step = 0; step < 8; step++) {
                float2 b[MATRICES];
                load_right(b, weights, turn * 8 + step);
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    const u32 one = mine[2 * m][step / 2], other = mine[2 * m + 1][step / 2];
                    u32 a[4];
                    if (step % 2 == 0) {
                        a[0] = centred<0>(one), a[1] = centred<0>(other);
                        a[2] = centred<1>(one), a[3] = centred<1>(other);
                    } else {
                        a[0] = centred<2>(one), a[1] = centred<2>(other);
                        a[2] = centred<3>(one), a[3] = centred<3>(other);
                    }
#pragma unroll
                    for (int j = 0; j < MATRICES; j++) multiply_tf32(total[m][j], a, bits_of(b[j].x), bits_of(b[j].y));
                }
            }
        }
#pragma unroll
        for (int j = 0; j < MATRICES; j++) {
            const float first = offsets[8 * j + 2 * t], following = offsets[8 * j + 2 * t + 1];
            const auto store = [&](int image, float a, float b) {
                if (image >= images) return;
                float* to = sums + (long long)image * PITCH;
                for_units(j, a + first, b + following, [&](int unit, float sum) { to[unit] = sum * SCALE; });
                // Zeros in the columns that no matrix has.
                if (j == 0)
                    for (int unit = MATRICES * COLUMN_UNITS + t; unit < PITCH; unit += 4) to[unit] = 0.f;
            };
#pragma unroll
            for (int m = 0; m < 2; m++) {
                store(group * 32 + 16 * m + g, total[m][j][0], total[m][j][1]);
                store(group * 32 + 16 * m + 8 + g, total[m][j][2], total[m][j][3]);
            }
        }
    }
}

#endif
