// A dense layer of few units upon the images themselves, uint8, which are gathered by the order and normalised on the
// way, x[n][f] = (pixel - MEAN) / STD: nothing is written that is as large as the images. Products are of float32
// whatever PRECISION is; it says what the weights, and dy, are kept as. FEATURES of an image, a pixel's CHANNELS.
#include "matrix.cuh"
#include "softmax.cuh"

typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);
constexpr int QUADS = blocks_of(UNITS, 4);  // groups of four units

// A pixel, 0 to 255, out of a word of four.
template <int WHICH>
DEVICE float pixel_of(u32 word) {
    // The byte is put into the lowest bits of 2^23: a conversion takes more than that and a subtraction.
    return float_of((word >> 8 * WHICH & 0xffu) | 0x4b000000u) - 8388608.f;
}

DEVICE float normalised(float pixel) { return (pixel - (float)(MEAN)) * (float)(1.0 / (STD)); }

// Where feature f's row is in the weight's working copy, which pads a pixel's channels.
DEVICE int row_of(int feature) { return feature / CHANNELS * padded(CHANNELS) + feature % CHANNELS; }

#if GRADIENT_OF_WEIGHT

// dw[f][k] = sum over n of x[n][f] dy[n][k], db[k] = sum over n of dy[n][k], over PART_IMAGES images from those of the
// part on. A thread: TOGETHER neighbouring features, of which a block has WORDS groups, and every SHARERS-th image.
constexpr int WORDS_OF_IMAGE = FEATURES / TOGETHER;
constexpr int THREADS = blocks_of(WORDS * SHARERS, 32) * 32;

template <int COUNT>
struct Pixels;
template <>
struct Pixels<1> {
    typedef u8 Type;
};
template <>
struct Pixels<4> {
    typedef u32 Type;
};

KERNEL(THREADS, 1)
dense_pixels_gradient(const u8* RESTRICT pixels, const int* RESTRICT order, const Number::Type* RESTRICT dy,
                      const Control* RESTRICT control, float* RESTRICT weight_partial, float* RESTRICT bias_partial) {
    typedef typename Pixels<TOGETHER>::Type Word;
    SHARED_MEMORY(shared);
    float* gradients = (float*)shared;                      // [AT_ONCE][4 QUADS]
    int* places = (int*)(gradients + AT_ONCE * 4 * QUADS);  // [AT_ONCE]
    float* result = (float*)shared;                         // [WORDS * TOGETHER][UNITS], at the end
    const int part = blockIdx.x, word = threadIdx.x % WORDS, sharer = threadIdx.x / WORDS;
    const int my_word = blockIdx.y * WORDS + word;
    const bool works = sharer < SHARERS && my_word < WORDS_OF_IMAGE;
    wait_for_kernels_before();
    let_next_kernel_start();
    const int first_image = part * PART_IMAGES, last_image = min(first_image + PART_IMAGES, control->images);
    float sums[TOGETHER][UNITS] = {}, bias_sum = 0.f;
    for (int begin = first_image; begin < last_image; begin += AT_ONCE) {
        const int count = min(AT_ONCE, last_image - begin);
        sync_block();
        for (int index = threadIdx.x; index < count * QUADS; index += THREADS) {
            const Number::Type* from = dy + (long long)(begin + index / QUADS) * PITCH + index % QUADS * 4;
            const float2 a = Number::load_pair(from), b = Number::load_pair(from + 2);
            *(float4*)(gradients + 4 * index) = float4{a.x, a.y, b.x, b.y};
        }
        for (int index = threadIdx.x; index < count; index += THREADS)
            places[index] = place_of(begin + index, order, control);
        sync_block();
        if (works) {
#pragma unroll 4
            for (int n = sharer; n < count; n += SHARERS) {
                const Word bits = ((const Word*)pixels)[(long long)places[n] * WORDS_OF_IMAGE + my_word];
                float x[TOGETHER];
                if constexpr (TOGETHER == 4) {
                    x[0] = pixel_of<0>(bits), x[1] = pixel_of<1>(bits), x[2] = pixel_of<2>(bits), x[3] = pixel_of<3>(bits);
                } else {
                    x[0] = pixel_of<0>(bits);
                }
                float four[4 * QUADS];
#pragma unroll
                for (int q = 0; q < QUADS; q++) {
                    const float4 part_of = *(const float4*)(gradients + 4 * (n * QUADS + q));
                    four[4 * q] = part_of.x, four[4 * q + 1] = part_of.y;
                    four[4 * q + 2] = part_of.z, four[4 * q + 3] = part_of.w;
                }
#pragma unroll
                for (int e = 0; e < TOGETHER; e++) {
                    x[e] = normalised(x[e]);
#pragma unroll
                    for (int k = 0; k < UNITS; k++) sums[e][k] = fmaf(x[e], four[k], sums[e][k]);
                }
            }
        }
        if (blockIdx.y == 0 && threadIdx.x < UNITS) {
#pragma unroll 8
            for (int n = 0; n < count; n++) bias_sum += gradients[n * 4 * QUADS + threadIdx.x];
        }
    }
    // One sharer after the other, for the same order of sums in every run.
    for (int turn = 0; turn < SHARERS; turn++) {
        sync_block();
        if (sharer != turn) continue;
#pragma unroll
        for (int e = 0; e < TOGETHER; e++)
#pragma unroll
            for (int k = 0; k < UNITS; k++) {
                float* at = result + (word * TOGETHER + e) * UNITS + k;
                *at = turn == 0 ? sums[e][k] : *at + sums[e][k];
            }
    }
    sync_block();
    const int first = blockIdx.y * (WORDS * TOGETHER * UNITS);
    for (int index = threadIdx.x; index < min(WORDS * TOGETHER * UNITS, FEATURES * UNITS - first); index += THREADS)
        weight_partial[(long long)part * (FEATURES * UNITS) + first + index] = result[index];
    if (bias_partial != nullptr && blockIdx.y == 0 && threadIdx.x < UNITS)
        bias_partial[(long long)part * UNITS + threadIdx.x] = bias_sum;
}

