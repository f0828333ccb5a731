// The end of a classifier and the start of its backward pass, in one launch, for layers 0 .. LAYERS - 1 of UNITS_i units:
//
//   h_0 = relu?(sum over splits of sums[split] + bias_0)                        from dense_product
//   h_i = relu?(h_(i-1) w_i + bias_i)                                           the last are the logits, without relu
//   loss, hit, dz of the logits: softmax.cuh
//   dz_(i-1) = (dz_i w_i^T) where h_(i-1) > 0                                   gradients before the relu
//
// A block: TILE images. What it works on lies in shared memory with the images innermost, so that a thread multiplies
// a weight with TOGETHER images at once. BACKWARD 0 ends with the loss.
#include "matrix.cuh"
#include "softmax.cuh"

typedef Kept<PRECISION> Number;

#if LAYERS == 1
constexpr int LOGIT_UNITS = UNITS_0;
#elif LAYERS == 2
constexpr int LOGIT_UNITS = UNITS_1;
#else
constexpr int LOGIT_UNITS = UNITS_2;
#endif
constexpr int SEGMENT = Segment<PRECISION>::SIZE;
constexpr int TOGETHER = TILE < 4 ? TILE : 4;
static_assert(TILE % TOGETHER == 0 && TOGETHER != 3, "images are loaded by 1, 2 or 4");

// Rows of weights in shared memory: an odd number of segments, so that segments of neighbouring rows lie in different
// banks.
constexpr int row_pitch(int units) { return padded(units) + (padded(units) / SEGMENT % 2 == 0 ? SEGMENT : 0); }

// TOGETHER images of one feature.
DEVICE void load_images(float (&values)[TOGETHER], const float* from) {
    if constexpr (TOGETHER == 4) {
        const float4 four = *(const float4*)from;
        values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else if constexpr (TOGETHER == 2) {
        const float2 two = *(const float2*)from;
        values[0] = two.x, values[1] = two.y;
    } else {
        values[0] = from[0];
    }
}

template <int ROWS, int UNITS>
DEVICE void copy_weights(Number::Type* to, const Number::Type* RESTRICT from) {
    constexpr int PER_ROW = padded(UNITS) / SEGMENT, COUNT = padded(ROWS) * PER_ROW;
    for (int index = threadIdx.x; index < COUNT; index += THREADS) {
        const int row = index / PER_ROW, column = index % PER_ROW * SEGMENT;
        copy_16(to + row * row_pitch(UNITS) + column, from + row * padded(UNITS) + column);
    }
}

// A layer's bias, zeros where it has none.
template <int UNITS>
DEVICE void copy_bias(float* to, const float* RESTRICT from) {
    for (int unit = threadIdx.x; unit < padded(UNITS); unit += THREADS)
        to[unit] = from != nullptr && unit < UNITS ? from[unit] : 0.f;
}

// Shared [unit][TILE] to global rows of images.
template <int UNITS>
DEVICE void write_out(Number::Type* RESTRICT to, const float* from, int first_image) {
    constexpr int PER_ROW = padded(UNITS) / SEGMENT;
    for (int index = threadIdx.x; index < TILE * PER_ROW; index += THREADS) {
        const int image = index / PER_ROW, unit = index % PER_ROW * SEGMENT;
        if (first_image + image >= IMAGES) continue;
        float values[SEGMENT];
#pragma unroll
        for (int e = 0; e < SEGMENT; e++) values[e] = from[(unit + e) * TILE + image];
        Segment<PRECISION>::store(to + (long long)(first_image + image) * padded(UNITS) + unit, values);
    }
}

// How many lanes share a number of a layer, each a part of the sum: as many as there are threads for.
constexpr int lanes_for(int numbers, int terms) {
    int lanes = 1;
    while (lanes < 32 && 2 * lanes * numbers <= THREADS && 2 * lanes <= terms) lanes *= 2;
    return lanes;
}

// h (UNITS) = relu?(below (INPUTS) w + bias), both [unit][TILE]. ROUND: as it is written out; logits are not.
template <int INPUTS, int UNITS, bool RELU, bool ROUND>
DEVICE void layer_forward(float* h, const float* below, const Number::Type* w, const float* bias) {
    constexpr int ROW = row_pitch(UNITS), NUMBERS = padded(UNITS) * (TILE / TOGETHER);
    constexpr int SHARERS = lanes_for(NUMBERS, INPUTS), WORK = NUMBERS * SHARERS;
    for (int begin = 0; begin < WORK; begin += THREADS) {
        const int index = begin + threadIdx.x, lane = index % SHARERS;
        const int number = min(index / SHARERS, NUMBERS - 1);
        const int unit = number % padded(UNITS), image = number / padded(UNITS) * TOGETHER;
        float sums[TOGETHER] = {};
#pragma unroll 8
        for (int k = lane; k < INPUTS; k += SHARERS) {
            const float weight = to_float(w[k * ROW + unit]);
            float values[TOGETHER];
            load_images(values, below + k * TILE + image);
#pragma unroll
            for (int n = 0; n < TOGETHER; n++) sums[n] = fmaf(values[n], weight, sums[n]);
        }
#pragma unroll
        for (int mask = 1; mask < SHARERS; mask *= 2)
#pragma unroll
            for (int n = 0; n < TOGETHER; n++) sums[n] += shuffle_xor(sums[n], mask);
        if (lane != 0 || index >= WORK) continue;
        const float more = bias[unit];
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            const float value = RELU ? relu(sums[n] + more) : sums[n] + more;
            h[unit * TILE + image + n] = ROUND ? to_float(Number::of(value)) : value;
        }
    }
}

