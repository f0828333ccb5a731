// Batch normalisation, with the relu, the residual sum and the max pool that follow it. Formulas: ops/norm.py.
//
//   z = x scale + shift,   scale = gamma / sqrt(var + eps),   shift = beta - mean scale
//   y = maxpool(relu(z)),   relu(z + other)   or   relu(z) + other
//   dx = scale dz + slope x + offset: the formula of ops/norm.py, with what belongs to the channel put together
//
// SUM: NO_SUM, BEFORE_RELU, AFTER_RELU. RELU 0 or 1. Pool: windows of POOL_H x POOL_W that do not overlap; 1 x 1 is none.
// The winners of a pool, and what the relu lets through, are not stored: backward reads x anyhow and finds them again.
// Only where the relu comes after the sum it would have to read more; then ``passed`` has a bit for each number, those of
// a vector in a byte.
//
// x, y, dy, dx (images, HEIGHT, WIDTH, CHANNELS) in PRECISION. ``coefficients`` float [6][padded channels]: mean, 1 / std,
// scale, shift, slope, offset; zeros in the padding, which keeps y's and dx's padding zero.
//
// A block takes SLICE vectors of channels (gridDim.y covers all) of TILE rows at a time, gridDim.x apart; a row is a pixel
// or a window. Sums over rows come in parts, one a block, merged in a fixed order. A pass goes over its tiles in the
// direction opposite to the pass before, whose last tiles are still in the cache.
//
// STAGE says which of the kernels is compiled.
#include "vectors.cuh"

#define STATISTICS 0
#define FINISH_STATISTICS 1
#define USE_RUNNING 2
#define APPLY 3
#define SUM_GRADIENTS 4
#define FINISH_GRADIENTS 5
#define INPUT_GRADIENT 6

#define NO_SUM 0
#define BEFORE_RELU 1
#define AFTER_RELU 2

constexpr int PITCH = padded(CHANNELS), PIXELS = HEIGHT * WIDTH;

// Rows of ``coefficients``.
constexpr int MEAN = 0, INV_STD = PITCH, SCALE = 2 * PITCH, SHIFT = 3 * PITCH, SLOPE = 4 * PITCH, OFFSET = 5 * PITCH;

#if STAGE == STATISTICS || STAGE == APPLY || STAGE == SUM_GRADIENTS || STAGE == INPUT_GRADIENT

typedef Kept<PRECISION> Number;
typedef Number::Type Kind;
typedef Vector<PRECISION> Numbers;
constexpr int N = Numbers::LENGTH, VECTORS = PITCH / N, LANES = THREADS / SLICE;
constexpr int SLICE_CHANNELS = SLICE * N;

// Which vector of a row is this thread's, and which rows: lane, lane + LANES, ...
struct Place {
    int vector, lane;
    bool active;
};
DEVICE Place my_place() {
    const int vector = blockIdx.y * SLICE + threadIdx.x % SLICE, lane = threadIdx.x / SLICE;
    return {vector, lane, lane < LANES && vector < VECTORS};
}

// Both sums over all lanes, handed to ``each(channel, sum, other sum)``; a channel below SLICE_CHANNELS.
template <class F>
DEVICE void sum_over_lanes(const float (&sums)[2][N], float* shared, F&& each) {
    constexpr int GROUPS = THREADS / SLICE_CHANNELS > 1 ? THREADS / SLICE_CHANNELS : 1;
    constexpr int SHARE = blocks_of(LANES, GROUPS), HALF = LANES * SLICE_CHANNELS;
    if (threadIdx.x < LANES * SLICE) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            shared[threadIdx.x * N + i] = sums[0][i];
            shared[HALF + threadIdx.x * N + i] = sums[1][i];
        }
    }
    sync_block();
    for (int i = threadIdx.x; i < GROUPS * SLICE_CHANNELS; i += THREADS) {
        const int channel = i % SLICE_CHANNELS, begin = i / SLICE_CHANNELS * SHARE;
        float a = 0.f, b = 0.f;
        for (int lane = begin; lane < min(begin + SHARE, LANES); lane++) {
            a += shared[lane * SLICE_CHANNELS + channel];
            b += shared[HALF + lane * SLICE_CHANNELS + channel];
        }
        if (begin < LANES) {
            shared[begin * SLICE_CHANNELS + channel] = a;
            shared[HALF + begin * SLICE_CHANNELS + channel] = b;
        }
    }
    sync_block();
    for (int channel = threadIdx.x; channel < SLICE_CHANNELS; channel += THREADS) {
        float a = 0.f, b = 0.f;
        for (int lane = 0; lane < LANES; lane += SHARE) {
            a += shared[lane * SLICE_CHANNELS + channel];
            b += shared[HALF + lane * SLICE_CHANNELS + channel];
        }
        each(channel, a, b);
    }
}

