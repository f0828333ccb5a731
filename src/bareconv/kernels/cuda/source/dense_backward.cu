// The way back through up to three dense layers whose gradients dy are all known, with the update of their weights:
//
//   dx[n][f] = sum over k of dy[n][k] w[f][k], of layer 0 alone, with INPUT; MASK: zero where x[n][f] <= 0, x being the
//              output of a relu; ADD: added to what dx holds
//   dw[f][k] = sum over n of x[n][f] dy[n][k]        db[k] = sum over n of dy[n][k]
//
// A block has TILE features of one layer, all of its units, and all images, CHUNK at a time: what it needs of x, dy
// and w is loaded once, and as no other block reads these weights, it changes them in place. The first blocks are
// layer 0's, then come the other layers', and the last one has the biases of all.
#include "matrix.cuh"
#include "update.cuh"

typedef Kept<PRECISION> Number;
typedef Number::Type Type;

constexpr int THREADS = 256, WARPS = THREADS / 32, SEGMENT = 16 / Number::BYTES;
constexpr int STEP = PRECISION == BFLOAT16 ? 16 : 8;  // places of the sum in one multiplication of matrices
constexpr int WIDTH = 8, COLUMNS = TILE / WIDTH;      // features are multiplied eight at a time
constexpr int STATES = HAS_STATE1 + HAS_STATE2;
static_assert(TILE % WIDTH == 0 && CHUNK % (2 * STEP) == 0 && CHUNK % 16 == 0, "made of whole matrices");

// Rows of features: an odd number of eights, so that segments, and numbers of tf32, of eight rows lie in different
// banks.
constexpr int X_PITCH = TILE + (COLUMNS % 2 == 0 ? 8 : 0);

// 16 rows of the left operand for a step: rows in memory, or places of the sum.
DEVICE void load_left_along(u32 (&a)[4], const Type* from, int pitch, int row, int place) {
    load_matrices(a, from + (row + lane_of_warp() % 16) * pitch + place + lane_of_warp() / 16 * SEGMENT);
}

DEVICE void load_left_across(u32 (&a)[4], const Type* from, int pitch, int row, int place) {
    const int lane = lane_of_warp();
    if constexpr (PRECISION == BFLOAT16) {
        load_matrices_transposed(a, from + (place + lane % 8 + lane / 16 * 8) * pitch + row + lane / 8 % 2 * 8);
    } else {
        const Type* mine = from + (place + lane % 4) * pitch + row + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = bits_of(to_float(mine[i / 2 * 4 * pitch + i % 2 * 8]));
    }
}

// Eight columns and two steps of the sum of a right operand, columns being rows in memory: a step has two words of
// them.
DEVICE void load_right_along(u32 (&b)[4], const Type* from, int pitch, int column, int place) {
    load_matrices(b, from + (column + lane_of_warp() % 8) * pitch + place + lane_of_warp() / 8 * SEGMENT);
}

// The same where places of the sum are rows in memory.
DEVICE void load_right_across(u32 (&b)[4], const Type* from, int pitch, int column, int place) {
    const int lane = lane_of_warp();
    if constexpr (PRECISION == BFLOAT16) {
        load_matrices_transposed(b, from + (place + lane) * pitch + column);
    } else {
        const Type* mine = from + (place + lane % 4) * pitch + column + lane / 4;
#pragma unroll
        for (int i = 0; i < 4; i++) b[i] = bits_of(to_float(mine[4 * i * pitch]));
    }
}

template <int ROWS, int WIDE>
DEVICE void multiply(float (&sums)[ROWS][WIDE][4], int j, const u32 (&a)[ROWS][4], u32 b0, u32 b1) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if constexpr (PRECISION == BFLOAT16) multiply_bf16(sums[i][j], a[i], b0, b1);
        else multiply_tf32(sums[i][j], a[i], b0, b1);
    }
}

// What the update of a layer works on.
struct Arrays {
    float *weight, *weight_state1, *weight_state2;
    Type* copy;
    float *bias, *bias_state1, *bias_state2;
};