#else

// sums[n][k] = sum over f of x[n][f] w[f][k]. A block takes TILE images at a time, gridDim.x tiles apart, while the next
// ones are on their way. Lanes have an image each, and TILE / 32 of them; warps share the features, each an equal number of 16 and
// what is left one by one.
constexpr int WARPS = THREADS / 32, PER_LANE = TILE / 32;
constexpr int STRETCHES = FEATURES / 16 / WARPS;  // of 16 features, a warp
constexpr int LEFT = STRETCHES * WARPS * 16;      // the first of the features that are left
// Rows of images: an odd number of 16 bytes, for banks.
constexpr int ROW = (blocks_of(FEATURES, 16) | 1) * 16;
constexpr int STEP = FEATURES % 16 == 0 ? 16 : FEATURES % 4 == 0 ? 4 : 1;  // bytes that are copied at once

DEVICE void copy_images(u8* to, const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control, int first_image) {
    constexpr int PER_IMAGE = FEATURES / STEP;
    for (int index = threadIdx.x; index < TILE * PER_IMAGE; index += THREADS) {
        const int row = index / PER_IMAGE, at = index % PER_IMAGE * STEP;
        if (first_image + row >= control->images) break;
        const u8* from = pixels + (long long)place_of(first_image + row, order, control) * FEATURES + at;
        if constexpr (STEP == 16) copy_16(to + row * ROW + at, from);
        else if constexpr (STEP == 4) copy_4(to + row * ROW + at, from);
        else to[row * ROW + at] = *from;
    }
}

