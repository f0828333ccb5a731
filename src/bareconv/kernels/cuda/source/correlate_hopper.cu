// correlate.cu's correlation, in bfloat16 with a stride of 1 over its input, for the matrix unit of compute capability
// 9.0. What it computes and the constants that say so are explained there.
//
// How: a block stays on its multiprocessor and takes one tile after another: BLOCK_N channels of BLOCK_M outputs, in
// the order of memory. Some of its warps only copy. They bring the rows of the input that a tile needs to shared
// memory, a chunk of channels at a time, and the weights of STEP multiplications at a time, as far ahead as there is
// room, into the next tile too. Two groups of four warps multiply. Their left operands, pixels, come from registers,
// each pixel's channels from wherever a tap sees it, or from zeros outside the image; the right ones, weights, the
// matrix unit itself reads from shared memory.
//
// Constants: correlate.cu's without PRECISION and STRIDE_Y, STRIDE_X, and
//   BLOCK_M, BLOCK_N     outputs and channels of a tile: a multiple of 128; 64 or 128
//   TILES_M              tiles along the outputs
//   CHUNK                groups of 8 channels at a time, an even number
//   STEP, STAGES         multiplications whose weights are copied together, an even number, and how often there is room
//   BUFFERS              for how many chunks of the input there is room
//   INPUT_ROWS           rows of the input that any tile needs at most
#include "hopper.cuh"
#include "tile.cuh"

namespace {

typedef Kept<BFLOAT16> Number;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }
constexpr int divisor(int a, int b) { return b == 0 ? a : divisor(b, a % b); }
constexpr int clamped(int value, int least, int most) { return larger(least, smaller(value, most)); }

constexpr int MULTIPLY_THREADS = 256, COPY_WARPS = 4, COPY_THREADS = 32 * COPY_WARPS, THREADS = MULTIPLY_THREADS + COPY_THREADS;
constexpr int GROUP_M = BLOCK_M / 2, PARTS_M = GROUP_M / 64;  // outputs of four warps, 64 at a time
constexpr int INPUT_PITCH = padded(INPUT_CHANNELS), OUTPUT_PITCH = padded(OUTPUT_CHANNELS);
constexpr int WEIGHT_ROWS = BACKWARD ? OUTPUT_PITCH : INPUT_PITCH, WEIGHT_PITCH = BACKWARD ? INPUT_PITCH : OUTPUT_PITCH;
constexpr bool HAS_ALL_CHANNELS = OUTPUT_PITCH % BLOCK_N == 0;

constexpr long long PIXELS = (long long)BATCH * GRID_H * GRID_W;
constexpr int TILES_N = blocks_of(OUTPUT_PITCH, BLOCK_N), TILES = TILES_M * TILES_N;
static_assert(TILES_M == (PIXELS + BLOCK_M - 1) / BLOCK_M, "tiles");

// A chunk: some channels for all taps. A tap has SPAN multiplications of 16 channels.
constexpr int GROUPS = blocks_of(INPUT_CHANNELS, 8), CHUNKS = blocks_of(GROUPS, CHUNK);
constexpr int TAPS = TAPS_Y * TAPS_X, LIST = TAPS * CHUNK / 2, SPAN = CHUNK / 2;
constexpr int STEPS = blocks_of(LIST, STEP), ALL_STEPS = STEPS * CHUNKS;
constexpr int LOOK = divisor(STEP, SPAN);  // multiplications between two looks at where the pixels lie
static_assert(!(MASK && STATISTICS), "a mask comes last");
static_assert(CHUNK % 2 == 0 && STEP % 2 == 0, "both halves of what is fetched ahead");

constexpr int LEAST_Y = OFFSET_Y + smaller(0, (TAPS_Y - 1) * OFFSET_STEP_Y), MOST_Y = OFFSET_Y + larger(0, (TAPS_Y - 1) * OFFSET_STEP_Y);
constexpr int LEAST_X = OFFSET_X + smaller(0, (TAPS_X - 1) * OFFSET_STEP_X), MOST_X = OFFSET_X + larger(0, (TAPS_X - 1) * OFFSET_STEP_X);
constexpr bool NEEDS_ZEROS = LEAST_Y < 0 || GRID_H - 1 + MOST_Y >= INPUT_H || LEAST_X < 0 || GRID_W - 1 + MOST_X >= INPUT_W || LIST % STEP != 0;

