// A step's images: those that the order names, gathered, normalised, in the precision that the first layer reads.
//
//   y[n][pixel][c] = (pixels[order[position * batch + n]][pixel][c] - MEAN) / STD,   zeros in the padding channels
//
// PIXELS of an image, CHANNELS, PRECISION. ``order`` null: the images as they lie. A block does THREADS numbers.
#include "portable.cuh"

typedef Kept<PRECISION> Number;

KERNEL(THREADS, 1)
prepare(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control, Number::Type* RESTRICT y) {
    constexpr int PITCH = padded(CHANNELS);
    const int index = blockIdx.x * THREADS + threadIdx.x, image = blockIdx.y;
    wait_for_kernels_before();
    let_next_kernel_start();
    if (index >= PIXELS * PITCH || image >= control->images) return;
    const int pixel = index / PITCH, channel = index % PITCH;
    float value = 0.f;
    if (channel < CHANNELS) {
        const int place = control->position * control->batch + image;
        const long long chosen = order == nullptr ? place : order[place];
        value = ((float)pixels[(chosen * PIXELS + pixel) * CHANNELS + channel] - (float)(MEAN)) * (float)(1.0 / (STD));
    }
    y[(long long)image * (PIXELS * PITCH) + index] = Number::of(value);
}
