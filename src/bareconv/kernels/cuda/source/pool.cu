// Pooling: the maximum or the mean of each window, channel by channel. Formulas: ops/pool.py.
//
//   y[n][p][q][c] = max or mean over taps of x[n][p STRIDE_H + r DILATION_H - PADDING_H][...][c]
//
// KIND: MAXIMUM or AVERAGE. x (images, HEIGHT, WIDTH, CHANNELS), y (images, POOLED_H, POOLED_W, CHANNELS) in PRECISION.
// ``where``, laid out as y, has the tap r KERNEL_W + s that won, in one byte or two (Where); with RELU, y is relu of the
// maximum, and where that is zero no tap has won: NOBODY. So backward through relu and pool reads no more than that.
//
// Forward, SHARES threads go over a window's taps, for few large windows; backward, a thread gathers what the windows
// over its pixel give it, in their order: no sum depends on which block was first.
#include "vectors.cuh"

#define MAXIMUM 0
#define AVERAGE 1

typedef Kept<PRECISION> Number;
typedef Number::Type Kind;
typedef Vector<PRECISION> Numbers;
constexpr int N = Numbers::LENGTH, PITCH = padded(CHANNELS), VECTORS = PITCH / N, TAPS = KERNEL_H * KERNEL_W;

#if WHERE_BYTES == 1
typedef u8 Where;
#else
typedef u16 Where;
#endif
constexpr int NOBODY = (1 << (8 * WHERE_BYTES)) - 1;

// Taps of a vector's channels, read and written at once.
struct Taps {
    static constexpr int WORDS = N * WHERE_BYTES / 4, EACH = 4 / WHERE_BYTES;
    u32 words[WORDS];

    DEVICE static Taps load(const Where* from) {
        Taps result;
        if constexpr (WORDS == 1) {
            result.words[0] = *(const u32*)from;
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i += 2) {
                const uint2 two = *(const uint2*)((const u32*)from + i);
                result.words[i] = two.x, result.words[i + 1 < WORDS ? i + 1 : i] = two.y;
            }
        }
        return result;
    }
    DEVICE void store(Where* to) const {
        if constexpr (WORDS == 1) {
            *(u32*)to = words[0];
        } else {
#pragma unroll
            for (int i = 0; i < WORDS; i += 2) *(uint2*)((u32*)to + i) = uint2{words[i], words[i + 1 < WORDS ? i + 1 : i]};
        }
    }
    DEVICE int operator[](int i) const { return words[i / EACH] >> (8 * WHERE_BYTES * (i % EACH)) & NOBODY; }
    DEVICE static Taps of(const int (&taps)[N]) {
        Taps result;
#pragma unroll
        for (int word = 0; word < WORDS; word++) {
            result.words[word] = 0;
#pragma unroll
            for (int i = 0; i < EACH; i++) result.words[word] |= (u32)taps[word * EACH + i] << (8 * WHERE_BYTES * i);
        }
        return result;
    }
};

#if defined(FORWARD)

KERNEL(THREADS, 2)
#if KIND == MAXIMUM
max_pool(const Kind* RESTRICT x, const Control* RESTRICT control,
#if HAS_WHERE
         Where* RESTRICT where,
#endif
         Kind* RESTRICT y) {
#else
avg_pool(const Kind* RESTRICT x, const Control* RESTRICT control, Kind* RESTRICT y) {
#endif
    SHARED_MEMORY(memory);
    constexpr int ITEMS = THREADS / SHARES, EACH = blocks_of(TAPS, SHARES), AT_ONCE = EACH <= 9 ? EACH : 8;
    constexpr bool INSIDE = PADDING_H == 0 && PADDING_W == 0;
    const int item = threadIdx.x % ITEMS, share = threadIdx.x / ITEMS;
    wait_for_kernels_before();
    let_next_kernel_start();
    const long long count = (long long)control->images * (POOLED_H * POOLED_W * VECTORS);
    const long long mine = (long long)blockIdx.x * ITEMS + item;
    const int row = (int)(mine / VECTORS), vector = (int)(mine % VECTORS);
    const int image = row / (POOLED_H * POOLED_W), window = row % (POOLED_H * POOLED_W);
    const int top = window / POOLED_W * STRIDE_H - PADDING_H, left = window % POOLED_W * STRIDE_W - PADDING_W;

    float result[N];
    int found[N];  // -1: no tap yet
#pragma unroll
    for (int i = 0; i < N; i++) result[i] = 0.f, found[i] = -1;
    if (mine < count) {
        const Kind* from = x + (long long)image * (HEIGHT * WIDTH * PITCH) + vector * N;
        const int begin = share * EACH;
        // As many at once as hide each other's latency.
#pragma unroll 1
        for (int done = 0; done < EACH; done += AT_ONCE) {
            Numbers loaded[AT_ONCE];
            bool inside[AT_ONCE];
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++) {
                const int tap = begin + done + u;
                const int i = top + tap / KERNEL_W * DILATION_H, j = left + tap % KERNEL_W * DILATION_W;
                const bool exists = (SHARES * EACH == TAPS || tap < TAPS) && (EACH % AT_ONCE == 0 || done + u < EACH);
                inside[u] = exists && (INSIDE || (i >= 0 && i < HEIGHT && j >= 0 && j < WIDTH));
                loaded[u] = inside[u] ? Numbers::load(from + (i * WIDTH + j) * PITCH) : Numbers{};
            }
#pragma unroll
            for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
                for (int c = 0; c < N; c++) {
                    const float value = loaded[u][c];
                    if constexpr (KIND == AVERAGE) {
                        result[c] += value;
                    } else if (inside[u] && (found[c] < 0 || is_larger(value, result[c]))) {
                        result[c] = value, found[c] = begin + done + u;
                    }
                }
        }
    }
    if constexpr (SHARES > 1) {
        float* values = (float*)memory;
        int* taps = (int*)memory + THREADS * N;
#pragma unroll
        for (int c = 0; c < N; c++) {
            values[c * THREADS + threadIdx.x] = result[c];
            if constexpr (KIND == MAXIMUM) taps[c * THREADS + threadIdx.x] = found[c];
        }
        sync_block();
        if (share > 0) return;
        // Shares are in the order of their taps.
        for (int other = 1; other < SHARES; other++)
#pragma unroll
            for (int c = 0; c < N; c++) {
                const int at = c * THREADS + other * ITEMS + item;
                if constexpr (KIND == AVERAGE) {
                    result[c] += values[at];
                } else if (taps[at] >= 0 && (found[c] < 0 || is_larger(values[at], result[c]))) {
                    result[c] = values[at], found[c] = taps[at];
                }
            }
    }
    if (mine >= count) return;
#pragma unroll
    for (int c = 0; c < N; c++) {
        if constexpr (KIND == AVERAGE) {
            result[c] *= 1.f / TAPS;
        } else if constexpr (RELU) {
            if (result[c] <= 0.f) found[c] = NOBODY;
            result[c] = relu(result[c]);
        }
    }
    Numbers::of(result).store(y + mine * N);
#if KIND == MAXIMUM && HAS_WHERE
    Taps::of(found).store(where + mine * N);
#endif
}

