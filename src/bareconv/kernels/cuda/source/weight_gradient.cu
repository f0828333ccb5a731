// The gradient of a convolution's weights, and of its bias: a matrix product that contracts over output pixels.
//
//   dw[r][s][c][k] = sum over n, p, q of x[n][p * STRIDE_H + r * DILATION_H - PADDING_H]
//                                         [q * STRIDE_W + s * DILATION_W - PADDING_W][c] * dy[n][p][q][k]
//   db[k] = sum over n, p, q of dy[n][p][q][k]
//
// A block has some filters, channels and taps of the weight (blockIdx.x) and some of the tiles of output pixels
// (blockIdx.y): its sums are one part of the weight's gradient. Of a tile it stages dy, and x with the border that the
// taps reach; every tap reads the same staged x, at another offset. Its warps share out filters, channels, rows of taps
// and, where those are few, the tile's pixels.
//
// A staged tile is a list of TILE_PIXELS rows of dy, and a table that says where each of them finds its pixel of x.
// The list is contracted over in steps; what it lacks to a whole step are rows of zeros in dy.
//
// The shape: HEIGHT, WIDTH, CHANNELS, FILTERS, OUT_HEIGHT, OUT_WIDTH, KERNEL_*, STRIDE_*, PADDING_*, DILATION_*.
// A tile: TILE_IMAGES, TILE_ROWS, TILE_COLUMNS of output pixels; more than one image only of whole images.
// A block: TAP_ROWS x TAP_COLUMNS taps, *_WARPS, STAGES. A warp: WARP_TAP_ROWS x TAP_COLUMNS taps, FILTER_TILES of 16
// filters, CHANNEL_GROUPS of 8 channels. How a stage is laid out, in bytes: *_PITCH, X_BYTES, STAGE_BYTES.
#include "portable.cuh"

typedef Kept<PRECISION> Number;
typedef Number::Type Value;

constexpr int PER_COPY = 16 / Number::BYTES;
constexpr int BLOCK_FILTERS = 16 * FILTER_TILES * FILTER_WARPS, BLOCK_CHANNELS = 8 * CHANNEL_GROUPS * CHANNEL_WARPS;
constexpr int FILTER_BLOCKS = blocks_of(FILTERS, BLOCK_FILTERS), CHANNEL_BLOCKS = blocks_of(CHANNELS, BLOCK_CHANNELS);
constexpr int TAP_WARPS = TAP_ROWS / WARP_TAP_ROWS, TAP_BLOCKS_W = KERNEL_W / TAP_COLUMNS;
constexpr int THREADS = 32 * FILTER_WARPS * CHANNEL_WARPS * TAP_WARPS * PIXEL_WARPS;
constexpr int WEIGHTS = KERNEL_H * KERNEL_W * CHANNELS * FILTERS;

// Tiles of an image's output pixels; pixels of a tile; how many are contracted over at once, and in all.
constexpr int ROW_TILES = blocks_of(OUT_HEIGHT, TILE_ROWS), COLUMN_TILES = blocks_of(OUT_WIDTH, TILE_COLUMNS);
constexpr int TILE_PIXELS = TILE_IMAGES * TILE_ROWS * TILE_COLUMNS;
constexpr int STEP = PRECISION == FLOAT32 ? 16 : 32;
constexpr int STEPS = blocks_of(TILE_PIXELS, STEP * PIXEL_WARPS), LENGTH = STEPS * STEP * PIXEL_WARPS;

// Columns of x that are a stride apart are staged as neighbours, so that neighbouring output pixels always read from
// different banks: a row of staged x is PHASES runs of PHASE_COLUMNS pixels.
constexpr int PHASES = STRIDE_W / STAGED_STEP_W, PHASE_COLUMNS = blocks_of(STAGED_COLUMNS, PHASES);
DEVICE constexpr int place_of_column(int column) { return column % PHASES * PHASE_COLUMNS + column / PHASES; }