template <int TAPS, int CHANNELS, int UNITS, bool FIRST>
struct Layer {
    static constexpr bool HAS_DX = FIRST && INPUT;
    static constexpr int PITCH = padded(UNITS), CHANNEL_PITCH = padded(CHANNELS), FEATURES = TAPS * CHANNEL_PITCH;
    static constexpr int BLOCKS = blocks_of(FEATURES, TILE);
    // Units go on with zeros up to two steps of the sum that dx is; rows have an odd number of segments.
    static constexpr int WIDE_UNITS = blocks_of(PITCH, 2 * STEP) * 2 * STEP, UNIT_PITCH = WIDE_UNITS + SEGMENT;
    static constexpr int GROUP = UNITS % 4 == 0 ? 4 : 1;  // of units that are updated at once
    static constexpr int GROUPS = TILE * UNITS / GROUP;
    // Of dw in shared memory, in floats: columns of results lie in different banks.
    static constexpr int MATRICES = blocks_of(UNITS, 16), RESULT_PITCH = 16 * MATRICES + 4;
    // Shared memory: the layer's masters and states, w, and stages of x and dy, or dw in their place.
    static constexpr int HELD_BYTES = blocks_of((1 + STATES) * TILE * UNITS * 4, 16) * 16;
    static constexpr int W_BYTES = HAS_DX ? TILE * UNIT_PITCH * Number::BYTES : 0;
    static constexpr int X_BYTES = CHUNK * X_PITCH * Number::BYTES, DY_BYTES = CHUNK * UNIT_PITCH * Number::BYTES;

    // Warps that share the rows of a product's result; those that are left share its columns.
    static constexpr int high_for(int rows) { return rows >= 8 ? 8 : rows > 2 ? 4 : rows; }
    static constexpr int HIGH_DW = high_for(MATRICES), HIGH_DX = high_for(CHUNK / 16);
    static constexpr int WIDE_DW = WARPS / HIGH_DW, WIDE_DX = WARPS / HIGH_DX;
    static constexpr int ROWS_DW = blocks_of(MATRICES, HIGH_DW), ROWS_DX = CHUNK / 16 / HIGH_DX;
    static constexpr int COLUMNS_DW = blocks_of(COLUMNS, WIDE_DW), COLUMNS_DX = blocks_of(COLUMNS, WIDE_DX);

    static DEVICE bool is_there(int feature) { return feature < FEATURES && feature % CHANNEL_PITCH < CHANNELS; }

    // Where a feature's weights are, which have no padding.
    static DEVICE long long offset_of(int feature) {
        return ((long long)(feature / CHANNEL_PITCH) * CHANNELS + feature % CHANNEL_PITCH) * UNITS;
    }

    static DEVICE void copy_x(Type* to, const Type* RESTRICT x, int first_feature, int first_image, int images) {
        constexpr int PER_ROW = TILE / SEGMENT;
        for (int index = threadIdx.x; index < CHUNK * PER_ROW; index += THREADS) {
            const int row = index / PER_ROW, column = index % PER_ROW * SEGMENT;
            copy_16(to + row * X_PITCH + column, x + (long long)(first_image + row) * FEATURES + first_feature + column,
                    first_image + row < images && first_feature + column < FEATURES);
        }
    }

    static DEVICE void copy_dy(Type* to, const Type* RESTRICT dy, int first_image, int images) {
        constexpr int PER_ROW = WIDE_UNITS / SEGMENT;
        for (int index = threadIdx.x; index < CHUNK * PER_ROW; index += THREADS) {
            const int row = index / PER_ROW, column = index % PER_ROW * SEGMENT;
            copy_16(to + row * UNIT_PITCH + column, dy + (long long)(first_image + row) * PITCH + column,
                    first_image + row < images && column < PITCH);
        }
    }

