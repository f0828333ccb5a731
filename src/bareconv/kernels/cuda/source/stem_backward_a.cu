// The first block of a network, backward, gradients of A's parameters, through B.
//
//   dA[h][w][c] = sum over (r, s, k) of dY[h + PADDING_H - r][w + PADDING_W - s][k] weight_b[r][s][c][k],
//   then through A's pool and relu, of which A is computed again from the pixels, then
//   partial_weight_a[part][r][s][c][k] = sum over images and (h, w) of pixel[h + r][w + s][c] dA[h][w][k]
//
// Here the channels of A are the rows of products and pixels are their columns: then dA comes out of one product as
// the next one wants it, and A computed again has the same layout. A warp has 16 TILES of A's channels and, of a band of
// BAND_ROWS rows of squares of A's results, every (WARPS / slices)th 8 GROUPS squares.
//
// In bf16 a warp has B's weights for its channels in registers. In tf32 they would be too many: they stay in shared
// memory, and a matrix of them that is loaded serves more squares.
#include "stem_backward.cuh"

constexpr int SQUARES = blocks_of(A_WIDTH, 2), SQUARE_ROWS = blocks_of(A_HEIGHT, 2);  // of A's results
typedef Picture<A_TAKES * 2 * BAND_ROWS + A_KERNEL_H - 1, A_TAKES * 2 * SQUARES, LINE_NUMBERS> Lines;

// dY of a band: local (0, 0) is the first output of B that the band's first square goes into; dY's row q is local row
// q + SHIFT - 2 before. B's squares may lie across the local ones: then those at ODD - 1 start a row early.
constexpr int SHIFT_H = B_KERNEL_H - 1 - B_PADDING_H, SHIFT_W = B_KERNEL_W - 1 - B_PADDING_W;
constexpr int ODD_H = B_POOL ? SHIFT_H & 1 : 0, ODD_W = B_POOL ? SHIFT_W & 1 : 0;
typedef Picture<2 * BAND_ROWS + B_KERNEL_H - 1, 2 * SQUARES + B_KERNEL_W - 1, B_CHANNELS> Outputs;

// As numbers with places: B's squares one by one.
struct PlacedSquares {
    static constexpr int ROWS = Outputs::ROWS / 2 + ODD_H, COLUMNS = Outputs::COLUMNS / 2 + ODD_W;
    static constexpr int PIXEL = Outputs::PIXEL, ROW = COLUMNS * PIXEL, BYTES = ROWS * ROW, QUARTER = PIXEL;
    DEVICE static constexpr int at(int row, int column) { return row * ROW + column * PIXEL; }
};

template <bool>
struct Chosen { typedef Outputs Type; };
template <>
struct Chosen<true> { typedef PlacedSquares Type; };
typedef Chosen<PLACED>::Type Gradient;

constexpr int GROUPS = PRECISION == TF32 ? 2 : 1, TILES = PRECISION == TF32 && blocks_of(A_CHANNELS, 16) % 2 == 0 ? 2 : 1;
constexpr int SLICES = blocks_of(A_CHANNELS, 16) / TILES, TURNS = WARPS / SLICES;
constexpr int WEIGHT_PITCH = pixel_bytes(B_CHANNELS), WEIGHT_BYTES = B_TAPS * A_CHANNELS * WEIGHT_PITCH;
// Matrices of eight numbers of lines, and in 32 bits of four numbers of two.
constexpr int LINE_TILES = blocks_of(A_KERNEL_H * LINE_PIECES * PIECE, 8), COUNT = LINE_TILES * 4 + 2;

// B's squares, or without its pool its outputs, that a band reads.
constexpr int STEP = B_POOL ? 2 : 1;
constexpr int READ_ROWS = Outputs::ROWS / STEP + ODD_H, READ_COLUMNS = Outputs::COLUMNS / STEP + ODD_W;
constexpr int BACK_H = (SHIFT_H - ODD_H) / STEP + ODD_H, BACK_W = (SHIFT_W - ODD_W) / STEP + ODD_W;
typedef Rows<READ_ROWS> Read;
DEVICE int first_row(int before) { return before * (2 / STEP) - BACK_H; }