// What a warp's sums are: [tile of 16 filters][column of 8 (tap, channel)], held as multiply_bf16 says; NARROW instead
// has as columns the (tap, channel) themselves, and lanes that differ in ``inner`` have different pixels.
constexpr int WARP_TAPS = WARP_TAP_ROWS * TAP_COLUMNS;
constexpr int COLUMNS = NARROW ? blocks_of(WARP_TAPS * CHANNELS, 2) : WARP_TAPS * CHANNEL_GROUPS;
typedef float Sums[FILTER_TILES][COLUMNS][4];

DEVICE constexpr int offset_of_tap(int tap) {
    return tap / TAP_COLUMNS * DILATION_H / STAGED_STEP_H * X_ROW_PITCH +
           place_of_column(tap % TAP_COLUMNS * DILATION_W / STAGED_STEP_W) * X_PIXEL_PITCH;
}

// Bytes from a pixel's first staged channel to a column's first.
DEVICE constexpr int offset_of_column(int column) {
    return offset_of_tap(column / CHANNEL_GROUPS) + column % CHANNEL_GROUPS * 8 * Number::BYTES;
}

// A lane's row and column in a fragment.
DEVICE int outer_of_lane() { return lane_of_warp() >> 2; }
DEVICE int inner_of_lane() { return lane_of_warp() & 3; }

// A lane's filters, 2 a tile: bf16 as the instruction has them, otherwise runs of VECTOR that one load brings:
// two, where an operand of multiply_tf32 has two of one pixel side by side.
constexpr int VECTOR = FILTER_TILES == 1 || PRECISION == TF32 ? 2 : 4;
DEVICE int filter_of(int tile, int element) {
    if (PRECISION == BFLOAT16) return 16 * tile + 8 * (element >> 1) + outer_of_lane();
    const int index = 2 * tile + (element >> 1);
    return index / VECTOR * (8 * VECTOR) + outer_of_lane() * VECTOR + index % VECTOR;
}

// Where in the table a step's pixel is written, so that what a lane needs lies together.
DEVICE int place_in_step(int pixel) {
    if (PRECISION == TF32 || NARROW) return pixel % 4 * (STEP / 4) + pixel / 4;
    return pixel;
}

struct Tile {
    const Value* x;   // its first image
    const Value* dy;  // its first pixel
    int row, column;    // of the first staged pixel of x, which may lie outside of the image
    int offset;         // from x to there
    int images, pixels;  // that there are, of TILE_IMAGES and of TILE_PIXELS where a tile has whole rows
    int rows, columns;  // that there are, of the output
};

DEVICE Tile tile_at(u32 index, int images, const Value* x, const Value* dy, int tap_row, int tap_column) {
    const int image = index / (ROW_TILES * COLUMN_TILES) * TILE_IMAGES;
    const int p = index / COLUMN_TILES % ROW_TILES * TILE_ROWS, q = index % COLUMN_TILES * TILE_COLUMNS;
    Tile tile;
    tile.row = p * STRIDE_H + tap_row * DILATION_H - PADDING_H;
    tile.column = q * STRIDE_W + tap_column * DILATION_W - PADDING_W;
    tile.x = x + (long long)image * (HEIGHT * WIDTH * padded(CHANNELS));
    tile.offset = (tile.row * WIDTH + tile.column) * padded(CHANNELS);
    tile.dy = dy + (long long)image * (OUT_HEIGHT * OUT_WIDTH * padded(FILTERS)) + (p * OUT_WIDTH + q) * padded(FILTERS);
    tile.images = min(images - image, TILE_IMAGES);
    tile.rows = min(OUT_HEIGHT - p, TILE_ROWS), tile.columns = min(OUT_WIDTH - q, TILE_COLUMNS);
    tile.pixels = tile.images * tile.rows * OUT_WIDTH;
    return tile;
}

// The part of x that is staged anew with every tile; the rest is outside of the image in all of them, and zero.
constexpr int LOADED = TILE_IMAGES * LOADED_ROWS * LOADED_COLUMNS;

// A thread copies the same 16 bytes of every X_PASS-th pixel of x, and of every DY_PASS-th of dy.
constexpr int X_CHUNKS = BLOCK_CHANNELS / PER_COPY, X_PASS = THREADS / X_CHUNKS, X_PASSES = blocks_of(LOADED, X_PASS);
constexpr int DY_CHUNKS = BLOCK_FILTERS / PER_COPY, DY_PASS = THREADS / DY_CHUNKS;
constexpr int DY_PASSES = blocks_of(TILE_PIXELS, DY_PASS);