#endif

#if STAGE == APPLY || STAGE == SUM_GRADIENTS || STAGE == INPUT_GRADIENT

constexpr int CELLS = POOL_H * POOL_W, POOLED_H = HEIGHT / POOL_H, POOLED_W = WIDTH / POOL_W;
constexpr int WINDOWS = POOLED_H * POOLED_W;

// Where the first pixel of a row lies: of window (p, q) of an image that has ACROSS of them side by side.
template <int DOWN, int ACROSS>
DEVICE long long pixel_of_row(int row) {
    if constexpr (CELLS == 1) return row;
    const int image = row / (DOWN * ACROSS), window = row % (DOWN * ACROSS);
    const int p = window / ACROSS, q = window % ACROSS;
    return ((long long)image * HEIGHT + p * POOL_H) * WIDTH + q * POOL_W;
}

DEVICE constexpr int pixel_of_cell(int cell) { return cell / POOL_W * WIDTH + cell % POOL_W; }

// Which cell of a window wins channel ``i``, and its z.
DEVICE int winner(const Numbers (&x)[CELLS], int i, float scale, float shift, float& largest) {
    int found = 0;
    largest = fmaf(x[0][i], scale, shift);
#pragma unroll
    for (int cell = 1; cell < CELLS; cell++) {
        const float z = fmaf(x[cell][i], scale, shift);
        if (is_larger(z, largest)) largest = z, found = cell;
    }
    return found;
}

#endif

#if STAGE == FINISH_STATISTICS || STAGE == FINISH_GRADIENTS

// A block has SIDE channels, which fill what memory hands out at once; GROUPS threads share the parts of each.
constexpr int SIDE = 8, GROUPS = THREADS / SIDE, WARPS = THREADS / 32, AT_ONCE = 8;
static_assert(WARPS >= SIDE, "a warp for each channel at the end");

// The sums of a channel's threads, which all lanes of the warp that has the channel's number then have.
template <int COUNT>
DEVICE void sum_over_groups(float (&sums)[COUNT]) {
    SHARED float shared[COUNT][SIDE][WARPS];
    const int warp = warp_of_block(), lane = lane_of_warp();
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        sums[k] += shuffle_xor(sums[k], 8);
        sums[k] += shuffle_xor(sums[k], 16);
        if (lane < SIDE) shared[k][lane][warp] = sums[k];
    }
    sync_block();
    if (warp >= SIDE) return;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        sums[k] = lane < WARPS ? shared[k][warp][lane] : 0.f;
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) sums[k] += shuffle_xor(sums[k], mask);
    }
}

#endif

#if STAGE == STATISTICS

