// y[n][k] = relu?(sum over splits of sums[split][n][k] + bias[k]): what remains of a dense layer after dense_product.
//
// A thread: four units of an image.
#include "portable.cuh"

typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);

KERNEL(THREADS, 1)
dense_finish(const float* RESTRICT sums, const float* RESTRICT bias, const Control* RESTRICT control,
             Number::Type* RESTRICT y) {
    const int index = blockIdx.x * THREADS + threadIdx.x, image = index / (PITCH / 4), unit = index % (PITCH / 4) * 4;
    wait_for_kernels_before();
    let_next_kernel_start();
    if (image >= control->images) return;
    const float* from = sums + (long long)image * PITCH + unit;
    float4 sum = *(const float4*)from;
#pragma unroll 8
    for (int split = 1; split < SPLITS; split++) {
        const float4 part = *(const float4*)(from + (long long)split * IMAGES * PITCH);
        sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (bias != nullptr && unit + e < UNITS) values[e] += bias[unit + e];
        if (RELU) values[e] = relu(values[e]);
    }
    Number::Type* to = y + (long long)image * PITCH + unit;
    Number::store_pair(to, values[0], values[1]);
    Number::store_pair(to + 2, values[2], values[3]);
}
