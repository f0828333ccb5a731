// Convolution, forward and to its input, as one thing: a correlation.
//
//   out[n][i GRID_STEP_Y + GRID_FROM_Y][j GRID_STEP_X + GRID_FROM_X][m] =
//       sum over taps (u, v) and k of  in[n][i STRIDE_Y + dy(u)][j STRIDE_X + dx(v)][k] * weight of (u, v)[k][m]
//
// for i < GRID_H, j < GRID_W and u < TAPS_Y, v < TAPS_X, with dy(u) = OFFSET_Y + u OFFSET_STEP_Y, and so dx; outside
// its image ``in`` is zero. Tap (u, v) is number WEIGHT_TAP + u WEIGHT_TAP_Y + v WEIGHT_TAP_X of the working copy of
// the weights, [tap][padded channels][padded filters]. Forward, m counts filters and k channels. With BACKWARD it is
// the other way round: dX of a convolution whose stride is not 1 is a correlation for each class of input pixels, those
// with the same remainders by the stride, over the taps that reach them.
//
// How: the outputs, in the order of memory (image, strip, row, column), are cut into tiles of BLOCK_M pixels; a strip
// is STRIP columns wide, all of them where rows are short. A block makes BLOCK_N channels of such a tile. It brings the
// rows of ``in`` that its pixels need to shared memory, a chunk of channels at a time and both of this and the weights
// some steps ahead, and serves every tap from there: a lane names for each pixel the address of what a tap sees of it,
// or of zeros outside the image. What is multiplied is a list of groups, 16 bytes of channels of one tap each, so that
// few channels do not waste a multiplication's depth. A stride keeps apart what never meets: rows and columns of each
// remainder (a slot) lie together, so that neighbouring pixels are neighbours there.
//
// Constants: above; PRECISION, BATCH, INPUT_H, INPUT_W, INPUT_CHANNELS, OUTPUT_H, OUTPUT_W, OUTPUT_CHANNELS;
//   BLOCK_M, BLOCK_N, WARP_M, WARP_N   pixels and channels of a block's and of a warp's tile
//   CHUNK                              groups of channels at a time
//   STEP, STAGES                       multiplications a step of the weights' pipeline, and how many steps it holds
//   TAPS_AT_ONCE_Y, TAPS_AT_ONCE_X     taps that one tile of the input serves: all, one row of them, or one
//   STRIP, INPUT_ROWS                        columns of a strip; rows of the input, of one slot, that any tile needs at most
//   AHEAD                              whether a warp fetches a multiplication's operands during the one before
//   BLOCKS                             blocks on a multiprocessor, for the compiler
//   BIAS, ADD, RELU, MASK, STATISTICS  what is done to the sums (correlate.py)
#include "tile.cuh"