    static DEVICE void hold(float* held, const float* from, int first_feature) {
        for (int index = threadIdx.x; index < GROUPS; index += THREADS) {
            const int feature = first_feature + index / (UNITS / GROUP), unit = index % (UNITS / GROUP) * GROUP;
            if (!is_there(feature)) continue;
            const float* mine = from + offset_of(feature) + unit;
            if constexpr (GROUP == 4) copy_16(held + 4 * index, mine);
            else copy_4(held + index, mine);
        }
    }

    static DEVICE void run(u8* shared, int block, const Type* RESTRICT x, const Type* RESTRICT dy, Type* dx,
                           const Control* RESTRICT control, const float* RESTRICT scalars, const Arrays& arrays) {
        const int first_feature = block * TILE, warp = warp_of_block(), lane = lane_of_warp();
        const int images = control->images, chunks = blocks_of(images, CHUNK);
        float* held = (float*)shared;
        Type* w = (Type*)(shared + HELD_BYTES);
        u8* stages = shared + HELD_BYTES + W_BYTES;
        float* result = (float*)stages;
        const auto x_of = [&](int stage) { return (Type*)(stages + stage * (X_BYTES + DY_BYTES)); };
        const auto dy_of = [&](int stage) { return (Type*)(stages + stage * (X_BYTES + DY_BYTES) + X_BYTES); };
        // The first layer's input is older than the kernel just before, and so are the weights; that kernel has waited
        // for both.
        if constexpr (HAS_DX) {
            constexpr int PER_ROW = WIDE_UNITS / SEGMENT;
            for (int index = threadIdx.x; index < TILE * PER_ROW; index += THREADS) {
                const int feature = index / PER_ROW, column = index % PER_ROW * SEGMENT;
                copy_16(w + feature * UNIT_PITCH + column,
                        arrays.copy + (long long)(first_feature + feature) * PITCH + column,
                        first_feature + feature < FEATURES && column < PITCH);
            }
        }
        if (FIRST && chunks > 0) copy_x(x_of(0), x, first_feature, 0, images);
        wait_for_kernels_before();
        let_next_kernel_start();
        if (!FIRST && chunks > 0) copy_x(x_of(0), x, first_feature, 0, images);
        if (chunks > 0) copy_dy(dy_of(0), dy, 0, images);
        end_copies();
#pragma unroll
        for (int stage = 1; stage < STAGES - 1; stage++) {
            if (stage < chunks) {
                copy_x(x_of(stage), x, first_feature, stage * CHUNK, images);
                copy_dy(dy_of(stage), dy, stage * CHUNK, images);
            }
            end_copies();
        }
        float numbers[SCALARS];
        load_scalars(numbers, scalars, control->position);
        float dw_sums[ROWS_DW][COLUMNS_DW][4] = {};
        const int row_dw = warp / WIDE_DW * ROWS_DW, column_dw = warp % WIDE_DW;
        const int row_dx = warp / WIDE_DX * ROWS_DX, column_dx = warp % WIDE_DX;
        int stage = 0, free = STAGES - 1;
#pragma unroll 1
        for (int chunk = 0; chunk < chunks; chunk++) {
            copies_done<STAGES - 2>();
            sync_block();
            if (chunk + STAGES - 1 < chunks) {
                copy_x(x_of(free), x, first_feature, (chunk + STAGES - 1) * CHUNK, images);
                copy_dy(dy_of(free), dy, (chunk + STAGES - 1) * CHUNK, images);
            }
            // What is needed last is asked for after the first of what is needed soon.
            if (chunk == 0) hold_all(held, arrays, first_feature);
            end_copies();
            Type* my_x = x_of(stage);
            const Type* my_dy = dy_of(stage);
            if (row_dw < MATRICES) {
#pragma unroll 1
                for (int place = 0; place < CHUNK; place += 2 * STEP) {
                    u32 a[2][ROWS_DW][4];
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int i = 0; i < ROWS_DW; i++)
                            load_left_across(a[half][i], my_dy, UNIT_PITCH, 16 * min(row_dw + i, MATRICES - 1),
                                             place + half * STEP);
#pragma unroll
                    for (int j = 0; j < COLUMNS_DW; j++) {
                        if (COLUMNS % WIDE_DW != 0 && column_dw + j * WIDE_DW >= COLUMNS) break;
                        u32 b[4];
                        load_right_across(b, my_x, X_PITCH, (column_dw + j * WIDE_DW) * WIDTH, place);
                        multiply(dw_sums, j, a[0], b[0], b[1]);
                        multiply(dw_sums, j, a[1], b[2], b[3]);
                    }
                }
            }
            if constexpr (HAS_DX) {
                float sums[ROWS_DX][COLUMNS_DX][4] = {};
#pragma unroll 1
                for (int place = 0; place < WIDE_UNITS; place += 2 * STEP) {
                    u32 a[2][ROWS_DX][4];
#pragma unroll
                    for (int half = 0; half < 2; half++)
#pragma unroll
                        for (int i = 0; i < ROWS_DX; i++)
                            load_left_along(a[half][i], my_dy, UNIT_PITCH, 16 * (row_dx + i), place + half * STEP);
#pragma unroll
                    for (int j = 0; j < COLUMNS_DX; j++) {
                        if (COLUMNS % WIDE_DX != 0 && column_dx + j * WIDE_DX >= COLUMNS) break;
                        u32 b[4];
                        load_right_along(b, w, UNIT_PITCH, (column_dx + j * WIDE_DX) * WIDTH, place);
                        multiply(sums, j, a[0], b[0], b[1]);
                        multiply(sums, j, a[1], b[2], b[3]);
                    }
                }
                sync_block();
                // dx takes the place of x, so that whole rows are written out.
#pragma unroll
                for (int i = 0; i < ROWS_DX; i++)
#pragma unroll
                    for (int j = 0; j < COLUMNS_DX; j++) {
                        if (COLUMNS % WIDE_DX != 0 && column_dx + j * WIDE_DX >= COLUMNS) break;
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            Type* at = my_x + (16 * (row_dx + i) + 8 * half + lane / 4) * X_PITCH +
                                       (column_dx + j * WIDE_DX) * WIDTH + lane % 4 * 2;
                            const float2 input = Number::load_pair(at);
                            const float a = sums[i][j][2 * half], b = sums[i][j][2 * half + 1];
                            Number::store_pair(at, MASK && !(input.x > 0.f) ? 0.f : a,
                                               MASK && !(input.y > 0.f) ? 0.f : b);
                        }
                    }
                sync_block();
                write_dx(dx, my_x, first_feature, chunk * CHUNK, images);
            }
            free = stage, stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        if (chunks == 0) hold_all(held, arrays, first_feature);
        end_copies();
        copies_done();
        sync_block();
        if (row_dw < MATRICES) {
#pragma unroll
            for (int i = 0; i < ROWS_DW; i++)
#pragma unroll
                for (int j = 0; j < COLUMNS_DW; j++) {
                    if (row_dw + i >= MATRICES || column_dw + j * WIDE_DW >= COLUMNS) break;
                    float* to = result + ((column_dw + j * WIDE_DW) * WIDTH + lane % 4 * 2) * RESULT_PITCH +
                                16 * (row_dw + i) + lane / 4;
                    to[0] = dw_sums[i][j][0], to[RESULT_PITCH] = dw_sums[i][j][1];
                    to[8] = dw_sums[i][j][2], to[RESULT_PITCH + 8] = dw_sums[i][j][3];
                }
        }
        sync_block();
        change(arrays, held, result, first_feature, numbers);
    }

    static DEVICE void hold_all(float* held, const Arrays& arrays, int first_feature) {
        hold(held, arrays.weight, first_feature);
        if (HAS_STATE1) hold(held + TILE * UNITS, arrays.weight_state1, first_feature);
        if (HAS_STATE2) hold(held + (1 + HAS_STATE1) * TILE * UNITS, arrays.weight_state2, first_feature);
    }

    static DEVICE void write_dx(Type* dx, const Type* from, int first_feature, int first_image, int images) {
        constexpr int PER_ROW = TILE / SEGMENT;
        for (int index = threadIdx.x; index < CHUNK * PER_ROW; index += THREADS) {
            const int row = index / PER_ROW, column = index % PER_ROW * SEGMENT;
            if (first_image + row >= images || first_feature + column >= FEATURES) continue;
            Type* to = dx + (long long)(first_image + row) * FEATURES + first_feature + column;
            const Type* mine = from + row * X_PITCH + column;
            if constexpr (ADD) {
                float values[SEGMENT], before[SEGMENT];
                Segment<PRECISION>::load(values, mine);
                Segment<PRECISION>::load(before, to);
#pragma unroll
                for (int e = 0; e < SEGMENT; e++) values[e] += before[e];
                Segment<PRECISION>::store(to, values);
            } else {
                *(uint4*)to = *(const uint4*)mine;
            }
        }
    }

    // The update of the block's weights by what is in ``result``.
    static DEVICE void change(const Arrays& arrays, const float* held, const float* result, int first_feature,
                              const float* numbers) {
#pragma unroll 4
        for (int index = threadIdx.x; index < GROUPS; index += THREADS) {
            const int row = index / (UNITS / GROUP), unit = index % (UNITS / GROUP) * GROUP;
            if (!is_there(first_feature + row)) continue;
            const long long at = offset_of(first_feature + row) + unit;
            float weight[GROUP], gradient[GROUP], state1[GROUP] = {}, state2[GROUP] = {};
            load(weight, held + GROUP * index);
            if (HAS_STATE1) load(state1, held + TILE * UNITS + GROUP * index);
            if (HAS_STATE2) load(state2, held + (1 + HAS_STATE1) * TILE * UNITS + GROUP * index);
            load(gradient, result + row * RESULT_PITCH + unit);
#pragma unroll
            for (int e = 0; e < GROUP; e++) weight[e] = updated(numbers, weight[e], gradient[e], state1[e], state2[e]);
            store(arrays.weight + at, weight);
            if (HAS_STATE1) store(arrays.weight_state1 + at, state1);
            if (HAS_STATE2) store(arrays.weight_state2 + at, state2);
            Type* to = arrays.copy + (long long)(first_feature + row) * PITCH + unit;
            if constexpr (GROUP == 1) *to = Number::of(weight[0]);
            else if constexpr (PRECISION == BFLOAT16)
                *(uint2*)to = uint2{pack(weight[0], weight[1]), pack(weight[2], weight[3])};
            else
                *(float4*)to = float4{Number::of(weight[0]), Number::of(weight[1]), Number::of(weight[2]),
                                      Number::of(weight[3])};
        }
    }

    static DEVICE void load(float (&values)[GROUP], const float* from) {
        if constexpr (GROUP == 4) {
            const float4 four = *(const float4*)from;
            values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
        } else {
            values[0] = from[0];
        }
    }

    static DEVICE void store(float* to, const float (&values)[GROUP]) {
        if constexpr (GROUP == 4) *(float4*)to = float4{values[0], values[1], values[2], values[3]};
        else to[0] = values[0];
    }

    // The bias by a whole block: threads beside each other take neighbouring units, the others share the images.
    static DEVICE void change_bias(float* sums, const Type* RESTRICT dy, const Control* RESTRICT control,
                                   const float* numbers, const Arrays& arrays) {
        if (arrays.bias == nullptr) return;
        constexpr int PER_ROW = PITCH / SEGMENT, SHARERS = PER_ROW < THREADS ? THREADS / PER_ROW : 1;
        const int images = control->images;
        for (int first = 0; first < PER_ROW; first += THREADS) {
            const int column = first + threadIdx.x % (PER_ROW < THREADS ? PER_ROW : THREADS);
            const int sharer = PER_ROW < THREADS ? threadIdx.x / PER_ROW : 0;
            float mine[SEGMENT] = {};
            if (sharer < SHARERS && column < PER_ROW) {
#pragma unroll 8
                for (int image = sharer; image < images; image += SHARERS) {
                    float values[SEGMENT];
                    Segment<PRECISION>::load(values, dy + (long long)image * PITCH + column * SEGMENT);
#pragma unroll
                    for (int e = 0; e < SEGMENT; e++) mine[e] += values[e];
                }
            }
            sync_block();
#pragma unroll
            for (int e = 0; e < SEGMENT; e++) sums[e * THREADS + threadIdx.x] = mine[e];
            sync_block();
            constexpr int HERE = (PER_ROW < THREADS ? PER_ROW : THREADS) * SEGMENT;
            for (int index = threadIdx.x; index < HERE; index += THREADS) {
                const int unit = first * SEGMENT + index;
                if (unit >= UNITS) break;
                float sum = 0.f;
#pragma unroll 8
                for (int other = 0; other < SHARERS; other++)
                    sum += sums[index % SEGMENT * THREADS + other * PER_ROW + index / SEGMENT];
                float state1 = HAS_STATE1 ? arrays.bias_state1[unit] : 0.f;
                float state2 = HAS_STATE2 ? arrays.bias_state2[unit] : 0.f;
                arrays.bias[unit] = updated(numbers, arrays.bias[unit], sum, state1, state2);
                if (HAS_STATE1) arrays.bias_state1[unit] = state1;
                if (HAS_STATE2) arrays.bias_state2[unit] = state2;
            }
        }
    }
};

