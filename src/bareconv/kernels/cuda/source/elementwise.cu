// What is done to each number by itself. OPERATION, and ENTRY its name in lower case:
//
//   COPY            y = a                       ADD              y = a + b, or relu(a + b) with RELU
//   RELU_FORWARD    y = max(a, 0)               RELU_BACKWARD    y = a where b > 0, else 0
//   DROPOUT         y = a / (1 - DROPPED) where a random number >= DROPPED, else 0
//
// IMAGE numbers of an image, padding channels included, a multiple of 8. ``y`` may be the same memory as a or b.
#include "vectors.cuh"

#define COPY 0
#define ADD 1
#define RELU_FORWARD 2
#define RELU_BACKWARD 3
#define DROPOUT 4
#define HAS_B (OPERATION == ADD || OPERATION == RELU_BACKWARD)

typedef Kept<PRECISION> Number;
typedef Number::Type Kind;
typedef Vector<PRECISION> Numbers;
constexpr int LENGTH = Numbers::LENGTH;

#if OPERATION == DROPOUT

// Ten rounds of Philox 4x32, as random.py has them: four random words for a number.
DEVICE void philox(u64 index, u32 step, u32 (&words)[4]) {
    u32 a = (u32)index, b = (u32)(index >> 32), c = step, d = STREAM;
    u32 key0 = SEED_LOW, key1 = SEED_HIGH;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 p = (u64)a * 0xD2511F53u, q = (u64)c * 0xCD9E8D57u;
        a = (u32)(q >> 32) ^ b ^ key0, b = (u32)q;
        c = (u32)(p >> 32) ^ d ^ key1, d = (u32)p;
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

// Which of the LENGTH channels at ``place`` of an image live, by bit. Random numbers are counted without the padding.
DEVICE u32 living(int image, int place, u32 step) {
    constexpr int PITCH = padded(CHANNELS);
    const u64 first = ((u64)image * (IMAGE / PITCH) + place / PITCH) * CHANNELS + place % PITCH;
    // Where pixels are whole fours of numbers, so are vectors.
    constexpr int FOURS = LENGTH / 4 + (CHANNELS % 4 != 0);
    const int skipped = CHANNELS % 4 != 0 ? (int)(first & 3) : 0;
    u32 bits = 0;
#pragma unroll
    for (int four = 0; four < FOURS; four++) {
        u32 words[4];
        philox((first >> 2) + four, step, words);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const bool lives = (float)(words[i] >> 8) * (1.f / 16777216.f) >= (float)(DROPPED);
            bits |= (u32)lives << (4 * four + i);
        }
    }
    return bits >> skipped;
}

#endif

KERNEL(THREADS, 4)
ENTRY(const Kind* a,
#if HAS_B
      const Kind* b,
#endif
      const Control* RESTRICT control, Kind* y) {
    wait_for_kernels_before();
    let_next_kernel_start();
    const long long count = (long long)control->images * (IMAGE / LENGTH);
    const long long first = (long long)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
    [[maybe_unused]] Numbers left[UNROLL], right[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const long long at = first + u * THREADS;
        if (at >= count) break;
        left[u] = Numbers::load(a + at * LENGTH);
#if HAS_B
        right[u] = Numbers::load(b + at * LENGTH);
#endif
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        const long long at = first + u * THREADS;
        if (at >= count) break;
        Numbers result = left[u];
        if constexpr (OPERATION != COPY) {
#if OPERATION == DROPOUT
            const int image = (int)(at / (IMAGE / LENGTH)), place = (int)(at % (IMAGE / LENGTH)) * LENGTH;
            const u32 lives = living(image, place, (u32)(control->first_step + control->position));
#endif
            float values[LENGTH];
#pragma unroll
            for (int i = 0; i < LENGTH; i++) {
                const float value = left[u][i];
#if OPERATION == ADD
                const float sum = value + right[u][i];
                values[i] = RELU ? relu(sum) : sum;
#elif OPERATION == RELU_FORWARD
                values[i] = relu(value);
#elif OPERATION == RELU_BACKWARD
                values[i] = right[u][i] > 0.f ? value : 0.f;
#elif OPERATION == DROPOUT
                values[i] = lives >> i & 1 ? value * (float)(1.0 / (1.0 - (DROPPED))) : 0.f;
#endif
            }
            result = Numbers::of(values);
        }
        result.store(y + at * LENGTH);
    }
}
