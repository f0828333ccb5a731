// Softmax cross-entropy, from logits (IMAGES, padded(CLASSES)): see softmax.cuh for the formulas.
//
// LANES threads an image. dlogits have zeros in the padding columns.
#include "softmax.cuh"

typedef Kept<PRECISION> Number;

KERNEL(THREADS, 1)
softmax_loss(const Number::Type* RESTRICT logits, const int* RESTRICT labels, const int* RESTRICT order,
             const Control* RESTRICT control,
             Number::Type* RESTRICT dlogits, float* RESTRICT image_loss, int* RESTRICT image_hit, int* RESTRICT position) {
    constexpr int PITCH = padded(CLASSES);
    const int image = (blockIdx.x * THREADS + threadIdx.x) / LANES, lane = threadIdx.x % LANES;
    wait_for_kernels_before();
    let_next_kernel_start();
    hand_on(position, control);
    const int images = control->images;
    // Lanes without an image go along with the first one's, for their neighbours need them; they write nothing.
    const bool there = image < images;
    const long long row = (long long)(there ? image : 0) * PITCH;
    const int label = there ? labels[place_of(image, order, control)] : 0;
    const Outcome outcome = softmax_cross_entropy<CLASSES, LANES>(
        [&](int k) { return to_float(logits[row + k]); }, label, (float)(SMOOTHING), images,
        [&](int k, float value) {
            if (there) dlogits[row + k] = Number::of(value);
        });
    if (!there) return;
    for (int k = CLASSES + lane; k < PITCH; k += LANES) dlogits[row + k] = Number::of(0.f);
    if (lane == 0) image_loss[image] = outcome.loss, image_hit[image] = outcome.hit;
}