// Shared memory: what teams copy from memory, then what they make of it. B's weights are on their way through the latter,
// or stay after it.
constexpr int AT_PIXELS = 0, AT_WEIGHTS = AT_PIXELS + PIXELS_BYTES, AT_READ = AT_WEIGHTS + A_WEIGHT_BYTES, COPIED_BYTES = AT_READ + Read::BYTES;
constexpr int AT_LINES = 0, AT_GRADIENT = AT_LINES + Lines::BYTES, TEAM_BYTES = AT_GRADIENT + Gradient::BYTES;
constexpr int AT_TEAMS = TEAMS * COPIED_BYTES, AT_B_WEIGHTS = AT_TEAMS + (PRECISION == TF32 ? TEAMS * TEAM_BYTES : 0);
constexpr int END_BYTES = TEAMS * TURNS > 1 ? SLICES * TILES * COUNT * 128 : 0;
static_assert(larger(larger(AT_TEAMS + TEAMS * TEAM_BYTES, AT_B_WEIGHTS + WEIGHT_BYTES), END_BYTES) == SHARED_BYTES, "as the host has it");
static_assert(WARPS % SLICES == 0, "every warp has a slice of A's channels");

// dY for a band, zeros where there is none.
DEVICE void spread_gradient(u8* to, const Read& read, int before, int thread) {
#pragma unroll STAGED ? 1 : 2
    for (int i = thread; i < READ_ROWS * READ_COLUMNS * B_PIECES; i += THREADS) {
        const int piece = i % B_PIECES, row = i / B_PIECES / READ_COLUMNS, column = i / B_PIECES % READ_COLUMNS;
        const int p = first_row(before) + row, q = column - BACK_W;
        Piece gradient;
        if (p >= 0 && p < B_HEIGHT && q >= 0 && q < B_WIDTH) gradient = read.piece(p, q, piece);
        if constexpr (PLACED) {
            *(uint4*)(to + Gradient::at(row, column) + piece * 16) = gradient.placed();
        } else if (B_POOL) {
#pragma unroll
            for (int place = 0; place < 4; place++) {
                const int y = 2 * row - ODD_H + place / 2, x = 2 * column - ODD_W + place % 2;
                const bool there = (!ODD_H || (y >= 0 && y < Outputs::ROWS)) && (!ODD_W || (x >= 0 && x < Outputs::COLUMNS));
                if (there) *(uint4*)(to + Outputs::at(y, x) + piece * 16) = gradient.at_place(place);
            }
        } else {
            *(uint4*)(to + Gradient::at(row, column) + piece * 16) = gradient.alive();
        }
    }
}

// B's weights on their way into shared memory, by all of the block.
DEVICE void stage_b_weights(u8* to, const Number::Type* weight_b) {
    for (int i = threadIdx.x; i < B_TAPS * A_CHANNELS * B_PIECES; i += TEAMS * THREADS)
        copy_16(to + i / B_PIECES * WEIGHT_PITCH + i % B_PIECES * 16, weight_b + i * PIECE);
    end_copies();
}

// dA before A's pool and relu, [group][tile of channels][place in the square]: of the precision P.
template <int P>
struct Products {
    static constexpr int CHUNK = chunk_of(B_PIECES);
    typedef Steps<B_TAPS, CHUNK> Order;
    static constexpr int STEPS = Order::COUNT * (B_PIECES / CHUNK);
    u32 weight[STEPS][1][4];

    // ``weights``: where stage_b_weights has put them; free again after this.
    DEVICE void start(const u8* weights, int slice, int lane) {
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int chunk = i / Order::COUNT, within = i % Order::COUNT, half = lane >> 4;
            // The taps of dA's sum run against those of the patch.
            const int tap = B_TAPS - 1 - (half ? Order::tap(within, 1) : Order::tap(within, 0));
            const int piece = chunk * CHUNK + (half ? Order::piece(within, 1) : Order::piece(within, 0));
            const int channel = min(slice * 16 + (lane & 15), A_CHANNELS - 1);
            load_matrices(weight[i][0], weights + (tap * A_CHANNELS + channel) * WEIGHT_PITCH + piece * 16);
            if (!Order::exists(within, 1)) weight[i][0][2] = weight[i][0][3] = 0u;
        }
        sync_block();
    }

    DEVICE void of(float (&da)[1][1][4][4], const u8* const (&squares)[1], int lane) const {
        float parts[2][4][1][4];  // [set][place in the square]
#pragma unroll
        for (int i = 0; i < 32; i++) parts[i / 16][i / 4 % 4][0][i % 4] = 0.f;
        convolve<Gradient, B_KERNEL_H, B_KERNEL_W, B_PIECES>(parts, squares[0] + matrix_offset<Gradient, CHUNK>(lane), weight);
#pragma unroll
        for (int i = 0; i < 16; i++) da[0][0][i / 4][i % 4] = parts[0][i / 4][0][i % 4] + parts[1][i / 4][0][i % 4];
    }
};