namespace {

typedef Kept<PRECISION> Number;
typedef Tile<PRECISION, WARP_M, WARP_N, ALONG, BACKWARD ? ALONG : ACROSS> Product;

constexpr int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
constexpr int modulo(int a, int b) { return a - floor_div(a, b) * b; }
template <class T>
constexpr T smaller(T a, T b) {
    return a < b ? a : b;
}
template <class T>
constexpr T larger(T a, T b) {
    return a > b ? a : b;
}
constexpr int divisor(int a, int b) { return b == 0 ? (a < 0 ? -a : a) : divisor(b, a % b); }
constexpr int clamped(int value, int least, int most) { return larger(least, smaller(value, most)); }

constexpr int WARPS_M = BLOCK_M / WARP_M, WARPS_N = BLOCK_N / WARP_N, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int INPUT_PITCH = padded(INPUT_CHANNELS), OUTPUT_PITCH = padded(OUTPUT_CHANNELS);
constexpr int WEIGHT_ROWS = BACKWARD ? OUTPUT_PITCH : INPUT_PITCH, WEIGHT_PITCH = BACKWARD ? INPUT_PITCH : OUTPUT_PITCH;

// The outputs.
constexpr int STRIPS = blocks_of(GRID_W, STRIP), STRIP_PIXELS = GRID_H * STRIP;
constexpr int PIXELS = BATCH * STRIPS * STRIP_PIXELS;
static_assert((long long)BATCH * STRIPS * STRIP_PIXELS < 1ll << 30 && (long long)BATCH * OUTPUT_H * OUTPUT_W < 1ll << 31,
              "pixels are counted in 32 bits");
constexpr int TILES_M = blocks_of(PIXELS, BLOCK_M), TILES_N = blocks_of(OUTPUT_PITCH, BLOCK_N);

// The list of a part: a chunk of channels, for some of the taps.
constexpr int GROUP = 16 / Number::BYTES;  // numbers in it
constexpr int GROUPS = blocks_of(INPUT_CHANNELS, GROUP), CHUNKS = blocks_of(GROUPS, CHUNK);
constexpr int ENTRY = Product::STEP_BYTES / 16;  // groups that one multiplication takes
constexpr int TAPS_AT_ONCE = TAPS_AT_ONCE_Y * TAPS_AT_ONCE_X, LIST = TAPS_AT_ONCE * CHUNK;
constexpr int STEP_GROUPS = STEP * ENTRY, STEPS = blocks_of(LIST, STEP_GROUPS);
constexpr int TAP_PARTS_X = TAPS_AT_ONCE_X ? TAPS_X / TAPS_AT_ONCE_X : 0;
constexpr int TAP_PARTS = TAPS_AT_ONCE ? TAPS_Y / TAPS_AT_ONCE_Y * TAP_PARTS_X : 0;
constexpr int PARTS = TAP_PARTS * CHUNKS, ALL_STEPS = PARTS * STEPS;
// Multiplications between two looks at where the pixels lie; 1 where both halves of one may be of different taps.
constexpr int SPAN = CHUNK % ENTRY == 0 ? divisor(STEP, CHUNK / ENTRY) : 1;

// One axis of the input, as it lies in shared memory.
template <int SIZE, int STRIDE, int COUNT, int AT_ONCE, int OFFSET, int OFFSET_STEP>
struct Axis {
    // Taps of how many remainders by the stride there are; they take turns.
    static constexpr int SLOTS = AT_ONCE ? smaller(AT_ONCE, STRIDE / divisor(STRIDE, OFFSET_STEP)) : 1;
    static constexpr int REACH = AT_ONCE ? ((OFFSET_STEP < 0 ? -OFFSET_STEP : OFFSET_STEP) * (AT_ONCE - 1) + STRIDE - 1) / STRIDE : 0;
    static constexpr int ALL = blocks_of(SIZE, STRIDE);
    static constexpr int HELD = smaller(ALL, COUNT + REACH);  // places: from 0 if it is all, else from the first needed
    static constexpr bool IS_ALL = HELD == ALL;

    DEVICE static int offset(int tap) { return OFFSET + tap * OFFSET_STEP; }
    // Pixel i sees through a tap the place i + shift(tap) of slot tap % SLOTS.
    DEVICE static int shift(int tap) { return floor_div(offset(tap), STRIDE); }
    DEVICE static int least(int tap) { return OFFSET_STEP < 0 ? shift(tap + AT_ONCE - 1) : shift(tap); }
    DEVICE static int most(int tap) { return OFFSET_STEP < 0 ? shift(tap) : shift(tap + AT_ONCE - 1); }
    static constexpr bool is_inside(int pixels, int taps) {
        const int first = OFFSET, last = OFFSET + (taps - 1) * OFFSET_STEP;
        return smaller(first, last) >= 0 && (pixels - 1) * STRIDE + larger(first, last) < SIZE;
    }
};
typedef Axis<INPUT_H, STRIDE_Y, GRID_H, TAPS_AT_ONCE_Y, OFFSET_Y, OFFSET_STEP_Y> Vertical;
typedef Axis<INPUT_W, STRIDE_X, STRIP, TAPS_AT_ONCE_X, OFFSET_X, OFFSET_STEP_X> Horizontal;

constexpr int SLOTS = Vertical::SLOTS * Horizontal::SLOTS, WIDTH = Horizontal::HELD;
constexpr bool IS_PAIRED = CHUNK % ENTRY != 0;
constexpr bool NEEDS_ZEROS = !Vertical::is_inside(GRID_H, TAPS_Y) || !Horizontal::is_inside(GRID_W, TAPS_X) ||
                             STRIPS * STRIP != GRID_W || LIST % STEP_GROUPS != 0;

// Shared memory: zeros; tiles of the input; steps of weights.
constexpr int INPUT_BYTES = row_bytes<PRECISION, ALONG>(CHUNK * GROUP);  // of a pixel
constexpr int INPUT_TILE = (SLOTS * INPUT_ROWS * WIDTH * INPUT_BYTES + 127) / 128 * 128;
constexpr int BUFFERS = smaller(PARTS, 1 + blocks_of(STAGES - 1, larger(STEPS, 1)));
constexpr int WEIGHT_BYTES = BACKWARD ? row_bytes<PRECISION, ALONG>(STEP_GROUPS * GROUP) : row_bytes<PRECISION, ACROSS>(BLOCK_N);
constexpr int WEIGHT_TILE = ((BACKWARD ? BLOCK_N : STEP_GROUPS * GROUP) * WEIGHT_BYTES + 127) / 128 * 128;
constexpr int ZEROS = 0, ZERO_BYTES = (128 + SPAN * Product::STEP_BYTES + 127) / 128 * 128;
constexpr int INPUTS = ZERO_BYTES, WEIGHTS = INPUTS + BUFFERS * INPUT_TILE;
static_assert(INPUT_H < 1 << 16 && (STRIPS * STRIP - 1) * STRIDE_X < 1 << 16, "places in an image are kept in 16 bits each");
static_assert(WEIGHTS + STAGES * WEIGHT_TILE <= SHARED_BYTES && (1 + WARPS_M) * BLOCK_N * 4 <= SHARED_BYTES, "shared memory");

// An output.
struct Pixel {
    int strip, row, place, column;  // strips of all images counted through; the place of the column in the strip

