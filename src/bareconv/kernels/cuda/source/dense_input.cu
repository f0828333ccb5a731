// A dense layer's gradient of its input: dx[n][f] = sum over k of dy[n][k] w[f][k]
//
// MASK: zero where x[n][f] <= 0, x being the output of a relu. ADD: added to what dx holds. A block: TILE_M images,
// TILE_N features.
#include "matrix.cuh"

typedef Tile<PRECISION, TILE_M, TILE_N, CHUNK, WARPS_M, WARPS_N, ALONG, ALONG> Product;
typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);
constexpr int CHUNKS = blocks_of(PITCH, CHUNK);

KERNEL(Product::THREADS, 1)
dense_gradient_of_input(const Number::Type* RESTRICT dy, const Number::Type* RESTRICT w,
#if MASK
                        const Number::Type* RESTRICT x,
#endif
                        const Control* RESTRICT control, Number::Type* dx) {
    SHARED_MEMORY(shared);
    const int first_feature = blockIdx.x * TILE_N, first_image = blockIdx.y * TILE_M;
    wait_for_kernels_before();
    let_next_kernel_start();
    if (first_image >= control->images) return;
    Product product;
    add_chunks<STAGES>(product, shared, CHUNKS, [&](Number::Type* left, Number::Type* right, int chunk) {
        const int first = chunk * CHUNK;
        Product::Left::copy<Product::THREADS>(left, dy, [&](int row, int column) {
            const int image = first_image + row, unit = first + column;
            return image < IMAGES && unit < PITCH ? dy + (long long)image * PITCH + unit : nullptr;
        });
        Product::Right::copy<Product::THREADS>(right, w, [&](int row, int column) {
            const int feature = first_feature + row, unit = first + column;
            return feature < FEATURES && unit < PITCH ? w + (long long)feature * PITCH + unit : nullptr;
        });
    });
    float* result = (float*)shared;
    product.store(result);
    sync_block();
    constexpr int WIDTH = Segment<PRECISION>::SIZE;
    for_each_group<WIDTH, Product>(result, [&](int, int row, int column, float(&values)[WIDTH]) {
        const int image = first_image + row, feature = first_feature + column;
        if (image >= IMAGES || feature >= FEATURES) return;
        const long long at = (long long)image * FEATURES + feature;
#if MASK
        float input[WIDTH];
        Segment<PRECISION>::load(input, x + at);
#pragma unroll
        for (int e = 0; e < WIDTH; e++) values[e] = input[e] > 0.f ? values[e] : 0.f;
#endif
#if ADD
        float before[WIDTH];
        Segment<PRECISION>::load(before, dx + at);
#pragma unroll
        for (int e = 0; e < WIDTH; e++) values[e] += before[e];
#endif
        Segment<PRECISION>::store(dx + at, values);
    });
}