template <>
struct Products<TF32> {
    // What a square reads of the gradient.
    static constexpr int PATCH_H = PLACED ? (B_KERNEL_H + ODD_H) / 2 + 1 : B_KERNEL_H + 1;
    static constexpr int PATCH_W = PLACED ? (B_KERNEL_W + ODD_W) / 2 + 1 : B_KERNEL_W + 1;
    const u8* row[TILES];  // of B's weights, that the lane names

    DEVICE void start(const u8* weights, int slice, int lane) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            row[tile] = weights + min((slice * TILES + tile) * 16 + (lane & 15), A_CHANNELS - 1) * WEIGHT_PITCH + (lane >> 4) * 16;
    }

    DEVICE void of(float (&da)[GROUPS][TILES][4][4], const u8* const (&squares)[GROUPS], int lane) const {
#pragma unroll
        for (int i = 0; i < GROUPS * TILES * 16; i++) da[i / 16 / TILES][i / 16 % TILES][i / 4 % 4][i % 4] = 0.f;
        const int matrix = lane >> 3, mine = (matrix & 1) * 16 + (matrix >> 1) * Gradient::QUARTER;
#pragma unroll 1
        for (int eight = 0; eight < B_CHANNELS / 8; eight++) {
            u32 patch[GROUPS][PATCH_H][even(PATCH_W)][2];
#pragma unroll
            for (int i = 0; i < GROUPS * PATCH_H * even(PATCH_W) / 2; i++) {
                const int group = i / (even(PATCH_W) / 2) / PATCH_H, y = i / (even(PATCH_W) / 2) % PATCH_H, x = i % (even(PATCH_W) / 2) * 2;
                const u8* from = squares[group] + mine + Gradient::at(y, x) + eight * 32;
                if (x + 1 < PATCH_W) {
                    u32 four[4];
                    load_matrices(four, from);
                    patch[group][y][x][0] = four[0], patch[group][y][x][1] = four[1];
                    patch[group][y][x + 1][0] = four[2], patch[group][y][x + 1][1] = four[3];
                } else {
                    load_matrices(patch[group][y][x], from);
                }
            }
#pragma unroll
            for (int tap = 0; tap < B_TAPS; tap++) {
                u32 weight[TILES][4];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
                    load_matrices(weight[tile], row[tile] + (B_TAPS - 1 - tap) * A_CHANNELS * WEIGHT_PITCH + eight * 32);
#pragma unroll
                for (int i = 0; i < GROUPS * 4; i++) {
                    const int group = i / 4, place = i % 4, y = tap / B_KERNEL_W + place / 2, x = tap % B_KERNEL_W + place % 2;
                    u32 right[2];
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        right[half] = PLACED ? at_place(patch[group][(y + ODD_H) / 2][(x + ODD_W) / 2][half], (y + ODD_H) % 2 * 2 + (x + ODD_W) % 2)
                                             : patch[group][y][x][half];
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++) multiply(da[group][tile][place], weight[tile], right[0], right[1]);
                }
            }
        }
    }
};