    DEVICE explicit Pixel(u32 index) {
        strip = index / STRIP_PIXELS;
        const u32 rest = index % STRIP_PIXELS;
        row = rest / STRIP, place = rest % STRIP;
        column = (u32)strip % STRIPS * STRIP + place;
    }
    DEVICE bool exists(int images) const { return strip < images * STRIPS && column < GRID_W; }
    DEVICE u32 memory() const {  // in pixels
        const int line = (u32)strip / STRIPS * OUTPUT_H + row * GRID_STEP_Y + GRID_FROM_Y;
        return line * OUTPUT_W + column * GRID_STEP_X + GRID_FROM_X;
    }
};

// How many outputs there are before the ``index``th place, of this many images.
DEVICE int pixels_before(int index, int images) {
    const Pixel pixel(smaller(index, images * STRIPS * STRIP_PIXELS));
    const int first = pixel.strip % STRIPS * STRIP, width = smaller(STRIP, GRID_W - first);
    return pixel.strip / STRIPS * (GRID_H * GRID_W) + first * GRID_H + pixel.row * width + smaller(pixel.place, width);
}

// The taps of a part, and its channels.
struct Part {
    int tap_y, tap_x, group;

    DEVICE explicit Part(int part) {
        const int taps = part / CHUNKS;
        group = part % CHUNKS * CHUNK;
        tap_y = taps / larger(TAP_PARTS_X, 1) * TAPS_AT_ONCE_Y, tap_x = taps % larger(TAP_PARTS_X, 1) * TAPS_AT_ONCE_X;
    }
};

// A step, and where in shared memory is what it needs.
struct Place {
    int part, step, buffer, stage;

    DEVICE void advance() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (++step == STEPS) {
            step = 0, part++;
            buffer = buffer + 1 == BUFFERS ? 0 : buffer + 1;
        }
    }
};

struct Correlation {
    const Number::Type* input;
    const Number::Type* weight;
    u8* shared;
    int images, first_channel;
    Pixel first, last;  // of the tile
    Product product;
    Product::Left left[1 + AHEAD];  // operands of a multiplication, and with AHEAD already of the next
    Product::Right right[1 + AHEAD];
    // Of the pixels whose addresses this lane gives: where they lie if no tap shifts them, and where their windows start.
    int base[Product::LEFT_LOADS];
    u32 window[Product::LEFT_LOADS];  // row << 16 | column
    int rows[Product::LEFT_LOADS];  // addresses for the multiplications to come
    int right_lane;

    // The first row of the tile in shared memory, in rows of the first pixel's strip.
    DEVICE int first_row(int tap_y) const {
        const int from = Vertical::IS_ALL ? 0 : Vertical::least(tap_y);
        return clamped(first.row + Vertical::least(tap_y) - from, 0, Vertical::HELD - 1);
    }

