// A dense layer's gradients of its weight and bias, and, with RULE, their update at once:
//
//   dw[f][k] = sum over n of x[n][f] dy[n][k]        db[k] = sum over n of dy[n][k]
//
// over the images of a part: PART_IMAGES of them, those that the step has. A feature f of FEATURES = TAPS *
// padded(CHANNELS) is a tap and a channel; results lie without padding, [tap][channel][unit].
//
// A block: TILE_M features, TILE_N units, one part. The blocks after those of the last features do the bias. With RULE
// there is one part, and the tile's weights, which are loaded while the sum is made, are this block's alone: no one may
// read them, or their working copy, at that time.
#if defined(RULE)
#include "update.cuh"
#endif
#include "matrix.cuh"

typedef Tile<PRECISION, TILE_M, TILE_N, CHUNK, WARPS_M, WARPS_N, ACROSS, ACROSS> Product;
typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);
constexpr int CHANNEL_PITCH = padded(CHANNELS), FEATURES = TAPS * CHANNEL_PITCH;
typedef Source<Product::Left, Product::SIZE, FEATURES, false, FEATURES % TILE_M == 0> X;
typedef Source<Product::Right, Product::SIZE, PITCH, false, PITCH % TILE_N == 0> Dy;

constexpr int FEATURE_TILES = blocks_of(FEATURES, TILE_M);
constexpr int THREADS = Product::SIZE;
constexpr int GROUPS = TILE_M * TILE_N / 4 / THREADS;  // of four weights, a thread

// Up to four neighbours, those below ``count``; all at once where no row is cut.
constexpr bool BY_FOUR = UNITS % 4 == 0;

DEVICE void load_four(float (&values)[4], const float* from, int count) {
    if constexpr (BY_FOUR) {
        const float4 four = *(const float4*)from;
        values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++) values[e] = e < count ? from[e] : 0.f;
    }
}

DEVICE void store_four(float* to, const float (&values)[4], int count) {
    if constexpr (BY_FOUR) {
        *(float4*)to = float4{values[0], values[1], values[2], values[3]};
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < count) to[e] = values[e];
    }
}

// Four neighbours of the weight.
struct Four {
    bool there;
    int count;         // below the last unit
    int row;           // of the working copy
    long long offset;  // of the first, without padding
};

DEVICE Four four_of(int feature, int unit) {
    const int tap = feature / CHANNEL_PITCH, channel = feature % CHANNEL_PITCH;
    const bool there = feature < FEATURES && channel < CHANNELS && unit < UNITS;
    return {there, min(UNITS - unit, 4), feature, ((long long)tap * CHANNELS + channel) * UNITS + unit};
}

// The sum over images of TILE_N units' dy, in ``sums``, by all threads.
DEVICE void sum_gradient(float* shared, const Number::Type* RESTRICT dy, int first_unit, int from, int to) {
    constexpr int WIDTH = Segment<PRECISION>::SIZE, COLUMNS = TILE_N / WIDTH, ROWS = THREADS / COLUMNS;
    static_assert(THREADS % COLUMNS == 0 && THREADS >= TILE_N, "a thread for every unit");
    const int column = threadIdx.x % COLUMNS * WIDTH, row = threadIdx.x / COLUMNS;
    float sums[WIDTH] = {};
    if (first_unit + column < PITCH) {
#pragma unroll 8
        for (int image = from + row; image < to; image += ROWS) {
            float values[WIDTH];
            Segment<PRECISION>::load(values, dy + (long long)image * PITCH + first_unit + column);
#pragma unroll
            for (int e = 0; e < WIDTH; e++) sums[e] += values[e];
        }
    }
#pragma unroll
    for (int e = 0; e < WIDTH; e++) shared[row * TILE_N + column + e] = sums[e];
    sync_block();
    float sum = 0.f;
    if (threadIdx.x < TILE_N)
        for (int other = 0; other < ROWS; other++) sum += shared[other * TILE_N + threadIdx.x];
    sync_block();
    if (threadIdx.x < TILE_N) shared[threadIdx.x] = sum;
    sync_block();
}