// parts[block][0][channel]: the mean of the block's rows, [1]: the sum of the squares of their distances from it. After
// all parts, how many rows each block had.
KERNEL(THREADS, 4)
statistics(const Kind* RESTRICT x, const Control* RESTRICT control, float* RESTRICT parts) {
    SHARED_MEMORY(memory);
    constexpr int TILE = LANES * UNROLL;
    const Place place = my_place();
    wait_for_kernels_before();
    let_next_kernel_start();
    const int rows = control->images * PIXELS, first = blockIdx.x * TILE;
    // Distances from some number of the same channel: squares of the numbers themselves would cancel.
    float pivot[N] = {}, sums[2][N] = {};
    if (place.active && first < rows) {
        const Kind* from = x + place.vector * N;
        const Numbers one = Numbers::load(from + (long long)first * PITCH);
#pragma unroll
        for (int i = 0; i < N; i++) pivot[i] = one[i];
        for (int begin = first + place.lane; begin < rows; begin += gridDim.x * TILE) {
            Numbers loaded[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int row = begin + u * LANES;
                // The pivot's distance from itself adds nothing.
                loaded[u] = row < rows ? Numbers::load(from + (long long)row * PITCH) : one;
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++)
#pragma unroll
                for (int i = 0; i < N; i++) {
                    const float distance = loaded[u][i] - pivot[i];
                    sums[0][i] += distance;
                    sums[1][i] = fmaf(distance, distance, sums[1][i]);
                }
        }
    }
    float count = 0.f;
    for (int begin = first; begin < rows; begin += gridDim.x * TILE) count += (float)min(rows - begin, TILE);
    float* mine = parts + (long long)blockIdx.x * (2 * PITCH) + blockIdx.y * SLICE_CHANNELS;
    sum_over_lanes(sums, (float*)memory, [&](int channel, float sum, float square) {
        const int all = blockIdx.y * SLICE_CHANNELS + channel;
        if (all >= PITCH) return;
        const float start = count > 0.f ? to_float(x[(long long)first * PITCH + all]) : 0.f;
        const float mean = count > 0.f ? sum / count : 0.f;
        mine[channel] = start + mean;
        mine[PITCH + channel] = square - sum * mean;
    });
    if (blockIdx.y == 0 && threadIdx.x == 0) parts[(long long)gridDim.x * (2 * PITCH) + blockIdx.x] = count;
}

#elif STAGE == FINISH_STATISTICS

// The parts merged about some number of the same channel, as statistics does it with pixels: so no part waits for
// another. With a part's count n, mean m and squares s, and d = m - pivot,
//   mean = pivot + sum(n d) / count,   variance = (sum(s + n d d) - sum(n d)^2 / count) / count
// The pivot is the mean of part 0: a number, and of the step's first pixels, or squares of means would cancel.
KERNEL(THREADS, 1)
finish_statistics(const float* RESTRICT parts, const float* RESTRICT gamma, const float* RESTRICT beta,
                  float* RESTRICT running_mean, float* RESTRICT running_var, float* RESTRICT coefficients) {
    const int group = threadIdx.x / SIDE, channel = blockIdx.x * SIDE + warp_of_block();
    const float* means = parts + blockIdx.x * SIDE;
    const float* counts = parts + (long long)PARTS * (2 * PITCH);
    wait_for_kernels_before();
    let_next_kernel_start();
    // What the end needs is on its way while the parts are added up.
    const bool ends = warp_of_block() < SIDE, exists = ends && channel < CHANNELS;
    const float pivot = means[threadIdx.x % SIDE], pivot_of_end = means[warp_of_block() % SIDE];
    const float own_gamma = exists ? gamma[channel] : 0.f, own_beta = exists ? beta[channel] : 0.f;
    const float old_mean = exists ? running_mean[channel] : 0.f, old_var = exists ? running_var[channel] : 0.f;
    float sums[3] = {};
    for (int begin = group; begin < PARTS; begin += AT_ONCE * GROUPS) {
        float count[AT_ONCE], mean[AT_ONCE], squares[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            const int part = begin + u * GROUPS;
            const float* from = means + (long long)part * (2 * PITCH) + threadIdx.x % SIDE;
            const bool there = part < PARTS;
            count[u] = there ? counts[part] : 0.f;
            mean[u] = there ? from[0] : 0.f;
            squares[u] = there ? from[PITCH] : 0.f;
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            if (!(count[u] > 0.f)) continue;
            const float distance = mean[u] - pivot, all = count[u] * distance;
            sums[0] += count[u];
            sums[1] += all;
            sums[2] += fmaf(all, distance, squares[u]);
        }
    }
    sum_over_groups(sums);
    if (!ends || lane_of_warp() > 0) return;
    float mean = 0.f, inv_std = 0.f, scale = 0.f, shift = 0.f;
    if (exists) {
        const float count = max(sums[0], 1.f), distance = sums[1] / count;
        const float var = max(fmaf(-sums[1], distance, sums[2]), 0.f) / count;
        mean = pivot_of_end + distance;
        inv_std = 1.f / sqrtf(var + (float)(EPS));
        scale = own_gamma * inv_std;
        shift = fmaf(-mean, scale, own_beta);
        if (sums[0] > 0.f) {
            const float keep = (float)(1.0 - (MOMENTUM)), take = (float)(MOMENTUM);
            running_mean[channel] = old_mean * keep + take * mean;
            running_var[channel] = old_var * keep + take * (var * (count / max(count - 1.f, 1.f)));
        }
    }
    if (channel >= PITCH) return;
    coefficients[MEAN + channel] = mean;
    coefficients[INV_STD + channel] = inv_std;
    coefficients[SCALE + channel] = scale;
    coefficients[SHIFT + channel] = shift;
}