// Pixel ``index`` of those: where it is in global memory and in the stage, and what it takes to know if it is valid.
DEVICE int4 place_of_loaded(int index) {
    const int image = index / (LOADED_ROWS * LOADED_COLUMNS);
    const int row = LOADED_ROW + index / LOADED_COLUMNS % LOADED_ROWS, column = LOADED_COLUMN + index % LOADED_COLUMNS;
    const int h = row * STAGED_STEP_H, w = column * STAGED_STEP_W;
    return int4{((image * HEIGHT + h) * WIDTH + w) * padded(CHANNELS),
                image * X_IMAGE_PITCH + row * X_ROW_PITCH + place_of_column(column) * X_PIXEL_PITCH, h,
                TILE_IMAGES > 1 ? image << 16 | w : w};
}

struct Copier {
    const int4* places;  // of the thread's first pixel of x
    int x_pixel, x_chunk, x_number;  // its first pixel, which 16 bytes of it, the channel that they begin with
    int dy_pixel, dy_chunk, dy_number;
    bool has_x, has_dy;

    DEVICE Copier(const int4* table, int channel, int filter) {
        const u32 thread = threadIdx.x;
        has_x = THREADS % X_CHUNKS == 0 || thread < X_PASS * X_CHUNKS;
        has_dy = THREADS % DY_CHUNKS == 0 || thread < DY_PASS * DY_CHUNKS;
        x_pixel = has_x ? thread / X_CHUNKS : 0, dy_pixel = has_dy ? thread / DY_CHUNKS : 0;
        x_chunk = thread % X_CHUNKS, dy_chunk = thread % DY_CHUNKS;
        x_number = channel + x_chunk * PER_COPY, dy_number = filter + dy_chunk * PER_COPY;
        places = table + x_pixel;
    }

    // Where a number is not valid nothing is read, but the address must be one that could be.
    DEVICE void copy_x(u8* stage, const Tile& tile, int pass, bool wanted) const {
        const int4 place = places[pass * X_PASS];
        bool valid = padded(CHANNELS) % BLOCK_CHANNELS == 0 || x_number < padded(CHANNELS);
        if (CHECK_ROWS) valid = valid && (u32)(tile.row + place.z) < HEIGHT;
        if (TILE_IMAGES > 1) valid = valid && place.w >> 16 < tile.images;
        if (CHECK_COLUMNS) valid = valid && (u32)(tile.column + (TILE_IMAGES > 1 ? place.w & 0xffff : place.w)) < WIDTH;
        const Value* from = tile.x + (valid ? tile.offset + place.x + x_number : 0);
        const bool exists = LOADED % X_PASS == 0 || pass * X_PASS + x_pixel < LOADED;
        if (wanted && has_x && exists) copy_16(stage + place.y + x_chunk * 16, from, valid);
    }

    DEVICE void copy_dy(u8* stage, const Tile& tile, int pass, bool wanted) const {
        const u32 pixel = pass * DY_PASS + dy_pixel;
        bool valid = padded(FILTERS) % BLOCK_FILTERS == 0 || dy_number < padded(FILTERS);
        int offset = pixel;
        if (COLUMN_TILES == 1) {
            valid = valid && (int)pixel < tile.pixels;
        } else {
            const int row = pixel / TILE_COLUMNS, column = pixel % TILE_COLUMNS;
            valid = valid && row < tile.rows && column < tile.columns;
            offset = row * OUT_WIDTH + column;
        }
        const Value* from = tile.dy + (valid ? offset * padded(FILTERS) + dy_number : 0);
        const bool exists = TILE_PIXELS % DY_PASS == 0 || pixel < TILE_PIXELS;
        if (wanted && has_dy && exists) copy_16(stage + X_BYTES + pixel * DY_PITCH + dy_chunk * 16, from, valid);
    }
};