// Shared memory: steps of weights; tiles of the input; zeros; sums; barriers.
constexpr int PIXEL_BYTES = row_bytes<BFLOAT16, ALONG>(CHUNK * 8);
constexpr int INPUT_TILE = (INPUT_ROWS * INPUT_W * PIXEL_BYTES + 127) / 128 * 128;
constexpr int WEIGHT_TILE = BACKWARD ? blocks_of(STEP, 4) * BLOCK_N * 128 : STEP * 16 * BLOCK_N * 2;
constexpr int ACROSS_APART = STEP * 16 * 128;  // bytes from 64 channels' weights to the next
constexpr int WEIGHTS = 0, INPUTS = STAGES * WEIGHT_TILE, ZEROS = INPUTS + BUFFERS * INPUT_TILE;
constexpr int ZERO_BYTES = (112 + LOOK * 32 + 127) / 128 * 128, SUMS = ZEROS + ZERO_BYTES;
constexpr int SUM_BYTES = STATISTICS ? 9 * BLOCK_N * 4 : 0, BARRIERS = SUMS + SUM_BYTES;
static_assert(BARRIERS + 16 * STAGES <= SHARED_BYTES, "shared memory");
static_assert(BUFFERS >= 1 + blocks_of(STAGES - 1, STEPS), "a tile of the input is not overwritten while it is needed");
constexpr int LATE = STAGES - 2;  // steps whose copies may be under way while another begins
static_assert(LATE >= 1, "stages");

// An output.
struct Pixel {
    int image, row, column;

    DEVICE explicit Pixel(long long index) {
        image = (int)(index / (GRID_H * GRID_W));
        const u32 rest = (u32)(index - (long long)image * (GRID_H * GRID_W));
        row = rest / GRID_W, column = rest % GRID_W;
    }
    DEVICE long long memory() const {
        const long long line = (long long)image * OUTPUT_H + row * GRID_STEP_Y + GRID_FROM_Y;
        return (line * OUTPUT_W + column * GRID_STEP_X + GRID_FROM_X) * OUTPUT_PITCH;
    }
};

// A tile: its first output, its first channel, and which lines of the input, of all images counted through, it needs.
struct Place {
    int number, channel;
    long long first;
    Pixel first_pixel;
    int begin, end;

    DEVICE explicit Place(int tile)
        : number(tile / TILES_N), channel(tile % TILES_N * BLOCK_N), first((long long)number * BLOCK_M), first_pixel(first) {
        const Pixel last(smaller_of(first + BLOCK_M, PIXELS) - 1);
        begin = first_pixel.image * INPUT_H + clamped(first_pixel.row + LEAST_Y, 0, INPUT_H - 1);
        end = last.image * INPUT_H + clamped(last.row + MOST_Y, 0, INPUT_H - 1) + 1;
    }
    DEVICE static long long smaller_of(long long a, long long b) { return a < b ? a : b; }
};

// Goes round the stages: which is next, and in which round, modulo 2.
struct Stage {
    int number = 0;
    u32 parity = 0;

    DEVICE void advance() {
        if (++number == STAGES) number = 0, parity ^= 1u;
    }
};

DEVICE u64* arrived_barrier(u8* shared, int stage) { return (u64*)(shared + BARRIERS) + 2 * stage; }
DEVICE u64* free_barrier(u8* shared, int stage) { return (u64*)(shared + BARRIERS) + 2 * stage + 1; }

struct Copier {
    const Number::Type* input;
    const Number::Type* weight;
    u8* shared;
    int images, thread;
    Stage here, arriving;
    int buffer = 0;