    DEVICE void load_input(u8* to, const Part& part) const {
        const int from_y = Vertical::IS_ALL ? 0 : Vertical::least(part.tap_y);
        const int begin = first_row(part.tap_y);
        const int end = (last.strip - first.strip) * Vertical::HELD +
                        clamped(last.row + Vertical::most(part.tap_y) - from_y, 0, Vertical::HELD - 1) + 1;
        constexpr u32 COUNT = SLOTS * INPUT_ROWS * WIDTH * CHUNK;
        constexpr bool IS_CONTIGUOUS = STRIPS == 1 && STRIDE_Y == 1 && STRIDE_X == 1 && Vertical::IS_ALL && Horizontal::IS_ALL;
        if constexpr (IS_CONTIGUOUS) {
            const long long line = (long long)first.strip * INPUT_H + begin;
            const int lines = smaller(end - begin, (int)((long long)images * INPUT_H - line));
            const Number::Type* from = input + line * (INPUT_W * INPUT_PITCH) + part.group * GROUP;
            if constexpr (THREADS % CHUNK == 0) {
                // A thread's group is always the same, and its pixels lie equally far apart.
                constexpr u32 APART = THREADS / CHUNK;
                const u32 group = threadIdx.x % CHUNK, pixel = threadIdx.x / CHUNK;
                const bool valid = CHUNKS * CHUNK == GROUPS || part.group + (int)group < GROUPS;
                const u8* source = (const u8*)(valid ? from + pixel * INPUT_PITCH + group * GROUP : input);
                u8* target = to + pixel * INPUT_BYTES + group * 16;
#pragma unroll 4
                for (int left = lines * WIDTH - (int)pixel; left > 0; left -= APART) {
                    copy_16(target, source, valid);
                    source += valid ? APART * INPUT_PITCH * Number::BYTES : 0, target += APART * INPUT_BYTES;
                }
            } else {
#pragma unroll 1
                for (u32 index = threadIdx.x; index < (u32)lines * (WIDTH * CHUNK); index += THREADS) {
                    const u32 pixel = index / CHUNK, group = index % CHUNK;
                    const bool valid = CHUNKS * CHUNK == GROUPS || part.group + (int)group < GROUPS;
                    copy_16(to + pixel * INPUT_BYTES + group * 16, valid ? from + pixel * INPUT_PITCH + group * GROUP : input, valid);
                }
            }
        } else {
#pragma unroll 1
            for (u32 index = threadIdx.x; index < COUNT; index += THREADS) {
                const int pixel = index / CHUNK, group = index % CHUNK;
                const int place = (u32)pixel % WIDTH, row = (u32)pixel / WIDTH % INPUT_ROWS, slot = (u32)pixel / (WIDTH * INPUT_ROWS);
                if (begin + row >= end) continue;
                const int strip = first.strip + (begin + row) / Vertical::HELD;
                const int slot_y = slot / Horizontal::SLOTS, slot_x = slot % Horizontal::SLOTS;
                const int from_x = Horizontal::IS_ALL ? 0 : strip % STRIPS * STRIP + Horizontal::least(part.tap_x);
                const int y = ((begin + row) % Vertical::HELD + from_y) * STRIDE_Y + modulo(Vertical::offset(part.tap_y + slot_y), STRIDE_Y);
                const int x = (place + from_x) * STRIDE_X + modulo(Horizontal::offset(part.tap_x + slot_x), STRIDE_X);
                const bool valid = (u32)y < (u32)INPUT_H && (u32)x < (u32)INPUT_W && strip < images * STRIPS && part.group + group < GROUPS;
                const long long at = ((long long)(strip / STRIPS) * INPUT_H + y) * INPUT_W + x;
                copy_16(to + pixel * INPUT_BYTES + group * 16, valid ? input + at * INPUT_PITCH + (part.group + group) * GROUP : input, valid);
            }
        }
    }

