// A step's images: those that the order names, gathered, normalised, in the precision that the first layer reads.
//
//   y[n][pixel][c] = (pixels[order[position * batch + n]][pixel][c] - MEAN) / STD,   zeros in the padding channels
//
// PIXELS of an image, CHANNELS, PRECISION. ``order`` null: the images as they lie. A thread does UNROLL vectors of one
// image, all of whose loads are under way at once.
#include "vectors.cuh"

typedef Kept<PRECISION> Number;
typedef Vector<PRECISION> Numbers;
constexpr int N = Numbers::LENGTH, VECTORS = padded(CHANNELS) / N;  // of a pixel

KERNEL(THREADS, 1)
prepare(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control, Number::Type* RESTRICT y) {
    const int first = blockIdx.x * (THREADS * UNROLL) + threadIdx.x, image = blockIdx.y;
    wait_for_kernels_before();
    let_next_kernel_start();
    if (image >= control->images) return;
    const u8* from = pixels + (long long)place_of(image, order, control) * (PIXELS * CHANNELS);
    Number::Type* to = y + (long long)image * (PIXELS * VECTORS * N);
    u8 bytes[UNROLL][N];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const int vector = first + u * THREADS, pixel = vector / VECTORS, channel = vector % VECTORS * N;
        const bool there = vector < PIXELS * VECTORS;
#pragma unroll
        for (int i = 0; i < N; i++)
            bytes[u][i] = there && channel + i < CHANNELS ? from[pixel * CHANNELS + channel + i] : 0;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const int vector = first + u * THREADS, channel = vector % VECTORS * N;
        if (vector >= PIXELS * VECTORS) break;
        float values[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            values[i] = channel + i < CHANNELS ? ((float)bytes[u][i] - (float)(MEAN)) * (float)(1.0 / (STD)) : 0.f;
        Numbers::of(values).store(to + vector * N);
    }
}