    DEVICE void load_input(const Place& place, int chunk) const {
        const int end = smaller(place.end, images * INPUT_H);
        const int count = (end - place.begin) * INPUT_W;
        const Number::Type* from = input + (long long)place.begin * (INPUT_W * INPUT_PITCH) + chunk * (CHUNK * 8);
        u8* to = shared + INPUTS + buffer * INPUT_TILE;
        if constexpr (COPY_THREADS % CHUNK == 0) {
            // A thread's group is always the same.
            constexpr int APART = COPY_THREADS / CHUNK;
            const int group = (u32)thread % CHUNK, pixel = (u32)thread / CHUNK;
            const bool valid = GROUPS % CHUNK == 0 || chunk * CHUNK + group < GROUPS;
            const Number::Type* source = from + (valid ? pixel * INPUT_PITCH + group * 8 : 0);
            u8* target = to + pixel * PIXEL_BYTES + group * 16;
#pragma unroll 1
            for (int left = count - pixel; left > 0; left -= 4 * APART) {
#pragma unroll
                for (int u = 0; u < 4; u++)
                    if (left > u * APART) copy_16(target + u * (APART * PIXEL_BYTES), source + u * (APART * INPUT_PITCH), valid);
                source += 4 * APART * INPUT_PITCH, target += 4 * APART * PIXEL_BYTES;
            }
        } else {
#pragma unroll 1
            for (u32 index = thread; index < (u32)count * CHUNK; index += COPY_THREADS) {
                const u32 pixel = index / CHUNK, group = index % CHUNK;
                const bool valid = GROUPS % CHUNK == 0 || chunk * CHUNK + (int)group < GROUPS;
                copy_16(to + pixel * PIXEL_BYTES + group * 16, valid ? from + pixel * INPUT_PITCH + group * 8 : input, valid);
            }
        }
    }

    // The weights of a step: lines of k (forward) or of channels that come out, in pieces of 16 bytes.
    DEVICE void load_weights(int first_channel, int chunk, int step) const {
        constexpr int LINES = BACKWARD ? BLOCK_N : STEP * 16, PIECES = BACKWARD ? STEP * 2 : BLOCK_N / 8;
        constexpr int COUNT = LINES * PIECES, ROUND_LINES = larger(COPY_THREADS / PIECES, 1);
        u8* to = shared + WEIGHTS + here.number * WEIGHT_TILE;
        if constexpr (SPAN % STEP == 0 && COPY_THREADS % PIECES == 0 && COUNT % COPY_THREADS == 0 && ROUND_LINES % 8 == 0) {
            // All of one tap; a thread's lines are 8, 16 or more apart, its piece is always the same.
            const u32 line = (u32)thread / PIECES, piece = (u32)thread % PIECES;
            const int first_group = chunk * CHUNK + step * STEP % SPAN * 2;
            const int outer = first_channel + (BACKWARD ? line : piece * 8), inner = first_group * 8 + (BACKWARD ? piece * 8 : line);
            const Number::Type* source = from_tap((u32)(step * STEP) / SPAN) + (BACKWARD ? outer * WEIGHT_PITCH + inner : inner * WEIGHT_PITCH + outer);
            u8* target = to + piece / 8 * (BACKWARD ? BLOCK_N * 128 : ACROSS_APART) + line * 128 + ((piece ^ line) & 7) * 16;
#pragma unroll 4
            for (int i = 0; i < COUNT / COPY_THREADS; i++) {
                const int group = first_group + (BACKWARD ? piece : (line + i * ROUND_LINES) / 8);
                const bool valid = (GROUPS % CHUNK == 0 || group < GROUPS) && (HAS_ALL_CHANNELS || outer + (BACKWARD ? i * ROUND_LINES : 0) < OUTPUT_PITCH);
                copy_16(target + i * (ROUND_LINES * 128), valid ? source + i * (ROUND_LINES * WEIGHT_PITCH) : weight, valid);
            }
        } else {
#pragma unroll 1
            for (u32 index = thread; index < COUNT; index += COPY_THREADS) {
                const u32 line = index / PIECES, piece = index % PIECES;
                // Which group of channels this is, of which tap.
                const u32 number = step * (STEP * 2) + (BACKWARD ? piece : line / 8), tap = number / CHUNK;
                const int group = chunk * CHUNK + (int)(number % CHUNK);
                const int inner = group * 8 + (BACKWARD ? 0 : line % 8), outer = first_channel + (BACKWARD ? line : piece * 8);
                const bool valid = (LIST % STEP == 0 || tap < TAPS) && (GROUPS % CHUNK == 0 || group < GROUPS) && (HAS_ALL_CHANNELS || outer < OUTPUT_PITCH);
                const Number::Type* source = from_tap(tap) + (BACKWARD ? outer * WEIGHT_PITCH + inner : inner * WEIGHT_PITCH + outer);
                u8* target = to + piece / 8 * (BACKWARD ? BLOCK_N * 128 : ACROSS_APART) + line * 128 + ((piece ^ line) & 7) * 16;
                copy_16(target, valid ? source : weight, valid);
            }
        }
    }