// One pixel of each of a lane's images, times its feature's weights.
DEVICE void add_pixel(float (&sums)[PER_LANE][4 * QUADS], const float (&x)[PER_LANE], const float* weights) {
#pragma unroll
    for (int q = 0; q < QUADS; q++) {
        const float4 w = *(const float4*)(weights + 4 * q);
        const float four[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (4 * q + e < UNITS) sums[i][4 * q + e] = fmaf(x[i], four[e], sums[i][4 * q + e]);
    }
}

template <int WHICH>
DEVICE void add_word(float (&sums)[PER_LANE][4 * QUADS], const uint4 (&words)[PER_LANE], const float* weights) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float x[PER_LANE];
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            const u32 word = WHICH == 0 ? words[i].x : WHICH == 1 ? words[i].y : WHICH == 2 ? words[i].z : words[i].w;
            x[i] = normalised(e == 0 ? pixel_of<0>(word) : e == 1 ? pixel_of<1>(word) : e == 2 ? pixel_of<2>(word) : pixel_of<3>(word));
        }
        add_pixel(sums, x, weights + (4 * WHICH + e) * 4 * QUADS);
    }
}

KERNEL(THREADS, 1)
dense_pixels_product(const u8* RESTRICT pixels, const int* RESTRICT order, const Number::Type* RESTRICT w,
                     const Control* RESTRICT control, float* RESTRICT sums) {
    SHARED_MEMORY(shared);
    float* weights = (float*)shared;                     // [FEATURES][4 QUADS]
    float* gathered = weights + FEATURES * 4 * QUADS;    // [WARPS][UNITS][TILE]
    u8* images = (u8*)(gathered + WARPS * UNITS * TILE);  // [STAGES][TILE][ROW]
    const int lane = lane_of_warp(), warp = warp_of_block();
    wait_for_kernels_before();
    let_next_kernel_start();
    const int tiles = blocks_of(control->images, TILE);
    if (blockIdx.x >= tiles) return;
    copy_images(images, pixels, order, control, blockIdx.x * TILE);
    end_copies();
    for (int index = threadIdx.x; index < FEATURES * QUADS; index += THREADS) {
        const Number::Type* from = w + (long long)row_of(index / QUADS) * PITCH + index % QUADS * 4;
        const float2 a = Number::load_pair(from), b = Number::load_pair(from + 2);
        *(float4*)(weights + 4 * index) = float4{a.x, a.y, b.x, b.y};
    }
    int stage = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const bool more = tile + gridDim.x < tiles;
        if (STAGES > 1 && more) {
            copy_images(images + (1 - stage) * TILE * ROW, pixels, order, control, (tile + gridDim.x) * TILE);
            end_copies();
            copies_done<1>();
        } else {
            copies_done();
        }
        sync_block();
        const u8* mine = images + stage * TILE * ROW + lane * ROW;
        float total[PER_LANE][4 * QUADS] = {};
#pragma unroll 1
        for (int stretch = 0; stretch < STRETCHES; stretch++) {
            const int feature = (stretch * WARPS + warp) * 16;
            uint4 words[PER_LANE];
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) words[i] = *(const uint4*)(mine + i * 32 * ROW + feature);
            const float* row = weights + feature * 4 * QUADS;
            add_word<0>(total, words, row), add_word<1>(total, words, row);
            add_word<2>(total, words, row), add_word<3>(total, words, row);
        }
        for (int feature = LEFT + warp; feature < FEATURES; feature += WARPS) {
            float x[PER_LANE];
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) x[i] = normalised((float)mine[i * 32 * ROW + feature]);
            add_pixel(total, x, weights + feature * 4 * QUADS);
        }
#pragma unroll
        for (int k = 0; k < UNITS; k++)
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) gathered[(warp * UNITS + k) * TILE + i * 32 + lane] = total[i][k];
        sync_block();
        for (int index = threadIdx.x; index < TILE * PITCH; index += THREADS) {
            const int image = index / PITCH, unit = index % PITCH;
            float sum = 0.f;
            if (unit < UNITS) {
#pragma unroll
                for (int other = 0; other < WARPS; other++) sum += gathered[(other * UNITS + unit) * TILE + image];
            }
            if (tile * TILE + image < IMAGES) sums[(long long)(tile * TILE + image) * PITCH + unit] = sum;
        }
        if (STAGES > 1) {
            stage = 1 - stage;
        } else if (more) {
            copy_images(images, pixels, order, control, (tile + gridDim.x) * TILE);
            end_copies();
        }
        sync_block();
    }
}

#endif