    // Weights of a step's groups, from number ``from`` of the part's list.
    DEVICE void load_weights(u8* to, const Part& part, int from) const {
        constexpr u32 LINES = BACKWARD ? BLOCK_N : STEP_GROUPS * GROUP;
        constexpr u32 PIECES = BACKWARD ? STEP_GROUPS : BLOCK_N / GROUP;
        constexpr u32 COUNT = LINES * PIECES;
        constexpr bool IS_ONE_TAP = CHUNK % STEP_GROUPS == 0, IS_ALWAYS_SAME_PIECE = THREADS % PIECES == 0;
        constexpr bool HAS_ALL_GROUPS = LIST % STEP_GROUPS == 0 && GROUPS % CHUNK == 0, HAS_ALL_CHANNELS = OUTPUT_PITCH % BLOCK_N == 0;
        const u32 first_line = threadIdx.x / PIECES, first_piece = threadIdx.x % PIECES;
#pragma unroll(blocks_of(COUNT, THREADS) <= 16 ? 16 : 4)
        for (u32 i = 0; i < (u32)blocks_of(COUNT, THREADS); i++) {
            const u32 index = threadIdx.x + i * THREADS;
            if (COUNT % THREADS != 0 && index >= COUNT) break;
            const u32 line = IS_ALWAYS_SAME_PIECE ? first_line + i * (THREADS / PIECES) : index / PIECES;
            const u32 piece = IS_ALWAYS_SAME_PIECE ? first_piece : index % PIECES;
            // Which group this is, of which tap; the same tap for all where a step does not reach into the next.
            const u32 within = BACKWARD ? piece : line / GROUP, number = IS_ONE_TAP ? from : from + within;
            const u32 tap = number / CHUNK, group = part.group + number % CHUNK + (IS_ONE_TAP ? within : 0);
            const int tap_y = part.tap_y + tap / larger(TAPS_AT_ONCE_X, 1), tap_x = part.tap_x + tap % larger(TAPS_AT_ONCE_X, 1);
            const int plane = (WEIGHT_TAP + tap_y * WEIGHT_TAP_Y + tap_x * WEIGHT_TAP_X) * (WEIGHT_ROWS * WEIGHT_PITCH);
            const int outer = first_channel + (BACKWARD ? line : piece * GROUP);
            const bool valid = (HAS_ALL_GROUPS || (tap < TAPS_AT_ONCE && group < GROUPS)) && (HAS_ALL_CHANNELS || outer < OUTPUT_PITCH);
            const Number::Type* source;
            if constexpr (IS_ONE_TAP && IS_ALWAYS_SAME_PIECE) {
                // What differs from line to line is a constant.
                const int row = BACKWARD ? first_channel + first_line : (part.group + number % CHUNK) * GROUP + first_line;
                const int column = BACKWARD ? (int)(group * GROUP) : outer;
                source = weight + (plane + row * WEIGHT_PITCH + column) + (long long)(i * (THREADS / PIECES) * WEIGHT_PITCH);
            } else {
                const int inner = group * GROUP + (BACKWARD ? 0 : line % GROUP);
                source = weight + (plane + (BACKWARD ? outer : inner) * WEIGHT_PITCH + (BACKWARD ? inner : outer));
            }
            copy_16(to + line * WEIGHT_BYTES + piece * 16, valid ? source : weight, valid);
        }
    }

    // The copies of a step, and of the input where it is a part's first; the place of the next.
    DEVICE void load(Place& place) const {
        if (place.part < PARTS) {
            const Part part(place.part);
            if (place.step == 0) load_input(shared + INPUTS + place.buffer * INPUT_TILE, part);
            load_weights(shared + WEIGHTS + place.stage * WEIGHT_TILE, part, place.step * STEP_GROUPS);
            place.advance();
        }
        end_copies();
    }

    // Addresses for the multiplications from number ``entry`` of the part's list.
    DEVICE void look(const Place& place, int entry) {
        const Part part(place.part);
        const int half = IS_PAIRED ? lane_of_warp() >> 4 : 0;
        const u32 listed = (place.step * STEP + entry) * ENTRY + half, tap = listed / CHUNK, group = listed % CHUNK;
        const int tap_y = part.tap_y + tap / larger(TAPS_AT_ONCE_X, 1), tap_x = part.tap_x + tap % larger(TAPS_AT_ONCE_X, 1);
        const int dy = Vertical::offset(tap_y), dx = Horizontal::offset(tap_x);
        const int slot = (tap_y - part.tap_y) % Vertical::SLOTS * Horizontal::SLOTS + (tap_x - part.tap_x) % Horizontal::SLOTS;
        const int from_y = first_row(part.tap_y) + (Vertical::IS_ALL ? 0 : Vertical::least(part.tap_y));
        const int from_x = Horizontal::IS_ALL ? 0 : Horizontal::least(part.tap_x);
        const int shift = (slot * INPUT_ROWS + Vertical::shift(tap_y) - from_y) * WIDTH + Horizontal::shift(tap_x) - from_x;
        const int all = INPUTS + place.buffer * INPUT_TILE + shift * INPUT_BYTES + (int)group * 16;
        const bool exists = LIST % STEP_GROUPS == 0 || tap < TAPS_AT_ONCE;
#pragma unroll
        for (int i = 0; i < Product::LEFT_LOADS; i++) {
            rows[i] = base[i] + all;
            if constexpr (NEEDS_ZEROS) {
                const bool inside = (window[i] >> 16) + dy < (u32)INPUT_H && (window[i] & 0xffff) + dx < (u32)INPUT_W && exists;
                rows[i] = inside ? rows[i] : ZEROS + (rows[i] & 0x70);  // in banks of its own, as the pixel would be
            }
        }
    }

