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
typedef Source<Product::Left, Product::SIZE, FEATURES, IMAGES % TILE_M == 0, FEATURES % CHUNK == 0> X;
typedef Source<Product::Right, Product::SIZE, PITCH, FEATURES % CHUNK == 0, PITCH % TILE_N == 0> W;

constexpr int CHUNKS = blocks_of(FEATURES, CHUNK);

#if FINISH
KERNEL(Product::SIZE, 1)
dense_forward(const Number::Type* RESTRICT x, const Number::Type* RESTRICT w, const float* RESTRICT bias,
              const Control* RESTRICT control, Number::Type* RESTRICT y) {
#else
KERNEL(Product::SIZE, 1)
dense_product(const Number::Type* RESTRICT x, const Number::Type* RESTRICT w, const Control* RESTRICT control,
              float* RESTRICT sums) {
#endif
    SHARED_MEMORY(shared);
    const int first_unit = blockIdx.x * TILE_N, first_image = blockIdx.y * TILE_M, split = blockIdx.z;
    if (first_image >= control->images) {
        wait_for_kernels_before();
        return;
    }
    const int first_chunk = split * CHUNKS / SPLITS, chunks = (split + 1) * CHUNKS / SPLITS - first_chunk;
    Product product;
    const int first = first_chunk * CHUNK;
    add_chunks<STAGES>(product, shared, chunks, X(x, first_image, first, IMAGES, FEATURES),
                       W(w, first, first_unit, FEATURES, PITCH), [] {
                           // Weights are older than the kernel just before.
                           wait_for_kernels_before();
                           let_next_kernel_start();
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
            if (RELU) values[e] = relu(values[e]);
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