// dz of the layer below: (dz w^T), zero where a relu had let nothing through; it takes the place of ``below``.
template <int INPUTS, int UNITS, bool RELU>
DEVICE void layer_backward(float* below, const float* dz, const Number::Type* w) {
    constexpr int ROW = row_pitch(UNITS), NUMBERS = padded(INPUTS) * (TILE / TOGETHER);
    for (int number = threadIdx.x; number < NUMBERS; number += THREADS) {
        const int input = number % padded(INPUTS), image = number / padded(INPUTS) * TOGETHER;
        float sums[TOGETHER] = {};
#pragma unroll 4
        for (int unit = 0; unit < padded(UNITS); unit += SEGMENT) {
            float weights[SEGMENT];
            Segment<PRECISION>::load(weights, w + input * ROW + unit);
#pragma unroll
            for (int e = 0; e < SEGMENT; e++) {
                float values[TOGETHER];
                load_images(values, dz + (unit + e) * TILE + image);
#pragma unroll
                for (int n = 0; n < TOGETHER; n++) sums[n] = fmaf(values[n], weights[e], sums[n]);
            }
        }
#pragma unroll
        for (int n = 0; n < TOGETHER; n++) {
            float* at = below + input * TILE + image + n;
            *at = RELU && *at <= 0.f ? 0.f : to_float(Number::of(sums[n]));
        }
    }
}

// h_0 from the sums of all splits. Threads beside each other take four units; where they are more than that, they share
// the splits, and ``gathered`` holds what each group has.
DEVICE void add_splits(float* h, float* gathered, const float* RESTRICT sums, const float* bias, int first_image) {
    constexpr int PITCH = padded(UNITS_0), QUADS = TILE * PITCH / 4;
    constexpr int GROUPS = QUADS < THREADS ? (THREADS / QUADS < SPLITS ? THREADS / QUADS : SPLITS) : 1;
    const int group = threadIdx.x / QUADS;
    const auto keep = [&](int place, float sum) {
        const int image = place / PITCH, unit = place % PITCH;
        sum += bias[unit];
        const float value = RELU_0 ? relu(sum) : sum;
        h[unit * TILE + image] = LAYERS > 1 ? to_float(Number::of(value)) : value;
    };
    for (int quad = GROUPS > 1 ? threadIdx.x % QUADS : threadIdx.x; quad < QUADS; quad += GROUPS > 1 ? QUADS : THREADS) {
        if (GROUPS > 1 && group >= GROUPS) break;
        const int image = first_image + quad / (PITCH / 4);
        float4 sum = {0.f, 0.f, 0.f, 0.f};
        if (image < IMAGES) {
            const float* from = sums + (long long)first_image * PITCH + 4 * quad;
#pragma unroll 8
            for (int split = GROUPS > 1 ? group : 0; split < SPLITS; split += GROUPS) {
                const float4 part = *(const float4*)(from + (long long)split * IMAGES * PITCH);
                sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
            }
        }
        if constexpr (GROUPS > 1) {
            *(float4*)(gathered + 4 * (group * QUADS + quad)) = sum;
        } else {
            keep(4 * quad, sum.x), keep(4 * quad + 1, sum.y), keep(4 * quad + 2, sum.z), keep(4 * quad + 3, sum.w);
        }
    }
    if constexpr (GROUPS > 1) {
        sync_block();
        for (int place = threadIdx.x; place < 4 * QUADS; place += THREADS) {
            float sum = 0.f;
#pragma unroll
            for (int other = 0; other < GROUPS; other++) sum += gathered[other * 4 * QUADS + place];
            keep(place, sum);
        }
    }
}