#elif STAGE == USE_RUNNING

// Evaluation: scale and shift from the running statistics.
KERNEL(THREADS, 1)
use_running(const float* RESTRICT gamma, const float* RESTRICT beta, const float* RESTRICT running_mean,
            const float* RESTRICT running_var, float* RESTRICT coefficients) {
    const int channel = blockIdx.x * THREADS + threadIdx.x;
    wait_for_kernels_before();
    let_next_kernel_start();
    if (channel >= PITCH) return;
    float scale = 0.f, shift = 0.f;
    if (channel < CHANNELS) {
        scale = gamma[channel] / sqrtf(running_var[channel] + (float)(EPS));
        shift = fmaf(-running_mean[channel], scale, beta[channel]);
    }
    coefficients[SCALE + channel] = scale;
    coefficients[SHIFT + channel] = shift;
}

#elif STAGE == APPLY

KERNEL(THREADS, 3)
apply(const Kind* RESTRICT x, const Kind* RESTRICT other, const float* RESTRICT coefficients,
      const Control* RESTRICT control, Kind* RESTRICT y
#if REMEMBERS
      ,
      u8* RESTRICT passed
#endif
) {
    constexpr int TILE = LANES * UNROLL;
    const Place place = my_place();
    wait_for_kernels_before();
    let_next_kernel_start();
    const int rows = control->images * WINDOWS;
    if (!place.active) return;
    float scale[N], shift[N];
    load_floats(scale, coefficients + SCALE + place.vector * N);
    load_floats(shift, coefficients + SHIFT + place.vector * N);
    for (int tile = blocks_of(rows, TILE) - 1 - blockIdx.x; tile >= 0; tile -= gridDim.x) {
        Numbers loaded[UNROLL][CELLS], added[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int row = tile * TILE + u * LANES + place.lane;
            if (row >= rows) break;
            const Kind* from = x + pixel_of_row<POOLED_H, POOLED_W>(row) * PITCH + place.vector * N;
#pragma unroll
            for (int cell = 0; cell < CELLS; cell++) loaded[u][cell] = Numbers::load(from + pixel_of_cell(cell) * PITCH);
            if constexpr (SUM != NO_SUM) added[u] = Numbers::load(other + (long long)row * PITCH + place.vector * N);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int row = tile * TILE + u * LANES + place.lane;
            if (row >= rows) break;
            float values[N];
            u32 signs = 0;
#pragma unroll
            for (int i = 0; i < N; i++) {
                float z;
                winner(loaded[u], i, scale[i], shift[i], z);
                if constexpr (SUM == BEFORE_RELU) z += added[u][i];
                signs |= (u32)(z > 0.f) << i;
                if constexpr (RELU) z = relu(z);
                if constexpr (SUM == AFTER_RELU) z += added[u][i];
                values[i] = z;
            }
            Numbers::of(values).store(y + (long long)row * PITCH + place.vector * N);
#if REMEMBERS
            passed[(long long)row * VECTORS + place.vector] = (u8)signs;
#endif
        }
    }
}

#elif STAGE == SUM_GRADIENTS