#define ARRAYS_OF(i) \
    float *weight_##i, float *weight_##i##_state1, float *weight_##i##_state2, Type *copy_##i, float *bias_##i, \
        float *bias_##i##_state1, float *bias_##i##_state2
#define ARRAYS(i) \
    { weight_##i, weight_##i##_state1, weight_##i##_state2, copy_##i, bias_##i, bias_##i##_state1, bias_##i##_state2 }

KERNEL(THREADS, 1)
dense_backward(const Control* RESTRICT control, const float* RESTRICT scalars, Type* dx,
               const Type* RESTRICT x_0, const Type* RESTRICT dy_0, ARRAYS_OF(0)
#if LAYERS > 1
               , const Type* RESTRICT x_1, const Type* RESTRICT dy_1, ARRAYS_OF(1)
#endif
#if LAYERS > 2
               , const Type* RESTRICT x_2, const Type* RESTRICT dy_2, ARRAYS_OF(2)
#endif
) {
    SHARED_MEMORY(shared);
    int block = blockIdx.x;
    typedef Layer<TAPS_0, CHANNELS_0, UNITS_0, true> First;
    const Arrays arrays_0 = ARRAYS(0);
    if (block < First::BLOCKS) {
        First::run(shared, block, x_0, dy_0, dx, control, scalars, arrays_0);
        return;
    }
    block -= First::BLOCKS;
#if LAYERS > 1
    typedef Layer<TAPS_1, CHANNELS_1, UNITS_1, false> Second;
    const Arrays arrays_1 = ARRAYS(1);
    if (block < Second::BLOCKS) {
        Second::run(shared, block, x_1, dy_1, nullptr, control, scalars, arrays_1);
        return;
    }
    block -= Second::BLOCKS;
#endif
#if LAYERS > 2
    typedef Layer<TAPS_2, CHANNELS_2, UNITS_2, false> Third;
    const Arrays arrays_2 = ARRAYS(2);
    if (block < Third::BLOCKS) {
        Third::run(shared, block, x_2, dy_2, nullptr, control, scalars, arrays_2);
        return;
    }
#endif
    wait_for_kernels_before();
    let_next_kernel_start();
    float numbers[SCALARS];
    load_scalars(numbers, scalars, control->position);
    First::change_bias((float*)shared, dy_0, control, numbers, arrays_0);
#if LAYERS > 1
    Second::change_bias((float*)shared, dy_1, control, numbers, arrays_1);
#endif
#if LAYERS > 2
    Third::change_bias((float*)shared, dy_2, control, numbers, arrays_2);
#endif
}