#if defined(RULE)
KERNEL(Product::SIZE, 1)
dense_update(const Number::Type* RESTRICT x, const Number::Type* RESTRICT dy, const Control* RESTRICT control,
             const float* RESTRICT scalars, float* RESTRICT weight, float* RESTRICT weight_state1,
             float* RESTRICT weight_state2, Number::Type* RESTRICT copy, float* RESTRICT bias,
             float* RESTRICT bias_state1, float* RESTRICT bias_state2) {
#else
KERNEL(Product::SIZE, 1)
dense_gradient_of_weight(const Number::Type* RESTRICT x, const Number::Type* RESTRICT dy,
                         const Control* RESTRICT control, float* RESTRICT weight_partial,
                         float* RESTRICT bias_partial) {
#endif
    SHARED_MEMORY(shared);
    float* result = (float*)shared;
    const int first_feature = blockIdx.x * TILE_M, first_unit = blockIdx.y * TILE_N, part = blockIdx.z;
    wait_for_kernels_before();
    let_next_kernel_start();
    const int first_image = part * PART_IMAGES, last_image = min(first_image + PART_IMAGES, control->images);
#if defined(RULE)
    float numbers[SCALARS];
    load_scalars(numbers, scalars, control->position);
#endif
    if (blockIdx.x == FEATURE_TILES) {
#if defined(RULE)
        if (bias == nullptr) return;
        sum_gradient(result, dy, first_unit, first_image, last_image);
        const int unit = first_unit + threadIdx.x;
        if (threadIdx.x < TILE_N && unit < UNITS) {
            float state1 = HAS_STATE1 ? bias_state1[unit] : 0.f, state2 = HAS_STATE2 ? bias_state2[unit] : 0.f;
            bias[unit] = updated(numbers, bias[unit], result[threadIdx.x], state1, state2);
            if (HAS_STATE1) bias_state1[unit] = state1;
            if (HAS_STATE2) bias_state2[unit] = state2;
        }
#else
        if (bias_partial == nullptr) return;
        sum_gradient(result, dy, first_unit, first_image, last_image);
        if (threadIdx.x < TILE_N && first_unit + threadIdx.x < UNITS)
            bias_partial[(long long)part * UNITS + first_unit + threadIdx.x] = result[threadIdx.x];
#endif
        return;
    }
#if defined(RULE)
    float weights[GROUPS][4], state1[GROUPS][4], state2[GROUPS][4];
#pragma unroll
    for (int i = 0; i < GROUPS; i++) {
        const int index = i * THREADS + threadIdx.x;
        const Four four = four_of(first_feature + index / (TILE_N / 4), first_unit + index % (TILE_N / 4) * 4);
#pragma unroll
        for (int e = 0; e < 4; e++) weights[i][e] = 0.f, state1[i][e] = 0.f, state2[i][e] = 0.f;
        if (!four.there) continue;
        load_four(weights[i], weight + four.offset, four.count);
        if (HAS_STATE1) load_four(state1[i], weight_state1 + four.offset, four.count);
        if (HAS_STATE2) load_four(state2[i], weight_state2 + four.offset, four.count);
    }
#endif
    Product product;
    const int chunks = last_image > first_image ? blocks_of(last_image - first_image, CHUNK) : 0;
    add_chunks<STAGES>(product, shared, chunks, X(x, first_image, first_feature, last_image, FEATURES),
                       Dy(dy, first_image, first_unit, last_image, PITCH), [] {});
    product.store(result);
    sync_block();
    for_each_group<4, Product>(result, [&](int i, int row, int column, float(&values)[4]) {
        const Four four = four_of(first_feature + row, first_unit + column);
        if (!four.there) return;
#if defined(RULE)
#pragma unroll
        for (int e = 0; e < 4; e++)
            weights[i][e] = updated(numbers, weights[i][e], values[e], state1[i][e], state2[i][e]);
        store_four(weight + four.offset, weights[i], four.count);
        if (HAS_STATE1) store_four(weight_state1 + four.offset, state1[i], four.count);
        if (HAS_STATE2) store_four(weight_state2 + four.offset, state2[i], four.count);
        // The copy's row goes on with zeros, which are there already.
        Number::Type* to = copy + (long long)four.row * PITCH + first_unit + column;
#pragma unroll
        for (int e = 0; e < 4; e += 2)
            Number::store_pair(to + e, e < four.count ? weights[i][e] : 0.f, e + 1 < four.count ? weights[i][e + 1] : 0.f);
#else
        store_four(weight_partial + (long long)part * (TAPS * CHANNELS * UNITS) + four.offset, values, four.count);
#endif
    });
}