// parts[block][0][channel]: the sum of dz, [1]: of dz (x - mean). Where the relu comes after the sum, dy without what
// it holds back goes to ``masked``, which may be dy: it is the gradient of ``other``, too.
KERNEL(THREADS, 2)
sum_gradients(const Kind* RESTRICT x, const Kind* dy, const u8* RESTRICT passed, const float* RESTRICT coefficients,
              const Control* RESTRICT control, float* RESTRICT parts, Kind* masked) {
    SHARED_MEMORY(memory);
    constexpr int TILE = LANES * UNROLL;
    constexpr bool IS_TOLD = RELU && SUM == BEFORE_RELU;
    const Place place = my_place();
    wait_for_kernels_before();
    let_next_kernel_start();
    const int rows = control->images * WINDOWS;
    float sums[2][N] = {};
    if (place.active) {
        float mean[N], scale[N], shift[N];
        load_floats(mean, coefficients + MEAN + place.vector * N);
        load_floats(scale, coefficients + SCALE + place.vector * N);
        load_floats(shift, coefficients + SHIFT + place.vector * N);
        for (int tile = blocks_of(rows, TILE) - 1 - blockIdx.x; tile >= 0; tile -= gridDim.x) {
            Numbers loaded[UNROLL][CELLS], given[UNROLL];
            [[maybe_unused]] u32 signs[UNROLL];
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int row = tile * TILE + u * LANES + place.lane;
                if (row >= rows) break;
                const Kind* from = x + pixel_of_row<POOLED_H, POOLED_W>(row) * PITCH + place.vector * N;
                const long long at = (long long)row * PITCH + place.vector * N;
#pragma unroll
                for (int cell = 0; cell < CELLS; cell++)
                    loaded[u][cell] = Numbers::load(from + pixel_of_cell(cell) * PITCH);
                given[u] = Numbers::load(dy + at);
                if constexpr (IS_TOLD) signs[u] = passed[(long long)row * VECTORS + place.vector];
            }
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int row = tile * TILE + u * LANES + place.lane;
                if (row >= rows) break;
                float values[N];
#pragma unroll
                for (int i = 0; i < N; i++) {
                    float z, won = loaded[u][0][i];
                    const int found = winner(loaded[u], i, scale[i], shift[i], z);
#pragma unroll
                    for (int cell = 1; cell < CELLS; cell++) won = found == cell ? loaded[u][cell][i] : won;
                    float d = given[u][i];
                    if constexpr (IS_TOLD) d = signs[u] >> i & 1 ? d : 0.f;
                    else if constexpr (RELU) d = z > 0.f ? d : 0.f;
                    values[i] = d;
                    sums[0][i] += d;
                    sums[1][i] = fmaf(d, won - mean[i], sums[1][i]);
                }
                if constexpr (IS_TOLD) Numbers::of(values).store(masked + (long long)row * PITCH + place.vector * N);
            }
        }
    }
    float* mine = parts + (long long)blockIdx.x * (2 * PITCH) + blockIdx.y * SLICE_CHANNELS;
    sum_over_lanes(sums, (float*)memory, [&](int channel, float sum, float product) {
        if (blockIdx.y * SLICE_CHANNELS + channel >= PITCH) return;
        mine[channel] = sum;
        mine[PITCH + channel] = product;
    });
}

#elif STAGE == FINISH_GRADIENTS

// The parameters' gradients, and what pass 2 needs of them.
KERNEL(THREADS, 1)
finish_gradients(const float* RESTRICT parts, const Control* RESTRICT control, float* RESTRICT coefficients,
                 float* RESTRICT dgamma, float* RESTRICT dbeta) {
    const int group = threadIdx.x / SIDE, channel = blockIdx.x * SIDE + warp_of_block();
    wait_for_kernels_before();
    let_next_kernel_start();
    const bool ends = warp_of_block() < SIDE, exists = ends && channel < CHANNELS;
    const float inv_std = exists ? coefficients[INV_STD + channel] : 0.f;
    const float scale = exists ? coefficients[SCALE + channel] : 0.f;
    const float mean = exists ? coefficients[MEAN + channel] : 0.f;
    const float count = (float)max(control->images * PIXELS, 1);
    float sums[2] = {};
    for (int begin = group; begin < PARTS; begin += AT_ONCE * GROUPS) {
        float one[AT_ONCE], two[AT_ONCE];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            const int part = begin + u * GROUPS;
            const float* from = parts + (long long)part * (2 * PITCH) + blockIdx.x * SIDE + threadIdx.x % SIDE;
            one[u] = part < PARTS ? from[0] : 0.f;
            two[u] = part < PARTS ? from[PITCH] : 0.f;
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) sums[0] += one[u], sums[1] += two[u];
    }
    sum_over_groups(sums);
    if (!ends || lane_of_warp() > 0) return;
    float slope = 0.f, offset = 0.f;
    if (exists) {
        dbeta[channel] = sums[0];
        dgamma[channel] = sums[1] * inv_std;
        slope = -scale * inv_std * (sums[1] * inv_std) / count;
        offset = -scale * sums[0] / count - slope * mean;
    }
    if (channel >= PITCH) return;
    coefficients[SLOPE + channel] = slope;
    coefficients[OFFSET + channel] = offset;
}