#else

// The windows along one axis that have a pixel: begin to end - 1; not those that only span it.
template <int STRIDE, int PADDING, int EXTENT, int COUNT>
DEVICE void windows_over(int pixel, int& begin, int& end) {
    const int first = pixel + PADDING - EXTENT + 1;
    begin = first <= 0 ? 0 : (first + STRIDE - 1) / STRIDE;
    end = min((pixel + PADDING) / STRIDE + 1, COUNT);
}

KERNEL(THREADS, 2)
#if KIND == MAXIMUM
max_pool_backward(const Kind* RESTRICT dy, const Where* RESTRICT where, const Control* RESTRICT control, Kind* RESTRICT dx) {
#else
avg_pool_backward(const Kind* RESTRICT dy, const Control* RESTRICT control, Kind* RESTRICT dx) {
#endif
    constexpr int EXTENT_H = (KERNEL_H - 1) * DILATION_H + 1, EXTENT_W = (KERNEL_W - 1) * DILATION_W + 1;
    // Windows over a pixel at most, along each axis.
    constexpr int MOST_H = blocks_of(EXTENT_H, STRIDE_H) < POOLED_H ? blocks_of(EXTENT_H, STRIDE_H) : POOLED_H;
    constexpr int MOST_W = blocks_of(EXTENT_W, STRIDE_W) < POOLED_W ? blocks_of(EXTENT_W, STRIDE_W) : POOLED_W;
    constexpr int UNROLLED_H = MOST_H <= 3 ? MOST_H : 1, UNROLLED_W = MOST_W <= 3 ? MOST_W : 1;
    wait_for_kernels_before();
    let_next_kernel_start();
    const long long count = (long long)control->images * (HEIGHT * WIDTH * VECTORS);
    const long long mine = (long long)blockIdx.x * THREADS + threadIdx.x;
    if (mine >= count) return;
    const int row = (int)(mine / VECTORS), vector = (int)(mine % VECTORS);
    const int image = row / (HEIGHT * WIDTH), i = row % (HEIGHT * WIDTH) / WIDTH, j = row % WIDTH;
    int top, bottom, left, right;
    windows_over<STRIDE_H, PADDING_H, EXTENT_H, POOLED_H>(i, top, bottom);
    windows_over<STRIDE_W, PADDING_W, EXTENT_W, POOLED_W>(j, left, right);
    float result[N];
#pragma unroll
    for (int c = 0; c < N; c++) result[c] = 0.f;
#pragma unroll UNROLLED_H
    for (int down = 0; down < MOST_H; down++)
#pragma unroll UNROLLED_W
        for (int across = 0; across < MOST_W; across++) {
            const int p = top + down, q = left + across;
            const int r = i + PADDING_H - p * STRIDE_H, s = j + PADDING_W - q * STRIDE_W;
            if (p >= bottom || q >= right || r % DILATION_H != 0 || s % DILATION_W != 0) continue;
            const long long at = (((long long)image * POOLED_H + p) * POOLED_W + q) * PITCH + vector * N;
            const Numbers given = Numbers::load(dy + at);
#if KIND == MAXIMUM
            const int tap = r / DILATION_H * KERNEL_W + s / DILATION_W;
            const Taps winners = Taps::load(where + at);
#endif
#pragma unroll
            for (int c = 0; c < N; c++) {
#if KIND == MAXIMUM
                if (winners[c] == tap) result[c] += given[c];
#else
                result[c] += given[c];
#endif
            }
        }
#if KIND == AVERAGE
#pragma unroll
    for (int c = 0; c < N; c++) result[c] *= 1.f / TAPS;
#endif
    Numbers::of(result).store(dx + mine * N);
}

#endif
