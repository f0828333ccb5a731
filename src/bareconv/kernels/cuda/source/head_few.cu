// What head.cu does, for layers of few units and many images: a thread has an image, all of its numbers in registers.
#include "matrix.cuh"
#include "softmax.cuh"

typedef Kept<PRECISION> Number;
typedef Number::Type Type;

#if LAYERS == 1
constexpr int LOGIT_UNITS = UNITS_0;
#elif LAYERS == 2
constexpr int LOGIT_UNITS = UNITS_1;
#else
constexpr int LOGIT_UNITS = UNITS_2;
#endif
constexpr int SEGMENT = Segment<PRECISION>::SIZE;

// Weights, and the bias in the row after them, as floats: [padded(INPUTS) + 1][padded(UNITS)].
template <int INPUTS, int UNITS>
DEVICE void copy_layer(float* to, const Type* RESTRICT w, const float* RESTRICT bias) {
    constexpr int PITCH = padded(UNITS), COUNT = padded(INPUTS) * PITCH;
    for (int index = threadIdx.x; index < COUNT; index += THREADS) to[index] = to_float(w[index]);
    for (int unit = threadIdx.x; unit < PITCH; unit += THREADS)
        to[COUNT + unit] = bias != nullptr && unit < UNITS ? bias[unit] : 0.f;
}

template <int COUNT>
DEVICE void load_row(float (&values)[COUNT], const float* from) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
        const float4 four = *(const float4*)(from + i);
        values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    }
}

template <int COUNT>
DEVICE void write_row(Type* to, const float (&values)[COUNT], int image) {
#pragma unroll
    for (int i = 0; i < COUNT; i += SEGMENT) {
        float segment[SEGMENT];
#pragma unroll
        for (int e = 0; e < SEGMENT; e++) segment[e] = values[i + e];
        Segment<PRECISION>::store(to + (long long)image * COUNT + i, segment);
    }
}

// As it is written out, and as the next layer reads it.
template <bool RELU, int COUNT>
DEVICE void finish(float (&values)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = to_float(Number::of(RELU ? fmaxf(values[i], 0.f) : values[i]));
}

template <int INPUTS, int UNITS>
DEVICE void layer_forward(float (&h)[padded(UNITS)], const float (&below)[padded(INPUTS)], const float* layer) {
    load_row(h, layer + padded(INPUTS) * padded(UNITS));
#pragma unroll
    for (int k = 0; k < INPUTS; k++) {
        sync_warp();  // or the compiler keeps weights in registers, more than there are
        float row[padded(UNITS)];
        load_row(row, layer + k * padded(UNITS));
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) h[unit] = fmaf(below[k], row[unit], h[unit]);
    }
}

// The gradient of what is below takes its place.
template <int INPUTS, int UNITS, bool RELU>
DEVICE void layer_backward(float (&below)[padded(INPUTS)], const float (&dz)[padded(UNITS)], const float* layer) {
#pragma unroll
    for (int k = 0; k < INPUTS; k++) {
        sync_warp();
        float row[padded(UNITS)], sum = 0.f;
        load_row(row, layer + k * padded(UNITS));
#pragma unroll
        for (int unit = 0; unit < UNITS; unit++) sum = fmaf(dz[unit], row[unit], sum);
        below[k] = RELU && below[k] <= 0.f ? 0.f : to_float(Number::of(sum));
    }
}

KERNEL(THREADS, 1)
head_few(const float* RESTRICT sums, const float* RESTRICT bias_0,
#if LAYERS > 1
         const Type* RESTRICT w_1, const float* RESTRICT bias_1,
#endif
#if LAYERS > 2
         const Type* RESTRICT w_2, const float* RESTRICT bias_2,
#endif
         const int* RESTRICT labels, const int* RESTRICT order, const Control* RESTRICT control,
#if LAYERS > 1
         Type* RESTRICT h_0,
#endif
#if LAYERS > 2
         Type* RESTRICT h_1,
#endif
         Type* RESTRICT logits,
#if BACKWARD
         Type* RESTRICT dz_0,
#if LAYERS > 1
         Type* RESTRICT dz_1,
#endif
#if LAYERS > 2
         Type* RESTRICT dz_2,
#endif
#endif
         float* RESTRICT image_loss, int* RESTRICT image_hit, int* RESTRICT position) {
    SHARED_MEMORY(shared);
    constexpr int PITCH = padded(UNITS_0);
    float* biases = (float*)shared;  // of layer 0
    const int thread = blockIdx.x * THREADS + threadIdx.x;
    // Only the sums are written by the kernel just before, and that has waited for those before it.
    const int images = control->images;
    // The last warp's threads stay together: those without an image do the last one, too.
    const int image = min(thread, images - 1);
    const int label = images > 0 ? labels[place_of(image, order, control)] : 0;
    for (int unit = threadIdx.x; unit < PITCH; unit += THREADS)
        biases[unit] = bias_0 != nullptr && unit < UNITS_0 ? bias_0[unit] : 0.f;
#if LAYERS > 1
    float* layer_1 = biases + PITCH;
    copy_layer<UNITS_0, UNITS_1>(layer_1, w_1, bias_1);
#endif
#if LAYERS > 2
    float* layer_2 = layer_1 + (PITCH + 1) * padded(UNITS_1);
    copy_layer<UNITS_1, UNITS_2>(layer_2, w_2, bias_2);
#endif
    sync_block();
    wait_for_kernels_before();
    let_next_kernel_start();
    hand_on(position, control);
    if (thread / 32 * 32 >= images) return;
    float h0[PITCH];
    load_row(h0, biases);
#pragma unroll 1
    for (int split = 0; split < SPLITS; split++) {
        float part[PITCH];
        load_row(part, sums + ((long long)split * IMAGES + image) * PITCH);
#pragma unroll
        for (int i = 0; i < PITCH; i++) h0[i] += part[i];
    }
#if LAYERS == 1
    const auto& last = h0;
#else
    finish<RELU_0>(h0);
    write_row(h_0, h0, image);
    float h1[padded(UNITS_1)];
    layer_forward<UNITS_0, UNITS_1>(h1, h0, layer_1);
#endif
#if LAYERS == 2
    const auto& last = h1;
#elif LAYERS == 3
    finish<RELU_1>(h1);
    write_row(h_1, h1, image);
    float h2[padded(UNITS_2)];
    layer_forward<UNITS_1, UNITS_2>(h2, h1, layer_2);
    const auto& last = h2;
#endif
    if (logits != nullptr) write_row(logits, last, image);
    float gradient[padded(LOGIT_UNITS)] = {};
    const Outcome outcome = softmax_cross_entropy<LOGIT_UNITS, 1>(
        [&](int k) { return last[k]; }, label, (float)(SMOOTHING), images,
        [&](int k, float value) { gradient[k] = to_float(Number::of(value)); });
    image_loss[image] = outcome.loss, image_hit[image] = outcome.hit;
#if BACKWARD
#if LAYERS == 1
    write_row(dz_0, gradient, image);
#elif LAYERS == 2
    write_row(dz_1, gradient, image);
    layer_backward<UNITS_0, UNITS_1, RELU_0>(h0, gradient, layer_1);
    write_row(dz_0, h0, image);
#else
    write_row(dz_2, gradient, image);
    layer_backward<UNITS_1, UNITS_2, RELU_1>(h1, gradient, layer_2);
    write_row(dz_1, h1, image);
    layer_backward<UNITS_0, UNITS_1, RELU_0>(h0, h1, layer_1);
    write_row(dz_0, h0, image);
#endif
#endif
}