#elif STAGE == INPUT_GRADIENT

KERNEL(THREADS, CELLS > 4 ? 1 : 2)
input_gradient(const Kind* RESTRICT x, const Kind* RESTRICT dy, const float* RESTRICT coefficients,
               const Control* RESTRICT control, Kind* RESTRICT dx) {
    // A window may hang over the edge: its pixels have no part in y, but one in the mean and the variance.
    constexpr int DOWN = blocks_of(HEIGHT, POOL_H), ACROSS = blocks_of(WIDTH, POOL_W), TILE = LANES * UNROLL;
    constexpr bool WHOLE = DOWN == POOLED_H && ACROSS == POOLED_W;
    const Place place = my_place();
    wait_for_kernels_before();
    let_next_kernel_start();
    const int rows = control->images * (DOWN * ACROSS);
    if (!place.active) return;
    float scale[N], shift[N], slope[N], offset[N];
    load_floats(scale, coefficients + SCALE + place.vector * N);
    load_floats(shift, coefficients + SHIFT + place.vector * N);
    load_floats(slope, coefficients + SLOPE + place.vector * N);
    load_floats(offset, coefficients + OFFSET + place.vector * N);
    for (int begin = blockIdx.x * TILE + place.lane; begin < rows; begin += gridDim.x * TILE) {
        Numbers loaded[UNROLL][CELLS], given[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int row = begin + u * LANES;
            if (row >= rows) break;
            const int image = row / (DOWN * ACROSS), window = row % (DOWN * ACROSS);
            const int p = window / ACROSS, q = window % ACROSS;
            const Kind* from = x + pixel_of_row<DOWN, ACROSS>(row) * PITCH + place.vector * N;
#pragma unroll
            for (int cell = 0; cell < CELLS; cell++) {
                const bool inside = p * POOL_H + cell / POOL_W < HEIGHT && q * POOL_W + cell % POOL_W < WIDTH;
                loaded[u][cell] = WHOLE || inside ? Numbers::load(from + pixel_of_cell(cell) * PITCH) : Numbers{};
            }
            const long long at = WHOLE ? row : (long long)image * WINDOWS + p * POOLED_W + q;
            const bool has_output = WHOLE || (p < POOLED_H && q < POOLED_W);
            given[u] = has_output ? Numbers::load(dy + at * PITCH + place.vector * N) : Numbers{};
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int row = begin + u * LANES;
            if (row >= rows) break;
            const int window = row % (DOWN * ACROSS), p = window / ACROSS, q = window % ACROSS;
            int found[N];
            float d[N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                float z;
                found[i] = winner(loaded[u], i, scale[i], shift[i], z);
                d[i] = !RECOMPUTE || z > 0.f ? given[u][i] * scale[i] : 0.f;
            }
            Kind* to = dx + pixel_of_row<DOWN, ACROSS>(row) * PITCH + place.vector * N;
#pragma unroll
            for (int cell = 0; cell < CELLS; cell++) {
                const bool inside = p * POOL_H + cell / POOL_W < HEIGHT && q * POOL_W + cell % POOL_W < WIDTH;
                float values[N];
#pragma unroll
                for (int i = 0; i < N; i++)
                    values[i] = fmaf(slope[i], loaded[u][cell][i], offset[i] + (found[i] == cell ? d[i] : 0.f));
                if (WHOLE || inside) Numbers::of(values).store(to + pixel_of_cell(cell) * PITCH);
            }
        }
    }
}

#endif