// A's outputs before its bias of eight squares, [place in the square] with 16 channels from ``slice`` on as rows.
DEVICE void outputs_of_a(float (&sum)[1][4][1][4], const u8* square, const u8* weights, int slice, int lane) {
    u32 weight[A_STEPS][1][4];
#pragma unroll
    for (int i = 0; i < A_STEPS; i++) {
        load_left<pixel_bytes(A_COLUMNS)>(weight[i][0], weights, row_of_a(i, 0), row_of_a(i, 1), slice * 16, lane);
        if (!OrderOfA::exists(i % OrderOfA::COUNT, 1)) weight[i][0][2] = weight[i][0][3] = 0u;
    }
#pragma unroll
    for (int i = 0; i < 16; i++) sum[0][i / 4][0][i % 4] = 0.f;
    convolve<Lines, A_KERNEL_H, 1, LINE_PIECES>(sum, square + matrix_offset<Lines, A_CHUNK>(lane), weight);
}

// The line that a band's square begins with.
DEVICE const u8* line_of(const u8* lines, int square, int squares) {
    const int read = min(square, squares - 1);
    return lines + A_TAKES * (read / SQUARES * Lines::ROW + read % SQUARES * Lines::PIXEL);
}

// The gradient of A's weights += lines * dA, of eight squares from ``first`` on.
template <int P>
DEVICE void add_weights(float (&sum)[COUNT], const u8* lines, int first, int squares, const float (&da)[4][4], int lane) {
    u32 left[2][4];  // the squares' upper and lower row
#pragma unroll
    for (int i = 0; i < 8; i++) left[i / 4][i % 4] = pack(da[i / 2][i % 2 * 2], da[i / 2][i % 2 * 2 + 1]);
    // Four matrices: both columns of the squares, of two pieces or of the next row too.
    const u8* from =
        line_of(lines, first + (lane & 7), squares) + (lane >> 3 & 1) * Lines::QUARTER + (lane >> 4) * (A_CHUNK == 2 ? 16 : 2 * Lines::QUARTER);
#pragma unroll
    for (int chunk = 0; chunk < LINE_PIECES / A_CHUNK; chunk++)
#pragma unroll
        for (int y = 0; y <= A_KERNEL_H; y += 3 - A_CHUNK) {
            u32 four[4];
            load_matrices_transposed(four, from + Lines::at(y, 0) + chunk * A_CHUNK * 16);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int up = i % 2, r = y + (A_CHUNK == 2 ? 0 : i / 2) - up, piece = A_CHUNK == 2 ? i / 2 : 0;
                if (r < 0 || r >= A_KERNEL_H) continue;
                float(&to)[4] = *(float(*)[4]) & sum[(r * LINE_PIECES + chunk * A_CHUNK + piece) * 4];
                multiply(to, left[up], four[i / 2 * 2], four[i / 2 * 2 + 1]);
            }
        }
}

// In 32 bits a product has eight squares' pixels at one place, and its columns are two pieces of lines. As dA comes, a lane
// has squares 2 (lane % 4) and the next, so these are the ones that it reads.
template <>
DEVICE void add_weights<TF32>(float (&sum)[COUNT], const u8* lines, int first, int squares, const float (&da)[4][4], int lane) {
    const int column = lane >> 2;
    const u8* from[2];
#pragma unroll
    for (int e = 0; e < 2; e++) from[e] = line_of(lines, first + (lane & 3) * 2 + e, squares) + column % 4 * 4;
#pragma unroll
    for (int tile = 0; tile < LINE_TILES; tile++) {
        // Of the two pieces the lane's; after the last one there may be none, and any will do.
        const int left = 2 * tile, right = min(left + 1, A_KERNEL_H * LINE_PIECES - 1);
        const int left_rows[2] = {Lines::at(left / LINE_PIECES, 0), Lines::at(left / LINE_PIECES + 1, 0)};
        const int right_rows[2] = {Lines::at(right / LINE_PIECES, 0), Lines::at(right / LINE_PIECES + 1, 0)};
#pragma unroll
        for (int place = 0; place < 4; place++) {
            const int at = place % 2 * Lines::QUARTER + (column < 4 ? left_rows[place / 2] + left % LINE_PIECES * 16 : right_rows[place / 2] + right % LINE_PIECES * 16);
            const u32 operand[4] = {word_of(da[place][0]), word_of(da[place][2]), word_of(da[place][1]), word_of(da[place][3])};
            float(&to)[4] = *(float(*)[4]) & sum[tile * 4];
            multiply(to, operand, *(const u32*)(from[0] + at), *(const u32*)(from[1] + at));
        }
    }
}