// Where a lane's numbers begin: in x from a column's first, in dy from a step's first row, in a step's table.
DEVICE int lane_of_x() {
    return PRECISION == BFLOAT16 || NARROW ? 0 : PRECISION == TF32 ? 4 * outer_of_lane() : 8 * inner_of_lane();
}
DEVICE int lane_of_dy() {
    const int lane = lane_of_warp();
    if (PRECISION == BFLOAT16) return (lane >> 4 << 3 | (lane & 7)) * DY_PITCH + (lane >> 3 & 1) * 16;
    return (PRECISION == TF32 || NARROW ? inner_of_lane() * DY_PITCH : 0) + outer_of_lane() * VECTOR * 4;
}
DEVICE int lane_of_table() {
    return PRECISION == BFLOAT16 ? lane_of_warp() : PRECISION == TF32 || NARROW ? inner_of_lane() * (STEP / 4) : 0;
}

// sums += a step's products. ``x`` is the stage, ``dy`` the step's first row, ``offsets`` its part of the table, each
// where the lane's numbers begin. ``meanwhile`` is called when loads are under way.
#if PRECISION == BFLOAT16

template <class F>
DEVICE void accumulate(Sums& sums, const u8* x, const u8* dy, const int* offsets, F&& meanwhile) {
    constexpr int AT_ONCE = COLUMNS < 9 ? COLUMNS : 9;
    const u8* pixel = x + *offsets;
    u32 a[2][FILTER_TILES][4];
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int m = 0; m < FILTER_TILES; m++) load_matrices_transposed(a[half][m], dy + half * 16 * DY_PITCH + m * 32);
#pragma unroll
    for (int first = 0; first < COLUMNS; first += AT_ONCE) {
        u32 b[AT_ONCE][4];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++)
            if (first + n < COLUMNS) load_matrices_transposed(b[n], pixel + offset_of_column(first + n));
        if (first == 0) meanwhile();
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++)
                if (first + n < COLUMNS) {
#pragma unroll
                    for (int m = 0; m < FILTER_TILES; m++)
                        multiply_bf16(sums[m][first + n], a[half][m], b[n][2 * half], b[n][2 * half + 1]);
                }
    }
}

#else

// A lane's filters of a row of dy.
DEVICE void load_filters(float (&filters)[2 * FILTER_TILES], const u8* row) {
#pragma unroll
    for (int i = 0; i < 2 * FILTER_TILES; i += VECTOR) {
        if (VECTOR == 4) {
            const float4 four = *(const float4*)(row + i * 32);
            filters[i] = four.x, filters[i + 1] = four.y, filters[i + 2] = four.z, filters[i + 3] = four.w;
        } else {
            const float2 two = *(const float2*)(row + i * 32);
            filters[i] = two.x, filters[i + 1] = two.y;
        }
    }
}

#if PRECISION == TF32

template <class F>
DEVICE void accumulate(Sums& sums, const u8* x, const u8* dy, const int* offsets, F&& meanwhile) {
    const int4 near = ((const int4*)offsets)[0], far = ((const int4*)offsets)[1];  // of the lane's pixels, 4 apart
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const int4 places = k < 2 ? near : far;
        const u8* first = x + (k & 1 ? places.z : places.x);
        const u8* second = x + (k & 1 ? places.w : places.y);
        float left[2 * FILTER_TILES], right[2 * FILTER_TILES];
        load_filters(left, dy + 8 * k * DY_PITCH);
        load_filters(right, dy + (8 * k + 4) * DY_PITCH);
        u32 a[FILTER_TILES][4], b[COLUMNS][2];
#pragma unroll
        for (int m = 0; m < FILTER_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                a[m][half] = bits_of(left[2 * m + half]), a[m][2 + half] = bits_of(right[2 * m + half]);
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            b[n][0] = *(const u32*)(first + offset_of_column(n));
            b[n][1] = *(const u32*)(second + offset_of_column(n));
        }
        if (k == 0) meanwhile();
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int m = 0; m < FILTER_TILES; m++) multiply_tf32(sums[m][n], a[m], b[n][0], b[n][1]);
    }
}

#else

