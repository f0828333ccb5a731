// A dense layer's gradient of its input: dx[n][f] = sum over k of dy[n][k] w[f][k]
//
// MASK: zero where x[n][f] <= 0, x being the output of a relu. ADD: added to what dx holds. A block: TILE_M images,
// TILE_N features.
#include "matrix.cuh"

typedef Tile<PRECISION, TILE_M, TILE_N, CHUNK, WARPS_M, WARPS_N, ALONG, ALONG> Product;
typedef Kept<PRECISION> Number;

constexpr int PITCH = padded(UNITS);
typedef Source<Product::Left, Product::SIZE, PITCH, IMAGES % TILE_M == 0, PITCH % CHUNK == 0> Dy;
typedef Source<Product::Right, Product::SIZE, PITCH, FEATURES % TILE_N == 0, PITCH % CHUNK == 0> W;

constexpr int CHUNKS = blocks_of(PITCH, CHUNK);

KERNEL(Product::SIZE, 1)
dense_gradient_of_input(const Number::Type* RESTRICT dy, const Number::Type* RESTRICT w,
#if MASK
                        const Number::Type* RESTRICT x,
#endif
                        const Control* RESTRICT control, Number::Type* dx) {
    SHARED_MEMORY(shared);
    const int first_feature = blockIdx.x * TILE_N, first_image = blockIdx.y * TILE_M;
    if (first_image >= control->images) {
        wait_for_kernels_before();
        return;
    }
    Product product;
    add_chunks<STAGES>(product, shared, CHUNKS, Dy(dy, first_image, 0, IMAGES, PITCH),
                       W(w, first_feature, 0, FEATURES, PITCH), [] {
                           // Weights are older than the kernel just before.
                           wait_for_kernels_before();
                           let_next_kernel_start();
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