    DEVICE const Number::Type* from_tap(u32 tap) const {
        const int plane = WEIGHT_TAP + (int)(tap / TAPS_X) * WEIGHT_TAP_Y + (int)(tap % TAPS_X) * WEIGHT_TAP_X;
        return weight + (long long)plane * (WEIGHT_ROWS * WEIGHT_PITCH);
    }

    // The oldest step whose copies have not been said to be there is said to be.
    template <int PENDING>
    DEVICE void say_arrived() {
        copies_done<PENDING>();
        show_matrix_unit();
        warp_arrives_at(arrived_barrier(shared, arriving.number));
        arriving.advance();
    }

    DEVICE void run() {
        int begun = 0;  // steps, up to LATE
#pragma unroll 1
        for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
            const Place place(tile);
            if (place.first_pixel.image >= images) continue;
#pragma unroll 1
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
#pragma unroll 1
                for (int step = 0; step < STEPS; step++) {
                    wait_at(free_barrier(shared, here.number), here.parity ^ 1u);
                    if (step == 0) load_input(place, chunk);
                    load_weights(place.channel, chunk, step);
                    end_copies();
                    here.advance();
                    if (begun == LATE) say_arrived<LATE>();
                    else begun++;
                }
                buffer = buffer + 1 == BUFFERS ? 0 : buffer + 1;
            }
        }
        copies_done<0>();
#pragma unroll 1
        for (; begun > 0; begun--) say_arrived<0>();
    }
};

struct Multiplier {
    u8* shared;
    Stage here;
    int buffer = 0;
    float c[PARTS_M][BLOCK_N / 8][4];
    u32 left[2][PARTS_M][4];
    // Of the pixels whose addresses this lane gives: where they lie if no tap shifts them, and where their windows start.
    int base[PARTS_M], y[PARTS_M], x[PARTS_M];
    int rows[PARTS_M];  // addresses for the multiplications to come

    DEVICE static int group() { return warp_of_block() / 4; }
    // The first output of this warp's share ``part``, in the tile.
    DEVICE static int first_output(int part) { return group() * GROUP_M + part * 64 + warp_of_block() % 4 * 16; }