    template <int SLOT>
    DEVICE void fetch(const Place& place, int entry) {  // operands of a step's multiplication
        if (entry % SPAN == 0) look(place, entry);
#pragma unroll
        for (int i = 0; i < Product::LEFT_LOADS; i++)
            Product::load_left_row(left[SLOT], i, shared + rows[i] + entry % SPAN * Product::STEP_BYTES);
        const int offset = BACKWARD ? entry * Product::STEP_BYTES : entry * Product::K * WEIGHT_BYTES;
        Product::template load_right<WEIGHT_BYTES>(right[SLOT], shared + WEIGHTS + place.stage * WEIGHT_TILE + right_lane + offset);
    }

    template <int PARITY>
    DEVICE void run_step(Place& here, Place& ahead) {
        // Where a pixel has no more channels than one multiplication takes, those that it has.
        constexpr int DEPTH = GROUPS == 1 ? smaller(Product::K, INPUT_CHANNELS) : Product::K;
#pragma unroll
        for (int entry = 0; entry < STEP; entry++) {
            const bool is_odd = AHEAD && (PARITY + entry) % 2;
            if constexpr (!AHEAD) fetch<0>(here, entry);
            if (entry == STEP - 1) {
                // All have what they need of this step: its place is free, and the next step is there.
                copies_done<STAGES - 2>();
                sync_block();
                load(ahead);
                here.advance();
                if constexpr (AHEAD)
                    if (here.part < PARTS) fetch<(PARITY + STEP) % 2>(here, 0);
            } else if constexpr (AHEAD) {
                if (is_odd) fetch<0>(here, entry + 1);
                else fetch<1>(here, entry + 1);
            }
            if (is_odd) product.template multiply<DEPTH>(left[AHEAD], right[AHEAD]);
            else product.template multiply<DEPTH>(left[0], right[0]);
        }
    }

    DEVICE void run(const float* bias) {
        const int warp_m = warp_of_block() % WARPS_M, warp_n = warp_of_block() / WARPS_M;
        for (int i = threadIdx.x; i < ZERO_BYTES / 4; i += THREADS) ((u32*)(shared + ZEROS))[i] = 0u;
        Place here{0, 0, 0, 0}, ahead{0, 0, 0, 0};
#pragma unroll 1
        for (int step = 0; step < STAGES; step++) load(ahead);
        const int tile = first.strip * STRIP_PIXELS + first.row * STRIP + first.place;
#pragma unroll
        for (int i = 0; i < Product::LEFT_LOADS; i++) {
            const Pixel pixel(tile + warp_m * WARP_M + Product::left_row(i));
            window[i] = (u32)pixel.row * STRIDE_Y << 16 | (u32)pixel.column * STRIDE_X;
            const int line = (pixel.strip - first.strip) * Vertical::HELD + pixel.row;
            base[i] = (line * WIDTH + (Horizontal::IS_ALL ? pixel.column : pixel.place)) * INPUT_BYTES;
            if constexpr (!IS_PAIRED) base[i] += Product::left_byte();
        }
        if constexpr (BIAS)  // where the sums begin
#pragma unroll
            for (int q = 0; q < Product::COLUMNS; q++) {
                const int channel = first_channel + warp_n * WARP_N + Product::column(q);
                const float value = channel < OUTPUT_CHANNELS ? bias[channel] : 0.f;
#pragma unroll
                for (int r = 0; r < Product::ROWS; r++) product.at(r, q) = value;
            }
        right_lane = Product::right_lane(WEIGHT_BYTES) + warp_n * WARP_N * (BACKWARD ? WEIGHT_BYTES : Number::BYTES);
        copies_done<STAGES - 1>();
        sync_block();
        if constexpr (AHEAD) fetch<0>(here, 0);
#pragma unroll 1
        while (here.part < PARTS) {
            run_step<0>(here, ahead);
            if constexpr (AHEAD && STEP % 2 != 0)
                if (here.part < PARTS) run_step<1>(here, ahead);
        }
    }
};