KERNEL(THREADS, 1)
head(const float* RESTRICT sums, const float* RESTRICT bias_0,
#if LAYERS > 1
     const Number::Type* RESTRICT w_1, const float* RESTRICT bias_1,
#endif
#if LAYERS > 2
     const Number::Type* RESTRICT w_2, const float* RESTRICT bias_2,
#endif
     const int* RESTRICT labels, const int* RESTRICT order, const Control* RESTRICT control,
#if LAYERS > 1
     Number::Type* RESTRICT h_0,
#endif
#if LAYERS > 2
     Number::Type* RESTRICT h_1,
#endif
     Number::Type* RESTRICT logits,
#if BACKWARD
     Number::Type* RESTRICT dz_0,
#if LAYERS > 1
     Number::Type* RESTRICT dz_1,
#endif
#if LAYERS > 2
     Number::Type* RESTRICT dz_2,
#endif
#endif
     float* RESTRICT image_loss, int* RESTRICT image_hit, int* RESTRICT position) {
    SHARED_MEMORY(shared);
    const int first_image = blockIdx.x * TILE;
    // Everything that is a multiple of 16 bytes long comes one after the other.
    u8* rest = shared;
    const auto take = [&](int bytes) {
        u8* mine = rest;
        rest += bytes;
        return mine;
    };
    float* values_0 = (float*)take(padded(UNITS_0) * TILE * 4);
    float* biases_0 = (float*)take(padded(UNITS_0) * 4);
    int* label_of = (int*)take(blocks_of(TILE, 4) * 16);
    float* gradient = (float*)take(padded(LOGIT_UNITS) * TILE * 4);
#if LAYERS > 1
    float* values_1 = (float*)take(padded(UNITS_1) * TILE * 4);
    float* biases_1 = (float*)take(padded(UNITS_1) * 4);
    Number::Type* weights_1 = (Number::Type*)take(padded(UNITS_0) * row_pitch(UNITS_1) * Number::BYTES);
#endif
#if LAYERS > 2
    float* values_2 = (float*)take(padded(UNITS_2) * TILE * 4);
    float* biases_2 = (float*)take(padded(UNITS_2) * 4);
    Number::Type* weights_2 = (Number::Type*)take(padded(UNITS_1) * row_pitch(UNITS_2) * Number::BYTES);
#endif
    float* gathered = (float*)rest;
    // Only the sums are written by the kernel just before, and that has waited for those before it.
    const int images = control->images;
#if LAYERS > 1
    copy_weights<UNITS_0, UNITS_1>(weights_1, w_1);
    copy_bias<UNITS_1>(biases_1, bias_1);
#endif
#if LAYERS > 2
    copy_weights<UNITS_1, UNITS_2>(weights_2, w_2);
    copy_bias<UNITS_2>(biases_2, bias_2);
#endif
    end_copies();
    copy_bias<UNITS_0>(biases_0, bias_0);
    for (int image = threadIdx.x; image < TILE && first_image + image < images; image += THREADS)
        label_of[image] = labels[place_of(first_image + image, order, control)];
    wait_for_kernels_before();
    let_next_kernel_start();
    hand_on(position, control);
    if (first_image >= images) {
        copies_done();
        return;
    }
    sync_block();
    add_splits(values_0, gathered, sums, biases_0, first_image);
    copies_done();
    sync_block();
    const float* last = values_0;
#if LAYERS > 1
    write_out<UNITS_0>(h_0, values_0, first_image);
    layer_forward<UNITS_0, UNITS_1, LAYERS == 3 && RELU_1, LAYERS == 3>(values_1, values_0, weights_1, biases_1);
    sync_block();
    last = values_1;
#endif
#if LAYERS > 2
    write_out<UNITS_1>(h_1, values_1, first_image);
    layer_forward<UNITS_1, UNITS_2, false, false>(values_2, values_1, weights_2, biases_2);
    sync_block();
    last = values_2;
#endif
    if (logits != nullptr) write_out<LOGIT_UNITS>(logits, last, first_image);
    // LANES threads an image. Those without one go along, for their neighbours need them.
    for (int begin = 0; begin < TILE * LANES; begin += THREADS) {
        const int mine = (begin + threadIdx.x) / LANES, image = first_image + mine;
        const bool in_tile = mine < TILE, there = in_tile && image < images;
        const float* row = last + (in_tile ? mine : 0);
        const int label = there ? label_of[mine] : 0;
        const Outcome outcome = softmax_cross_entropy<LOGIT_UNITS, LANES>(
            [&](int k) { return row[k * TILE]; }, label, (float)(SMOOTHING), images,
            [&](int k, float value) {
                if (BACKWARD && in_tile) gradient[k * TILE + mine] = there ? to_float(Number::of(value)) : 0.f;
            });
        if (there && threadIdx.x % LANES == 0) image_loss[image] = outcome.loss, image_hit[image] = outcome.hit;
    }
#if BACKWARD
    for (int index = LOGIT_UNITS * TILE + threadIdx.x; index < padded(LOGIT_UNITS) * TILE; index += THREADS)
        gradient[index] = 0.f;
    sync_block();
#if LAYERS == 1
    write_out<UNITS_0>(dz_0, gradient, first_image);
#elif LAYERS == 2
    write_out<UNITS_1>(dz_1, gradient, first_image);
    layer_backward<UNITS_0, UNITS_1, RELU_0>(values_0, gradient, weights_1);
#else
    write_out<UNITS_2>(dz_2, gradient, first_image);
    layer_backward<UNITS_1, UNITS_2, RELU_1>(values_1, gradient, weights_2);
    sync_block();
    write_out<UNITS_1>(dz_1, values_1, first_image);
    layer_backward<UNITS_0, UNITS_1, RELU_0>(values_0, values_1, weights_1);
#endif
#if LAYERS > 1
    sync_block();
    write_out<UNITS_0>(dz_0, values_0, first_image);
#endif
#endif
}
