// Softmax cross-entropy of one image by SPREAD neighbouring lanes of a warp, with label smoothing s:
//
//   p = exp(z - max z) / total, total = sum exp(z - max z)      t[k] = (1 - s) [k == label] + s / K
//   loss = -sum over k of t[k] log p[k] = log total - (1 - s) (z[label] - max z) - s / K sum over k of (z[k] - max z)
//   gradient[k] = (p[k] - t[k]) / images
//
// for the t sum to 1. Neither side of the difference is negative: nothing cancels.
#pragma once
#include "portable.cuh"

struct Outcome {
    float loss;
    int hit;  // whether the first maximum is the label
};

// ``logit(k)`` is class k's, for any k below K; ``gradient(k, value)`` takes what the lane makes of its classes.
// All lanes of the warp must come here. ``images`` of the step.
template <int K, int SPREAD, class Logit, class Gradient>
DEVICE Outcome softmax_cross_entropy(Logit&& logit, int label, float smoothing, int images, Gradient&& gradient) {
    const int lane = threadIdx.x % SPREAD;
    const float share = smoothing / K;
    float top = -3.402823466e38f;
    int best = K;
    // A lane that has all classes has them in registers, which have no addresses.
#pragma unroll(SPREAD == 1 ? K : 1)
    for (int k = lane; k < K; k += SPREAD) {
        const float z = logit(k);
        if (z > top || best == K) top = z, best = k;
    }
#pragma unroll
    for (int mask = 1; mask < SPREAD; mask *= 2) {
        const float other = shuffle_xor(top, mask);
        const int its = shuffle_xor(best, mask);
        if (other > top || (other == top && its < best)) top = other, best = its;
    }
    float total = 0.f, below = 0.f, chosen = 0.f;  // sums of exp(z - top), z - top, and z - top of the label
#pragma unroll(SPREAD == 1 ? K : 1)
    for (int k = lane; k < K; k += SPREAD) {
        const float z = logit(k) - top;
        total += expf(z), below += z;
        if (k == label) chosen = z;
    }
#pragma unroll
    for (int mask = 1; mask < SPREAD; mask *= 2) {
        total += shuffle_xor(total, mask);
        below += shuffle_xor(below, mask);
        chosen += shuffle_xor(chosen, mask);
    }
    const float scale = 1.f / images, inverse = 1.f / total;
#pragma unroll(SPREAD == 1 ? K : 1)
    for (int k = lane; k < K; k += SPREAD) {
        const float target = (k == label ? 1.f - smoothing : 0.f) + share;
        gradient(k, (expf(logit(k) - top) * inverse - target) * scale);
    }
    return {logf(total) - (1.f - smoothing) * chosen - share * below, best == label};
}
