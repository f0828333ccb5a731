// Batch normalisation, with the relu, the residual sum and the max pool that follow it. Formulas: ops/norm.py.
//
//   z = x scale + shift,   scale = gamma / sqrt(var + eps),   shift = beta - mean scale
//   y = maxpool(relu(z)),   relu(z + other)   or   relu(z) + other
//   dx = scale dz + slope x + offset: the formula of ops/norm.py, with what belongs to the channel put together
//
// SUM: NO_SUM, BEFORE_RELU, AFTER_RELU. RELU 0 or 1. Pool: windows of POOL_H x POOL_W that do not overlap; 1 x 1 is none.
// The winners of a pool, and what the relu lets through, are not stored: backward reads x anyhow and finds them again.
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

#if STAGE == STATISTICS

// parts[block][0][channel]: the mean of the block's rows, [1]: the sum of the squares of their distances from it.
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
}

#elif STAGE == FINISH_STATISTICS

constexpr int SIDE = 8, GROUPS = THREADS / SIDE;  // channels of a block, and threads that share one

struct Moments {
    float count, mean, squares;
};

// Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
DEVICE Moments merged(const Moments& a, const Moments& b) {
    if (b.count == 0.f) return a;
    const float count = a.count + b.count, share = b.count / count, distance = b.mean - a.mean;
    return {count, a.mean + distance * share, a.squares + b.squares + distance * distance * a.count * share};
}

// Pixels in part ``part``: tiles part, part + PARTS, ... of TILE rows; where TILE is 0 they are behind all parts.
DEVICE float pixels_of_part(int part, int rows, const float* parts) {
#if TILE > 0
    const int full = rows / TILE, rest = rows % TILE;
    return (float)((full > part ? (full - part - 1) / PARTS + 1 : 0) * TILE + (full % PARTS == part ? rest : 0));
#else
    return parts[(long long)PARTS * 2 * PITCH + part];
#endif
}

KERNEL(THREADS, 1)
finish_statistics(const float* RESTRICT parts, const Control* RESTRICT control, const float* RESTRICT gamma,
                  const float* RESTRICT beta, float* RESTRICT running_mean, float* RESTRICT running_var,
                  float* RESTRICT coefficients) {
    SHARED Moments shared[THREADS];
    const int channel = blockIdx.x * SIDE + threadIdx.x % SIDE, group = threadIdx.x / SIDE;
    wait_for_kernels_before();
    let_next_kernel_start();
    const int rows = control->images * PIXELS;
    Moments mine = {0.f, 0.f, 0.f};
#pragma unroll 4
    for (int part = group; part < PARTS; part += GROUPS) {
        const float* from = parts + (long long)part * (2 * PITCH) + channel;
        mine = merged(mine, {pixels_of_part(part, rows, parts), from[0], from[PITCH]});
    }
    shared[threadIdx.x] = mine;
    for (int half = GROUPS / 2; half > 0; half /= 2) {
        sync_block();
        if (group < half) shared[threadIdx.x] = merged(shared[threadIdx.x], shared[threadIdx.x + half * SIDE]);
    }
    if (group > 0) return;
    mine = shared[threadIdx.x];
    float inv_std = 0.f, scale = 0.f, shift = 0.f;
    if (channel < CHANNELS) {
        const float count = max(mine.count, 1.f), var = mine.squares / count;
        inv_std = 1.f / sqrtf(var + (float)(EPS));
        scale = gamma[channel] * inv_std;
        shift = fmaf(-mine.mean, scale, beta[channel]);
        if (rows > 0) {
            const float keep = (float)(1.0 - (MOMENTUM)), take = (float)(MOMENTUM);
            running_mean[channel] = running_mean[channel] * keep + take * mine.mean;
            running_var[channel] = running_var[channel] * keep + take * (var * (count / max(count - 1.f, 1.f)));
        }
    }
    coefficients[MEAN + channel] = channel < CHANNELS ? mine.mean : 0.f;
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
      const Control* RESTRICT control, Kind* RESTRICT y) {
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
#pragma unroll
            for (int i = 0; i < N; i++) {
                float z;
                winner(loaded[u], i, scale[i], shift[i], z);
                if constexpr (SUM == BEFORE_RELU) z += added[u][i];
                if constexpr (RELU) z = relu(z);
                if constexpr (SUM == AFTER_RELU) z += added[u][i];
                values[i] = z;
            }
            Numbers::of(values).store(y + (long long)row * PITCH + place.vector * N);
        }
    }
}

#elif STAGE == SUM_GRADIENTS

// parts[block][0][channel]: the sum of dz, [1]: of dz (x - mean). With BEFORE_RELU the relu's share is told from y, and
// dy without what it holds back goes to ``masked``, which may be dy: it is the gradient of ``other``, too.
KERNEL(THREADS, 2)
sum_gradients(const Kind* RESTRICT x, const Kind* dy, const Kind* RESTRICT y, const float* RESTRICT coefficients,
              const Control* RESTRICT control, float* RESTRICT parts, Kind* masked) {
    SHARED_MEMORY(memory);
    constexpr int TILE = LANES * UNROLL;
    constexpr bool BY_Y = RELU && SUM == BEFORE_RELU;
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
            Numbers loaded[UNROLL][CELLS], given[UNROLL], result[UNROLL];
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
                if constexpr (BY_Y) result[u] = Numbers::load(y + at);
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
                    if constexpr (RELU) d = (BY_Y ? result[u][i] : z) > 0.f ? d : 0.f;
                    values[i] = d;
                    sums[0][i] += d;
                    sums[1][i] = fmaf(d, won - mean[i], sums[1][i]);
                }
                if constexpr (BY_Y) Numbers::of(values).store(masked + (long long)row * PITCH + place.vector * N);
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

constexpr int SIDE = 8, GROUPS = THREADS / SIDE;

// The parameters' gradients, and what pass 2 needs of them.
KERNEL(THREADS, 1)
finish_gradients(const float* RESTRICT parts, const Control* RESTRICT control, float* RESTRICT coefficients,
                 float* RESTRICT dgamma, float* RESTRICT dbeta) {
    SHARED float2 shared[THREADS];
    const int channel = blockIdx.x * SIDE + threadIdx.x % SIDE, group = threadIdx.x / SIDE;
    wait_for_kernels_before();
    let_next_kernel_start();
    const float count = (float)max(control->images * PIXELS, 1);
    float2 mine = {0.f, 0.f};
#pragma unroll 4
    for (int part = group; part < PARTS; part += GROUPS) {
        const float* from = parts + (long long)part * (2 * PITCH) + channel;
        mine.x += from[0], mine.y += from[PITCH];
    }
    shared[threadIdx.x] = mine;
    for (int half = GROUPS / 2; half > 0; half /= 2) {
        sync_block();
        if (group < half) {
            const float2 more = shared[threadIdx.x + half * SIDE];
            shared[threadIdx.x].x += more.x, shared[threadIdx.x].y += more.y;
        }
    }
    if (group > 0) return;
    mine = shared[threadIdx.x];
    float slope = 0.f, offset = 0.f;
    if (channel < CHANNELS) {
        const float inv_std = coefficients[INV_STD + channel], scale = coefficients[SCALE + channel];
        dbeta[channel] = mine.x;
        dgamma[channel] = mine.y * inv_std;
        slope = -scale * inv_std * (mine.y * inv_std) / count;
        offset = -scale * mine.x / count - slope * coefficients[MEAN + channel];
    }
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