// Two numbers at a time where the lane has neighbours.
template <class F>
DEVICE void for_columns(int first_channel, F&& what) {
    constexpr int COUNT = Product::RUN == 1 ? 1 : 2;
#pragma unroll
    for (int q = 0; q < Product::COLUMNS; q += COUNT) {
        const int channel = first_channel + Product::column(q);
        if (OUTPUT_PITCH % BLOCK_N == 0 || channel < OUTPUT_PITCH) what(q, channel);
    }
}

DEVICE float rounded(float value) { return to_float(Number::of(value)); }

DEVICE float2 load_numbers(const Number::Type* from) {
    if constexpr (Product::RUN == 1) return float2{to_float(*from), 0.f};
    else return Number::load_pair(from);
}

// The block's row of the statistics: of each channel the mean, then the sum of squares of what differs from it.
DEVICE void write_statistics(
    Product& product, int first, int first_pixel, int block_channel, int warp_m, int warp_n, int images,
    float* statistics, u8* shared) {
    const int tile = first / BLOCK_M;
    const int end = smaller(first + BLOCK_M, PIXELS);
    float* means = (float*)shared;       // [channel]
    float* sums = means + BLOCK_N;       // [warp][channel]
    const float count = (float)(pixels_before(end, images) - pixels_before(first, images));
    u32 existing = 0;
#pragma unroll
    for (int r = 0; r < Product::ROWS; r++)
        existing |= (u32)(Pixel(first_pixel + Product::row(r)).exists(images) && first_pixel + Product::row(r) < end) << r;
    static_assert(Product::ROWS <= 32, "a bit for each row");
    copies_done<0>();
    // Twice: the sum, for the mean; then the squares of what differs from it.
#pragma unroll
    for (int round = 0; round < 2; round++) {
        sync_block();
#pragma unroll
        for (int q = 0; q < Product::COLUMNS; q++) {
            const int column = warp_n * WARP_N + Product::column(q);
            const float mean = round ? means[column] : 0.f;
            float sum = 0.f;
#pragma unroll
            for (int r = 0; r < Product::ROWS; r++) {
                const float value = product.at(r, q) - mean;
                if (existing >> r & 1) sum += round ? value * value : value;
            }
            sum = sum_of_column<Product>(sum);
            if ((lane_of_warp() & Product::LANES_OF_COLUMN) == 0) sums[warp_m * BLOCK_N + column] = sum;
        }
        sync_block();
        for (int n = threadIdx.x; n < BLOCK_N; n += THREADS) {
            float sum = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS_M; w++) sum += sums[w * BLOCK_N + n];
            if (round == 0) means[n] = sum = count > 0.f ? __fdividef(sum, count) : 0.f;
            if (block_channel + n < OUTPUT_PITCH) statistics[(long long)(tile * 2 + round) * OUTPUT_PITCH + block_channel + n] = sum;
        }
    }
    if (block_channel == 0 && threadIdx.x == 0) statistics[(long long)TILES_M * 2 * OUTPUT_PITCH + tile] = count;
}

