// A dense layer forward: x (IMAGES, FEATURES) times w (FEATURES, padded(UNITS)), FEATURES with what pads them.
//
//   sums[split][n][k] = sum over the split's features f of x[n][f] w[f][k]                                  FINISH 0
//   y[n][k] = relu?(sum over f of x[n][f] w[f][k] + bias[k])     with SPLITS 1                              FINISH 1
//
// A block: TILE_M images, TILE_N units, one split. What belongs to images that the step does not have is not written,
// or made of whatever their features are.
#include "matrix.cuh"

typedef Tile<PRECISION, TILE_M, TILE_N, CHUNK, WARPS_M, WARPS_N, ALONG, ACROSS> Product;
typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);
constexpr int CHUNKS = blocks_of(FEATURES, CHUNK);

#if FINISH
KERNEL(Product::THREADS, 1)
dense_forward(const Number::Type* RESTRICT x, const Number::Type* RESTRICT w, const float* RESTRICT bias,
              const Control* RESTRICT control, Number::Type* RESTRICT y) {
#else
KERNEL(Product::THREADS, 1)
dense_product(const Number::Type* RESTRICT x, const Number::Type* RESTRICT w, const Control* RESTRICT control,
              float* RESTRICT sums) {
#endif
    SHARED_MEMORY(shared);
    const int first_unit = blockIdx.x * TILE_N, first_image = blockIdx.y * TILE_M, split = blockIdx.z;
    wait_for_kernels_before();
    let_next_kernel_start();
    if (first_image >= control->images) return;
    const int first_chunk = split * CHUNKS / SPLITS, chunks = (split + 1) * CHUNKS / SPLITS - first_chunk;
    Product product;
    add_chunks<STAGES>(product, shared, chunks, [&](Number::Type* left, Number::Type* right, int chunk) {
        const int first = (first_chunk + chunk) * CHUNK;
        Product::Left::copy<Product::THREADS>(left, x, [&](int row, int column) {
            const int image = first_image + row, feature = first + column;
            return image < IMAGES && feature < FEATURES ? x + (long long)image * FEATURES + feature : nullptr;
        });
        Product::Right::copy<Product::THREADS>(right, w, [&](int row, int column) {
            const int feature = first + row, unit = first_unit + column;
            return feature < FEATURES && unit < PITCH ? w + (long long)feature * PITCH + unit : nullptr;
        });
    });
    float* result = (float*)shared;
    product.store(result);
    sync_block();
#if FINISH
    constexpr int WIDTH = Segment<PRECISION>::SIZE;
    for_each_group<WIDTH, Product>(result, [&](int, int row, int column, float(&values)[WIDTH]) {
        const int image = first_image + row, unit = first_unit + column;
        if (image >= IMAGES || unit >= PITCH) return;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            if (bias != nullptr && unit + e < UNITS) values[e] += bias[unit + e];
            if (RELU) values[e] = fmaxf(values[e], 0.f);
        }
        Segment<PRECISION>::store(y + (long long)image * PITCH + unit, values);
    });
#else
    sums += (long long)split * IMAGES * PITCH;
    for_each_group<4, Product>(result, [&](int, int row, int column, float(&values)[4]) {
        const int image = first_image + row, unit = first_unit + column;
        if (image >= IMAGES || unit >= PITCH) return;
        *(float4*)(sums + (long long)image * PITCH + unit) = float4{values[0], values[1], values[2], values[3]};
    });
#endif
}