// dA -> the gradient of A's weights and biases, through A's pool and relu. A lane has squares first + 2 (lane % 4) and the
// next, and channels lane / 4 and 8 more of ``slice``, whose biases are ``low`` and ``high``.
DEVICE void add_gradient(float (&sum)[COUNT], float (&da)[4][4], const u8* lines, const u8* weights, int before, int first, int squares, int slice, float low,
                         float high, int lane) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        const int mine = first + (lane & 3) * 2 + e, y = 2 * (before + mine / SQUARES), x = 2 * (mine % SQUARES);
#pragma unroll
        for (int place = 0; place < 4; place++) {
            const bool there = mine < squares && y + place / 2 < A_HEIGHT && x + place % 2 < A_WIDTH;
#pragma unroll
            for (int i = e; i < 4; i += 2) da[place][i] = there ? da[place][i] : 0.f;
        }
    }
    sync_warp();
    float outputs[1][4][1][4];
    if constexpr (A_POOL) {  // a pixel of A's results has a square of outputs
#pragma unroll 1
        for (int place = 0; place < 4; place++) {
            const u8* pooled = lines + place / 2 * Lines::ROW + place % 2 * Lines::PIXEL;
            outputs_of_a(outputs, line_of(pooled, first + (lane & 7), squares), weights, slice, lane);
            float chosen[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int best = 0;
                float most = outputs[0][0][0][i];
#pragma unroll
                for (int other = 1; other < 4; other++) {
                    best = outputs[0][other][0][i] > most ? other : best;
                    most = fmaxf(most, outputs[0][other][0][i]);
                }
                const float mine = most + (i < 2 ? low : high) > 0.f ? da[0][i] : 0.f;
                sum[LINE_TILES * 4 + i / 2] += mine;
#pragma unroll
                for (int other = 0; other < 4; other++) chosen[other][i] = other == best ? mine : 0.f;
            }
            add_weights<PRECISION>(sum, pooled, first, squares, chosen, lane);
            // The next place's are the first now: an index that is not constant would put them into memory.
#pragma unroll
            for (int i = 0; i < 12; i++) da[i / 4][i % 4] = da[i / 4 + 1][i % 4];
        }
    } else {
        outputs_of_a(outputs, line_of(lines, first + (lane & 7), squares), weights, slice, lane);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            da[i / 4][i % 4] = outputs[0][i / 4][0][i % 4] + (i % 4 < 2 ? low : high) > 0.f ? da[i / 4][i % 4] : 0.f;
        }
        add_weights<PRECISION>(sum, lines, first, squares, da, lane);
#pragma unroll
        for (int i = 0; i < 16; i++) sum[LINE_TILES * 4 + i % 4 / 2] += da[i / 4][i % 4];
    }
}