DEVICE void correlate(
    const Number::Type* input, const Number::Type* weight, const float* bias, const Number::Type* other,
    Number::Type* output, float* statistics, const Control* control) {
    SHARED_MEMORY(shared);
    wait_for_kernels_before();
    let_next_kernel_start();
    const int tile = blockIdx.x / TILES_N, images = control->images;
    const int block_channel = blockIdx.x % TILES_N * BLOCK_N;
    const int first = tile * BLOCK_M, end = smaller(first + BLOCK_M, PIXELS);
    const int warp_m = warp_of_block() % WARPS_M, warp_n = warp_of_block() / WARPS_M;
    const int first_channel = block_channel + warp_n * WARP_N;
    const int first_pixel = first + warp_m * WARP_M;

    Correlation work{input, weight, shared, images, block_channel, Pixel(first), Pixel(end - 1)};
    Product& product = work.product;
    const bool is_needed = work.first.strip < images * STRIPS;
    if (!STATISTICS && !is_needed) return;
    product.clear();
    if constexpr (ALL_STEPS > 0)
        if (is_needed) work.run(bias);

    // What is done to the sums of a row, and where they go.
    const auto finish = [&](int r, const Pixel& pixel) {
        const bool exists = pixel.exists(images);
        const long long at = (long long)(exists ? pixel.memory() : 0) * OUTPUT_PITCH;
        for_columns(first_channel, [&](int q, int channel) {
            constexpr bool IS_PAIR = Product::RUN != 1;
            float2 value{product.at(r, q), IS_PAIR ? product.at(r, q + IS_PAIR) : 0.f};
            if constexpr (ADD)
                if (exists) {
                    const float2 held = load_numbers((BACKWARD ? output : other) + at + channel);
                    value.x += held.x, value.y += held.y;
                }
            if constexpr (RELU) value.x = relu(value.x), value.y = relu(value.y);
            if constexpr (MASK)
                if (exists) {
                    const float2 seen = load_numbers(other + at + channel);
                    value.x = seen.x > 0.f ? value.x : 0.f, value.y = seen.y > 0.f ? value.y : 0.f;
                }
            product.at(r, q) = value.x;
            if constexpr (IS_PAIR) product.at(r, q + 1) = value.y;
        });
    };
    const auto store = [&](int r, const Pixel& pixel) {
        const bool exists = pixel.exists(images);
        Number::Type* to = output + (long long)(exists ? pixel.memory() : 0) * OUTPUT_PITCH;
        if constexpr (PRECISION == BFLOAT16 && WARP_N % 32 == 0) {
            // 16 bytes a lane instead of 4: four lanes exchange what they have of 32 channels.
#pragma unroll
            for (int q = 0; q < Product::COLUMNS; q += 8) {
                u32 packed[4];
#pragma unroll
                for (int i = 0; i < 4; i++) packed[i] = pack(product.at(r, q + 2 * i), product.at(r, q + 2 * i + 1));
                transpose_4(packed);
                const int channel = first_channel + q * 4 + (lane_of_warp() & 3) * 8;
                if (exists && (OUTPUT_PITCH % BLOCK_N == 0 || channel < OUTPUT_PITCH))
                    *(uint4*)(to + channel) = uint4{packed[0], packed[1], packed[2], packed[3]};
            }
        } else if constexpr (PRECISION != BFLOAT16 && Product::RUN >= 4) {
#pragma unroll
            for (int q = 0; q < Product::COLUMNS; q += 4) {
                const int channel = first_channel + Product::column(q);
                if (exists && (OUTPUT_PITCH % BLOCK_N == 0 || channel < OUTPUT_PITCH))
                    *(float4*)(to + channel) = float4{rounded(product.at(r, q)), rounded(product.at(r, q + 1)),
                                                      rounded(product.at(r, q + 2)), rounded(product.at(r, q + 3))};
            }
        } else if (exists) {
            for_columns(first_channel, [&](int q, int channel) {
                if constexpr (Product::RUN == 1) to[channel] = Number::of(product.at(r, q));
                else Number::store_pair(to + channel, product.at(r, q), product.at(r, q + 1));
            });
        }
    };

    if constexpr (STATISTICS) {
#pragma unroll
        for (int r = 0; r < Product::ROWS; r++) finish(r, Pixel(first_pixel + Product::row(r)));
        write_statistics(product, first, first_pixel, block_channel, warp_m, warp_n, images, statistics, shared);
    }
    // So many rows together as there are free registers for what is read.
    constexpr int TOGETHER = smaller(Product::ROWS, larger(1, 128 / (Product::COLUMNS * Number::BYTES)));
#pragma unroll
    for (int from = 0; from < Product::ROWS; from += TOGETHER) {
        if constexpr (!STATISTICS)
#pragma unroll
            for (int r = from; r < from + TOGETHER; r++) finish(r, Pixel(first_pixel + Product::row(r)));
#pragma unroll
        for (int r = from; r < from + TOGETHER; r++) store(r, Pixel(first_pixel + Product::row(r)));
        sync_warp();
    }
}

}  // namespace

#if BACKWARD
KERNEL(THREADS, BLOCKS)
convolution_input_gradient(
    const Number::Type* RESTRICT dy, const Number::Type* RESTRICT weight, const Number::Type* RESTRICT x,
    Number::Type* RESTRICT dx, const Control* RESTRICT control) {
    correlate(dy, weight, nullptr, x, dx, nullptr, control);
}
#else
KERNEL(THREADS, BLOCKS)
convolution_forward(
    const Number::Type* RESTRICT x, const Number::Type* RESTRICT weight, const float* RESTRICT bias,
    const Number::Type* RESTRICT other, Number::Type* RESTRICT y, float* RESTRICT statistics,
    const Control* RESTRICT control) {
    correlate(x, weight, bias, other, y, statistics, control);
}
#endif