    // Addresses for the multiplications from number ``listed`` of the chunk's.
    DEVICE void look(int listed) {
        const u32 tap = (u32)listed / SPAN, within = (u32)listed % SPAN;
        const int dy = OFFSET_Y + (int)(tap / TAPS_X) * OFFSET_STEP_Y, dx = OFFSET_X + (int)(tap % TAPS_X) * OFFSET_STEP_X;
        const int all = INPUTS + buffer * INPUT_TILE + (dy * INPUT_W + dx) * PIXEL_BYTES + (int)within * 32;
        const bool exists = LIST % STEP == 0 || tap < TAPS;
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) {
            rows[i] = base[i] + all;
            if constexpr (NEEDS_ZEROS) {
                const bool inside = (u32)(y[i] + dy) < (u32)INPUT_H && (u32)(x[i] + dx) < (u32)INPUT_W && exists;
                rows[i] = inside ? rows[i] : ZEROS + (rows[i] & 0x70);  // in banks of its own, as the pixel would be
            }
        }
    }

    template <int SLOT>
    DEVICE void fetch(int step, int entry) {
        if (entry % LOOK == 0) look(step * STEP + entry);
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) load_matrices(left[SLOT][i], shared + rows[i] + entry % LOOK * 32);
    }

    DEVICE u64 matrix(int entry) const {
        const u8* weights = shared + WEIGHTS + here.number * WEIGHT_TILE;
        return BACKWARD ? matrix_along(weights + entry / 4 * (BLOCK_N * 128) + entry % 4 * 32) : matrix_across(weights + entry * 2048, ACROSS_APART);
    }

    // All of the group are done with what lies in the stage.
    DEVICE void free(int stage) const { warp_arrives_at(free_barrier(shared, stage)); }

    DEVICE void run(const Place& place) {
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) {
            const Pixel pixel(place.first + first_output(i) + (lane_of_warp() & 15));
            y[i] = pixel.row, x[i] = pixel.column;
            base[i] = ((pixel.image * INPUT_H + pixel.row - place.begin) * INPUT_W + pixel.column) * PIXEL_BYTES + (lane_of_warp() >> 4) * 16;
        }
        wait_at(arrived_barrier(shared, here.number), here.parity);
        fetch<0>(0, 0);
        int step = 0;
#pragma unroll 1
        for (int all = 0; all < ALL_STEPS; all++) {
            const int stage = here.number;
#pragma unroll
            for (int entry = 0; entry < STEP; entry++) {
                begin_products();
                const u64 weights = matrix(entry);
#pragma unroll
                for (int i = 0; i < PARTS_M; i++) multiply_group<!BACKWARD>(c[i], left[entry % 2][i], weights, entry > 0 || all > 0);
                end_products();
                products_done<1>();  // the one before has been: its registers are free
                if (entry == 0 && all > 0) free(stage == 0 ? STAGES - 1 : stage - 1);
                if (entry + 1 < STEP) {
                    if (entry % 2 == 0) fetch<1>(step, entry + 1);
                    else fetch<0>(step, entry + 1);
                } else {
                    here.advance();
                    if (++step == STEPS) step = 0, buffer = buffer + 1 == BUFFERS ? 0 : buffer + 1;
                    if (all + 1 < ALL_STEPS) {
                        wait_at(arrived_barrier(shared, here.number), here.parity);
                        fetch<0>(step, 0);
                    }
                }
            }
        }
        products_done<0>();
        free(here.number == 0 ? STAGES - 1 : here.number - 1);