DEVICE void accumulate_pixel(Sums& sums, const u8* pixel, const u8* row) {
    float filters[2 * FILTER_TILES];
    load_filters(filters, row);
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) {
        float2 values;
        if (NARROW) {
            const int odd = 2 * n + 1 < WARP_TAPS * CHANNELS ? 2 * n + 1 : 2 * n;
            values.x = *(const float*)(pixel + offset_of_tap(2 * n / CHANNELS) + 2 * n % CHANNELS * 4);
            values.y = *(const float*)(pixel + offset_of_tap(odd / CHANNELS) + odd % CHANNELS * 4);
        } else {
            values = *(const float2*)(pixel + offset_of_column(n));
        }
#pragma unroll
        for (int m = 0; m < FILTER_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float* sum = sums[m][n] + 2 * half;
                sum[0] = fmaf(filters[2 * m + half], values.x, sum[0]);
                if (!NARROW || 2 * n + 1 < WARP_TAPS * CHANNELS)
                    sum[1] = fmaf(filters[2 * m + half], values.y, sum[1]);
            }
    }
}

template <class F>
DEVICE void accumulate(Sums& sums, const u8* x, const u8* dy, const int* offsets, F&& meanwhile) {
    constexpr int APART = NARROW ? 4 : 1;  // a lane's pixels
    meanwhile();
#pragma unroll 1
    for (int k = 0; k < STEP / (NARROW ? 4 : 1); k += 4) {
        const int4 places = *(const int4*)(offsets + k);
        const u8* row = dy + k * DY_PITCH;
        accumulate_pixel(sums, x + places.x, row);
        accumulate_pixel(sums, x + places.y, row + APART * DY_PITCH);
        accumulate_pixel(sums, x + places.z, row + 2 * APART * DY_PITCH);
        accumulate_pixel(sums, x + places.w, row + 3 * APART * DY_PITCH);
    }
}

#endif
#endif

// What a block has of the weight, and a warp of the block.
struct Share {
    int filter, channel, tap_row, tap_column;
};

// Writes sums[tile][column][element], which a lane of the warp with ``share`` holds.
DEVICE void store(float* partial, const Share& share, int tile, int column, int element, float value) {
    int tap = column / CHANNEL_GROUPS, channel = column % CHANNEL_GROUPS * 8 + 2 * inner_of_lane() + (element & 1);
    if (NARROW) {
        const int number = 2 * column + (element & 1);
        tap = number / CHANNELS, channel = number % CHANNELS;
        // Each of the four lanes that have the same sums writes its share of them.
        if (number >= WARP_TAPS * CHANNELS || number % 4 != inner_of_lane()) return;
    }
    const int filter = share.filter + filter_of(tile, element);
    channel += share.channel;
    if (filter >= FILTERS || channel >= CHANNELS) return;
    const int row = share.tap_row + tap / TAP_COLUMNS, s = share.tap_column + tap % TAP_COLUMNS;
    partial[((row * KERNEL_W + s) * CHANNELS + channel) * FILTERS + filter] = value;
}