KERNEL(TEAMS * WARPS * 32, 1)
stem_backward_a(const u8* RESTRICT pixels, const int* RESTRICT order, const Control* RESTRICT control,
                const Number::Type* RESTRICT weight_a, const float* RESTRICT bias_a, const Number::Type* RESTRICT weight_b,
                const Number::Type* RESTRICT dy, const u8* RESTRICT where, float* RESTRICT partial_weight_a,
                float* RESTRICT partial_bias_a) {
    SHARED_MEMORY(shared);
    const Team team;
    u8 *const copied = shared + team.number * COPIED_BYTES, *const own = shared + AT_TEAMS + team.number * TEAM_BYTES;
    u8 *lines = own + AT_LINES, *gradient = own + AT_GRADIENT;
    const int lane = team.lane, slice = team.warp % SLICES, turn = team.warp / SLICES;
    float sum[TILES * COUNT];  // of A's weights and biases
#pragma unroll
    for (int i = 0; i < TILES * COUNT; i++) sum[i] = 0.f;
    // All that is read is older than the kernel just before, which is the one for B's parameters and has waited for it.
    let_next_kernel_start();
    const Control step = *control;
    const int items = step.images * BANDS, stride = gridDim.x * TEAMS;
    int item = blockIdx.x * TEAMS + team.number;
    if (blockIdx.x * TEAMS < items) stage_b_weights(shared + AT_B_WEIGHTS, weight_b);
    if (item < items) {
        stage_weights<1, A_CHANNELS, A_COLUMNS>(copied + AT_WEIGHTS, weight_a, A_KERNEL_H * LINE_ROWS, team.thread, THREADS, row_of_line);
        Read::fetch(copied + AT_READ, dy, where, item / BANDS, first_row(item % BANDS * BAND_ROWS), team.thread);
        fetch_image(copied + AT_PIXELS, pixels, place_of(item / BANDS, order, &step), team.thread);
    }
    end_copies();
    Products<PRECISION> products;
    if (blockIdx.x * TEAMS < items) {
        copies_done<1>();
        sync_block();
        products.start(shared + AT_B_WEIGHTS, slice, lane);
    }
    float bias[TILES][2];
#pragma unroll
    for (int i = 0; i < TILES * 2; i++) {
        const int channel = slice * 16 * TILES + i * 8 + (lane >> 2);
        bias[i / 2][i % 2] = channel < A_FILTERS ? bias_a[channel] : 0.f;
    }
    for (; item < items; item += stride) {
        const int before = item % BANDS * BAND_ROWS, next = item + stride;
        const int next_place = next < items ? place_of(next / BANDS, order, &step) : 0;  // is here by the time of the copy
        copies_done();
        team.sync();
        spread_gradient(gradient, Read(copied + AT_READ, dy, where, item / BANDS, first_row(before)), before, team.thread);
        spread_pixels<Lines>(lines, copied + AT_PIXELS, A_TAKES * 2 * before - A_PADDING_H, team.thread);
        team.sync();
        if (next < items) {
            Read::fetch(copied + AT_READ, dy, where, next / BANDS, first_row(next % BANDS * BAND_ROWS), team.thread);
            fetch_image(copied + AT_PIXELS, pixels, next_place, team.thread);
            end_copies();
        }
        const int squares = min(BAND_ROWS, SQUARE_ROWS - before) * SQUARES;
#pragma unroll 1
        for (int group = turn * GROUPS; group < blocks_of(squares, 8); group += TURNS * GROUPS) {
            const u8* from[GROUPS];
#pragma unroll
            for (int i = 0; i < GROUPS; i++) {
                const int read = min((group + i) * 8 + (lane & 7), squares - 1);
                from[i] = gradient + read / SQUARES * Gradient::ROW + read % SQUARES * Gradient::PIXEL;
            }
            float da[GROUPS][TILES][4][4];
            products.of(da, from, lane);
#pragma unroll
            for (int i = 0; i < GROUPS * TILES; i++) {
                const int tile = i % TILES;
                float(&mine)[COUNT] = *(float(*)[COUNT]) & sum[tile * COUNT];
                add_gradient(mine, da[i / TILES][tile], lines, copied + AT_WEIGHTS, before, (group + i / TILES) * 8, squares, slice * TILES + tile,
                             bias[tile][0], bias[tile][1], lane);
            }
        }
    }
    copies_done();
    sum_over_turns<TEAMS * TURNS>(sum, shared, slice, team.number * TURNS + turn);
    // Whoever waits for this kernel need not know of the one before it.
    wait_for_kernels_before();
    if (team.number > 0 || turn > 0) return;
    float* to = partial_weight_a + (long long)blockIdx.x * (A_TAPS * CHANNELS * A_FILTERS);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const int channel = (slice * TILES + tile) * 16 + (lane >> 2);
#pragma unroll
        for (int i = 0; i < LINE_TILES * 4; i++) {
            const int k = channel + i % 4 / 2 * 8, column = i / 4 * 8 + (lane & 3) * 2 + i % 2;  // of [row of taps][LINE_ROWS]
            const int r = column / LINE_ROWS, number = column % LINE_ROWS;
            if (k < A_FILTERS && r < A_KERNEL_H && number < LINE_NUMBERS) to[(r * LINE_NUMBERS + number) * A_FILTERS + k] = sum[tile * COUNT + i];
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float total = sum[tile * COUNT + LINE_TILES * 4 + half];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            if ((lane & 3) == 0 && channel + half * 8 < A_FILTERS) partial_bias_a[(long long)blockIdx.x * A_FILTERS + channel + half * 8] = total;
        }
    }
}