#pragma unroll
        for (int i = 0; i < PARTS_M; i++) take_sums(c[i]);
    }

    // A row of outputs of this lane: where it is, and what is read there, 16 bytes of every 32 channels.
    struct Row {
        bool exists;
        long long at;
        uint4 held[BLOCK_N / 32], seen[BLOCK_N / 32];
    };

    template <bool READS>
    DEVICE static void begin_row(Row& row, int r, const Place& place, int images, const Number::Type* other, const Number::Type* output) {
        const Pixel pixel(place.first + first_output(r / 2) + lane_of_warp() / 4 + r % 2 * 8);
        row.exists = pixel.image < images;
        row.at = (row.exists ? pixel.memory() : 0) + place.channel + 8 * (lane_of_warp() & 3);
#pragma unroll
        for (int j = 0; j < BLOCK_N / 32; j++) {
            const bool is_read = row.exists && has_channels(place, j);
            if constexpr (READS && ADD) row.held[j] = read((BACKWARD ? output : other) + row.at + 32 * j, is_read);
            if constexpr (READS && MASK) row.seen[j] = read(other + row.at + 32 * j, is_read);
        }
    }

    DEVICE static bool has_channels(const Place& place, int j) {
        return HAS_ALL_CHANNELS || place.channel + 32 * j + 8 * (lane_of_warp() & 3) < OUTPUT_PITCH;
    }

    DEVICE static uint4 read(const Number::Type* from, bool exists) { return exists ? *(const uint4*)from : uint4{0u, 0u, 0u, 0u}; }

    // What is done to the sums (CHANGES), and to memory with them (STORES).
    template <bool CHANGES, bool STORES>
    DEVICE void finish(const Place& place, int images, const float* bias, const Number::Type* other, Number::Type* output) {
        constexpr int ROWS = 2 * PARTS_M;
        Row rows[2];
        begin_row<CHANGES>(rows[0], 0, place, images, other, output);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            Row& row = rows[r % 2];
            if (r + 1 < ROWS) begin_row<CHANGES>(rows[(r + 1) % 2], r + 1, place, images, other, output);
#pragma unroll
            for (int j = 0; j < BLOCK_N / 32; j++) {
                u32 held[4] = {}, packed[4];
                if constexpr (CHANGES && ADD) {
                    held[0] = row.held[j].x, held[1] = row.held[j].y, held[2] = row.held[j].z, held[3] = row.held[j].w;
                    transpose_4(held);
                }
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    float* pair = &c[r / 2][4 * j + u][r % 2 * 2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const int channel = place.channel + 32 * j + 8 * u + 2 * (lane_of_warp() & 3) + e;
                        if constexpr (CHANGES && BIAS) pair[e] += channel < OUTPUT_CHANNELS ? bias[channel] : 0.f;
                        if constexpr (CHANGES && ADD) pair[e] += e ? high_half(held[u]) : low_half(held[u]);
                        if constexpr (CHANGES && RELU) pair[e] = fmaxf(pair[e], 0.f);
                    }
                    packed[u] = pack(pair[0], pair[1]);
                }
                if constexpr (STORES) {
                    // 16 bytes a lane instead of 4: four lanes exchange what they have of 32 channels.
                    transpose_4(packed);
                    uint4 four{packed[0], packed[1], packed[2], packed[3]};
                    if constexpr (MASK) {
                        const uint4& seen = row.seen[j];
                        four = uint4{four.x & above_zero(seen.x), four.y & above_zero(seen.y), four.z & above_zero(seen.z), four.w & above_zero(seen.w)};
                    }
                    if (row.exists && has_channels(place, j)) *(uint4*)(output + row.at + 32 * j) = four;
                }
            }
        }
    }

    // Of two bf16, all bits of those that are more than zero.
    DEVICE static u32 above_zero(u32 pair) {
        return (low_half(pair) > 0.f ? 0xffffu : 0u) | (high_half(pair) > 0.f ? 0xffff0000u : 0u);
    }

    // The tile's row of the statistics: means, and sums of squares of what differs from them.
    DEVICE void count(const Place& place, int images, float* statistics) {
        float* sums = (float*)(shared + SUMS);  // [warp][channel], then [channel], the means
        const long long limit = (long long)images * (GRID_H * GRID_W), end = Place::smaller_of(place.first + BLOCK_M, limit);
        const float number = (float)(end - place.first);
        float* row = statistics + (long long)place.number * (2 * OUTPUT_PITCH) + place.channel;
        constexpr int COLUMNS = 16;  // of a lane at a time: 2 of every 8 of 64 channels
        const int lane = lane_of_warp();
        const long long mine = place.first + lane / 4;
#pragma unroll
        for (int round = 0; round < 2; round++) {
#pragma unroll
            for (int part = 0; part < BLOCK_N; part += 64) {
                float sum[COLUMNS];
#pragma unroll
                for (int q = 0; q < COLUMNS; q++) {
                    const int j = part / 8 + q / 2;
                    const float mean = round ? sums[8 * BLOCK_N + j * 8 + 2 * (lane & 3) + q % 2] : 0.f;
                    sum[q] = 0.f;
#pragma unroll
                    for (int i = 0; i < PARTS_M; i++)
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const float value = c[i][j][2 * half + q % 2] - mean;
                            if (mine + first_output(i) + 8 * half < limit) sum[q] += round ? value * value : value;
                        }
                }
                // Eight lanes have sums of the same columns: each gets the whole sums of an eighth of them.
#pragma unroll
                for (int bit = 16, left = COLUMNS / 2; bit >= 4; bit /= 2, left /= 2)
#pragma unroll
                    for (int q = 0; q < COLUMNS / 2; q++)
                        if (q < left) {
                            const bool upper = lane & bit;
                            const float got = shuffle_xor(upper ? sum[q] : sum[q + left], bit);
                            sum[q] = (upper ? sum[q + left] : sum[q]) + got;
                        }
                const int l = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
                *(float2*)(sums + warp_of_block() * BLOCK_N + part + l * 8 + 2 * (lane & 3)) = float2{sum[0], sum[1]};
            }
            sync_some(1, MULTIPLY_THREADS);
            if (threadIdx.x < BLOCK_N) {
                float total = 0.f;
#pragma unroll
                for (int warp = 0; warp < 8; warp++) total += sums[warp * BLOCK_N + threadIdx.x];
                if (round == 0) total /= number, sums[8 * BLOCK_N + threadIdx.x] = total;
                if (HAS_ALL_CHANNELS || place.channel + threadIdx.x < OUTPUT_PITCH) row[round * OUTPUT_PITCH + threadIdx.x] = total;
            }
            sync_some(1, MULTIPLY_THREADS);
        }
        if (place.channel == 0 && threadIdx.x == 0) statistics[(long long)TILES_M * 2 * OUTPUT_PITCH + place.number] = number;
    }
};