KERNEL(THREADS, 1)
weight_gradient(const Value* RESTRICT x, const Value* RESTRICT dy, float* RESTRICT partial,
#if BIAS
                float* RESTRICT partial_bias,
#endif
                const Control* RESTRICT control) {
    SHARED_MEMORY(shared);
    int* offsets = (int*)shared;                                // [LENGTH]: from the stage to a pixel of x
    int4* places = (int4*)(shared + LENGTH * (int)sizeof(int));  // [LOADED], and some that no one needs
    u8* stages = (u8*)(places + X_PASSES * X_PASS);

    const int thread = threadIdx.x, warp = warp_of_block(), part = blockIdx.y;
    Share block;
    block.filter = blockIdx.x % FILTER_BLOCKS * BLOCK_FILTERS;
    block.channel = blockIdx.x / FILTER_BLOCKS % CHANNEL_BLOCKS * BLOCK_CHANNELS;
    const int tap_block = blockIdx.x / (FILTER_BLOCKS * CHANNEL_BLOCKS);
    block.tap_row = tap_block / TAP_BLOCKS_W * TAP_ROWS, block.tap_column = tap_block % TAP_BLOCKS_W * TAP_COLUMNS;

    // Warps that share all but pixels are neighbours.
    const int warp_pixel = warp % PIXEL_WARPS, warp_filter = warp / PIXEL_WARPS % FILTER_WARPS;
    const int warp_channel = warp / (PIXEL_WARPS * FILTER_WARPS) % CHANNEL_WARPS;
    const int warp_tap = warp / (PIXEL_WARPS * FILTER_WARPS * CHANNEL_WARPS);
    Share share = block;
    share.filter += warp_filter * 16 * FILTER_TILES, share.channel += warp_channel * 8 * CHANNEL_GROUPS;
    share.tap_row += warp_tap * WARP_TAP_ROWS;

    for (int i = thread; i < LENGTH; i += THREADS) {
        const int pixel = i < TILE_PIXELS ? i : 0;  // beyond the tile's end dy is zero, and x anything finite
        const int image = pixel / (TILE_ROWS * TILE_COLUMNS), row = pixel / TILE_COLUMNS % TILE_ROWS;
        offsets[i / STEP * STEP + place_in_step(i % STEP)] = image * X_IMAGE_PITCH +
            row * (STRIDE_H / STAGED_STEP_H) * X_ROW_PITCH + pixel % TILE_COLUMNS * X_PIXEL_PITCH;
    }
    for (int i = thread; i < X_PASSES * X_PASS; i += THREADS) places[i] = place_of_loaded(i);
    for (int i = thread; i < STAGES * STAGE_BYTES / 16; i += THREADS) ((uint4*)stages)[i] = uint4{0u, 0u, 0u, 0u};
    sync_block();

    wait_for_kernels_before();
    let_next_kernel_start();
    const int images = control->images;
    const int tiles = blocks_of(images, TILE_IMAGES) * (ROW_TILES * COLUMN_TILES);
    const int begin = (int)((long long)tiles * part / PARTS), end = (int)((long long)tiles * (part + 1) / PARTS);
    const Copier copier(places, block.channel, block.filter);
    for (int i = 0; i < STAGES - 1; i++) {
        if (begin + i < end) {
            const Tile tile = tile_at(begin + i, images, x, dy, block.tap_row, block.tap_column);
            u8* stage = stages + i * STAGE_BYTES;
            for (int pass = 0; pass < X_PASSES; pass++) copier.copy_x(stage, tile, pass, true);
            for (int pass = 0; pass < DY_PASSES; pass++) copier.copy_dy(stage, tile, pass, true);
        }
        end_copies();
    }

    Sums sums;
#pragma unroll
    for (int m = 0; m < FILTER_TILES; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[m][n][e] = 0.f;

    // The bias: a thread has two filters and every STRIPS-th pixel.
    constexpr int STRIPS = THREADS / (BLOCK_FILTERS / 2), STEP_PIXELS = STEP * PIXEL_WARPS;
    const int pair = thread % (BLOCK_FILTERS / 2), strip = thread / (BLOCK_FILTERS / 2);
    const bool has_bias = BIAS && tap_block == 0 && block.channel == 0 && strip < STRIPS;
    float2 bias = {0.f, 0.f};

    const int warp_x = warp_tap * (WARP_TAP_ROWS * DILATION_H / STAGED_STEP_H * X_ROW_PITCH) +
                       warp_channel * 8 * CHANNEL_GROUPS * Number::BYTES + lane_of_x();
    const int warp_dy = X_BYTES + warp_pixel * STEP * DY_PITCH + warp_filter * 16 * FILTER_TILES * Number::BYTES +
                        lane_of_dy();
    const int* warp_offsets = offsets + warp_pixel * STEP + lane_of_table();
    int current = 0, next = STAGES - 1;
    for (int index = begin; index < end; index++) {
        copies_done<STAGES - 2>();
        sync_block();
        const u8* stage = stages + current * STAGE_BYTES;
        u8* ahead = stages + next * STAGE_BYTES;
        const bool more = index + STAGES - 1 < end;
        const Tile tile = tile_at(more ? index + STAGES - 1 : index, images, x, dy, block.tap_row, block.tap_column);
        const u8* row = stage + warp_dy;
        const int* table = warp_offsets;
        const u8* summed = stage + X_BYTES + strip * DY_PITCH + pair * (2 * Number::BYTES);
#pragma unroll 1
        for (int step = 0; step < STEPS; step++) {
            if (has_bias) {
#pragma unroll
                for (int i = 0; i < blocks_of(STEP_PIXELS, STRIPS); i++)
                    if (STEP_PIXELS % STRIPS == 0 || strip + i * STRIPS < STEP_PIXELS) {
                        const float2 two = Number::load_pair((const Value*)(summed + i * STRIPS * DY_PITCH));
                        bias.x += two.x, bias.y += two.y;
                    }
            }
            accumulate(sums, stage + warp_x, row, table, [&] {
                // The copies of a tile to come, spread over this one's steps.
                constexpr int X_PER_STEP = blocks_of(X_PASSES, STEPS), DY_PER_STEP = blocks_of(DY_PASSES, STEPS);
#pragma unroll 4
                for (int i = 0; i < X_PER_STEP; i++)
                    if (X_PASSES % STEPS == 0 || step * X_PER_STEP + i < X_PASSES)
                        copier.copy_x(ahead, tile, step * X_PER_STEP + i, more);
#pragma unroll 4
                for (int i = 0; i < DY_PER_STEP; i++)
                    if (DY_PASSES % STEPS == 0 || step * DY_PER_STEP + i < DY_PASSES)
                        copier.copy_dy(ahead, tile, step * DY_PER_STEP + i, more);
            });
            row += STEP_PIXELS * DY_PITCH, table += STEP_PIXELS, summed += STEP_PIXELS * DY_PITCH;
        }
        end_copies();
        current = current + 1 == STAGES ? 0 : current + 1;
        next = next + 1 == STAGES ? 0 : next + 1;
    }
    copies_done();
    sync_block();  // the stages are free for the sums

    if (NARROW) {
#pragma unroll
        for (int m = 0; m < FILTER_TILES; m++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    sums[m][n][e] += shuffle_xor(sums[m][n][e], 1);
                    sums[m][n][e] += shuffle_xor(sums[m][n][e], 2);
                }
    }
    float* mine = partial + (long long)part * WEIGHTS;
    if (PIXEL_WARPS == 1) {
#pragma unroll
        for (int m = 0; m < FILTER_TILES; m++)
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) store(mine, share, m, n, e, sums[m][n][e]);
    } else {
        // Some columns at a time: every warp leaves its sums, then takes its share of them from all warps.
        constexpr int NUMBERS = SUMMED_COLUMNS * FILTER_TILES * 4;
        float* table = (float*)stages;
        const int group = warp / PIXEL_WARPS;
#pragma unroll
        for (int n = 0; n < COLUMNS; n += SUMMED_COLUMNS) {
#pragma unroll
            for (int i = 0; i < SUMMED_COLUMNS; i++)
                if (n + i < COLUMNS) {
#pragma unroll
                    for (int m = 0; m < FILTER_TILES; m++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            table[(warp * NUMBERS + (i * FILTER_TILES + m) * 4 + e) * 32 + lane_of_warp()] =
                                sums[m][n + i][e];
                }
            sync_block();
            for (int number = warp_pixel; number < min(SUMMED_COLUMNS, COLUMNS - n) * FILTER_TILES * 4;
                 number += PIXEL_WARPS) {
                float sum = 0.f;
#pragma unroll
                for (int w = 0; w < PIXEL_WARPS; w++)
                    sum += table[((group * PIXEL_WARPS + w) * NUMBERS + number) * 32 + lane_of_warp()];
                store(mine, share, number / 4 % FILTER_TILES, n + number / (4 * FILTER_TILES), number % 4, sum);
            }
            sync_block();
        }
    }
#if BIAS
    if (tap_block == 0 && block.channel == 0) {
        float* table = (float*)stages;  // [STRIPS][BLOCK_FILTERS]
        if (has_bias) *(float2*)(table + strip * BLOCK_FILTERS + 2 * pair) = bias;
        sync_block();
        for (int filter = thread; filter < BLOCK_FILTERS; filter += THREADS) {
            float sum = 0.f;
            for (int i = 0; i < STRIPS; i++) sum += table[i * BLOCK_FILTERS + filter];
            if (block.filter + filter < FILTERS) partial_bias[part * FILTERS + block.filter + filter] = sum;
        }
    }
#endif
}
