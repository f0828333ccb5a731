// What the kernels of a network's first block in float32 share, beyond stem.cuh's sizes: there are no matrices here.
// Backward, of a square that B's pool compares only one output has a gradient, so sums run over squares: a warp has 32 of
// A's channels, one a lane, and for each square and filter the whole warp goes the same way, that of the maximum's place.
#pragma once
#include "stem.cuh"

static_assert(PRECISION == FLOAT32 && B_POOL, "what these kernels are for");

constexpr int A_INPUTS = A_TAPS * CHANNELS;  // numbers that an output of A is made of

// Pixels as A wants them, (pixel - mean) / std, in planes of one channel: local (0, 0) is row ``first_row`` of the image,
// A_PADDING_W + MARGIN to its left; zeros outside of it.
template <int ROWS_, int COLUMNS_, int MARGIN = 0>
struct Planes {
    static constexpr int ROWS = ROWS_, PITCH = blocks_of(COLUMNS_, 4) * 4, PLANE = ROWS * PITCH;
    static constexpr int BYTES = CHANNELS * PLANE * 4;
    DEVICE static void spread(float* to, const u8* image, int first_row, int thread) {
        for (int i = thread; i < CHANNELS * PLANE; i += THREADS) {
            const int channel = i / PLANE, h = first_row + i / PITCH % ROWS, w = i % PITCH - A_PADDING_W - MARGIN;
            float value = 0.f;
            if (h >= 0 && h < HEIGHT && w >= 0 && w < WIDTH)
                value = ((float)image[(h * WIDTH + w) * CHANNELS + channel] - (float)(MEAN)) * (float)(1.0 / (STD));
            to[i] = value;
        }
    }
};

// The row of A's working copy that its input number ``input`` has: [tap][padded channels].
DEVICE constexpr int row_of_input(int input) { return input / CHANNELS * padded(CHANNELS) + input % CHANNELS; }

// Four numbers at a multiple of 16 bytes.
DEVICE void load_four(float* to, const float* from) {
    const float4 four = *(const float4*)from;
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

// The place of a square's maximum, the first of several, and the maximum.
DEVICE int largest(float& most, float first, float right, float below, float last) {
    int place = right > first ? 1 : 0;
    most = fmaxf(first, right);
    const int lower = last > below ? 3 : 2;
    const float other = fmaxf(below, last);
    place = other > most ? lower : place;
    most = fmaxf(most, other);
    return place;
}