// A tile without an image.
DEVICE void count_nothing(const Place& place, float* statistics) {
    float* row = statistics + (long long)place.number * (2 * OUTPUT_PITCH) + place.channel;
    if (threadIdx.x < BLOCK_N && place.channel + threadIdx.x < OUTPUT_PITCH) row[threadIdx.x] = 0.f, row[OUTPUT_PITCH + threadIdx.x] = 0.f;
    if (place.channel == 0 && threadIdx.x == 0) statistics[(long long)TILES_M * 2 * OUTPUT_PITCH + place.number] = 0.f;
}

DEVICE void correlate(
    const Number::Type* input, const Number::Type* weight, const float* bias, const Number::Type* other,
    Number::Type* output, float* statistics, const Control* control) {
    SHARED_MEMORY(shared);
    for (int i = threadIdx.x; i < ZERO_BYTES / 4; i += THREADS) ((u32*)(shared + ZEROS))[i] = 0u;
    if (threadIdx.x < STAGES) {
        start_barrier(arrived_barrier(shared, threadIdx.x), COPY_WARPS * ARRIVALS_OF_A_WARP);
        start_barrier(free_barrier(shared, threadIdx.x), MULTIPLY_THREADS / 32 * ARRIVALS_OF_A_WARP);
    }
    sync_block();
    wait_for_kernels_before();
    let_next_kernel_start();
    const int images = control->images;
    if (threadIdx.x >= MULTIPLY_THREADS) {
        give_registers<40>();
        Copier copier{input, weight, shared, images, (int)threadIdx.x - MULTIPLY_THREADS};
        copier.run();
        return;
    }
    take_registers<232>();
    Multiplier work;
    work.shared = shared;
#pragma unroll 1
    for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
        const Place place(tile);
        if (place.first_pixel.image >= images) {
            if constexpr (STATISTICS) count_nothing(place, statistics);
            continue;
        }
        work.run(place);
        if constexpr (STATISTICS) {
            work.finish<true, false>(place, images, bias, other, output);
            work.count(place, images, statistics);
            work.finish<false, true>(place, images, bias, other, output);
        } else {
            work.finish<true, true>(place, images, bias, other, output);
        }
    }
}

}  // namespace

#if BACKWARD
KERNEL(THREADS, 1)
convolution_input_gradient(
    const Number::Type* RESTRICT dy, const Number::Type* RESTRICT weight, const Number::Type* x,
    Number::Type* dx, const Control* RESTRICT control) {
    correlate(dy, weight, nullptr, x, dx, nullptr, control);
}
#else
KERNEL(THREADS, 1)
convolution_forward(
    const Number::Type* RESTRICT x, const Number::Type* RESTRICT weight, const float* RESTRICT bias,
    const Number::Type* other, Number::Type* y, float* statistics,
    const Control* RESTRICT control) {
    correlate(x, weight, bias, other, y, statistics, control);
}
#endif
