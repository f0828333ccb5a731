// What ends a training step: gradients summed, all parameters updated, losses summed, on to the next step.
//
//   gradient = sum over parts of partial[part][element]        w, states: see update.cuh
//
// One launch serves all parameters of a model. They lie in flat float arrays (master, state1, state2, gradient); each
// row of a table says which elements a block has. Sums run in an order that depends on the table alone.
//
// RULE, MOMENTUM, NESTEROV, DECAY as update.cuh has them, PRECISION of the working copies; PARTS: of an element, that a
// thread loads at once. Without RULE the file has the kernel that makes working copies alone.
#if defined(RULE)
#include "update.cuh"
#endif
#include "portable.cuh"

typedef Kept<PRECISION> Number;

constexpr int THREADS = 256;

// A row of the table: elements that follow each other in one parameter.
struct Piece {
    long long start;        // of the first in the flat arrays
    long long partial;      // where the first element's first part lies, in bytes from ``memory``
    long long copy;         // where the parameter's working copy lies, likewise; below 0: it has none
    int place;              // of the first in its parameter
    int count;              // of elements
    int parts, pitch;       // pitch: from a part to the next, in floats
    int channels, filters;  // of the working copy; filters 0: it has no padding
    int lanes;              // threads side by side; the others of the block take other parts of the same elements
    int width;              // neighbouring elements of a thread: 4 where in all arrays they are one load, else 1
};

// Where element ``place`` of a parameter, [tap][channel][filter], lies in its working copy.
DEVICE long long place_in_copy(const Piece& piece, int place) {
    if (piece.filters == 0) return place;
    const u32 row = (u32)place / (u32)piece.filters, filter = (u32)place - row * piece.filters;
    const u32 tap = row / (u32)piece.channels, channel = row - tap * piece.channels;
    return ((long long)tap * padded(piece.channels) + channel) * padded(piece.filters) + filter;
}

DEVICE Number::Type* copy_of(const Piece& piece, u8* memory) { return (Number::Type*)((u64)memory + piece.copy); }

#if defined(RULE)

// WIDTH neighbours, at a multiple of their size; zeros where they are not ``there``.
template <int WIDTH>
DEVICE void load(float (&values)[WIDTH], const float* from, bool there) {
    if constexpr (WIDTH == 4) {
        const float4 four = there ? *(const float4*)from : float4{0.f, 0.f, 0.f, 0.f};
        values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
    } else {
        values[0] = there ? *from : 0.f;
    }
}

template <int WIDTH>
DEVICE void store(float* to, const float (&values)[WIDTH]) {
    if constexpr (WIDTH == 4) *(float4*)to = float4{values[0], values[1], values[2], values[3]};
    else *to = values[0];
}

struct Arrays {
    float *RESTRICT master, *RESTRICT state1, *RESTRICT state2, *RESTRICT gradient;
    Number::Type* RESTRICT copy;
};

// The working copies of elements place, place + 1, ... of the piece's parameter.
template <int WIDTH>
DEVICE void store_copies(const Piece& piece, Number::Type* copy, int place, const float (&w)[WIDTH]) {
    if (WIDTH == 4 && piece.filters % 4 == 0) {  // neighbours there, too
        Number::Type* to = copy + place_in_copy(piece, place);
#pragma unroll
        for (int e = 0; e < WIDTH; e += 2) Number::store_pair(to + e, w[e], w[e + 1 < WIDTH ? e + 1 : e]);
    } else {
#pragma unroll
        for (int e = 0; e < WIDTH; e++) copy[place_in_copy(piece, place + e)] = Number::of(w[e]);
    }
}

// The parts of a piece's elements summed, and what becomes of them. All reads are on their way before any is needed.
template <int WIDTH>
DEVICE void change(const Piece& piece, const float* RESTRICT partial, const float* scalars, const Arrays& arrays) {
    SHARED float4 shared[THREADS * WIDTH / 4];
    const int lane = threadIdx.x & (piece.lanes - 1), group = threadIdx.x / piece.lanes, groups = THREADS / piece.lanes;
    for (int begin = 0; begin < piece.count; begin += WIDTH * piece.lanes) {
        const int element = begin + WIDTH * lane;
        const bool there = element < piece.count, ends = there && group == 0;
        const long long at = piece.start + element;
        float w[WIDTH], s1[WIDTH], s2[WIDTH], sum[WIDTH] = {};
        load(w, arrays.master + at, ends && RULE != GRADIENT);
        load(s1, arrays.state1 + at, ends && HAS_STATE1);
        load(s2, arrays.state2 + at, ends && HAS_STATE2);
#pragma unroll 1
        for (int part = group; part < piece.parts; part += PARTS * groups) {
            float loaded[PARTS][WIDTH];
#pragma unroll
            for (int i = 0; i < PARTS; i++) {
                const int one = part + i * groups;
                load(loaded[i], partial + (long long)one * piece.pitch + element, there && one < piece.parts);
            }
#pragma unroll
            for (int i = 0; i < PARTS; i++)
#pragma unroll
                for (int e = 0; e < WIDTH; e++) sum[e] += loaded[i][e];
        }
        if (groups > 1) {
            for (int mask = piece.lanes; mask < 32; mask *= 2)
#pragma unroll
                for (int e = 0; e < WIDTH; e++) sum[e] += shuffle_xor(sum[e], mask);
            store((float*)shared + threadIdx.x * WIDTH, sum);
            sync_block();
            const int next = max(piece.lanes, 32);
            for (int other = lane + next; other < THREADS && group == 0; other += next) {
                float more[WIDTH];
                load(more, (const float*)shared + other * WIDTH, true);
#pragma unroll
                for (int e = 0; e < WIDTH; e++) sum[e] += more[e];
            }
            sync_block();
        }
        if (!ends) continue;
        if constexpr (RULE == GRADIENT) {
            store(arrays.gradient + at, sum);
        } else {
#pragma unroll
            for (int e = 0; e < WIDTH; e++) w[e] = updated(scalars, w[e], sum[e], s1[e], s2[e]);
            store(arrays.master + at, w);
            if constexpr (HAS_STATE1) store(arrays.state1 + at, s1);
            if constexpr (HAS_STATE2) store(arrays.state2 + at, s2);
            if (piece.copy >= 0) store_copies(piece, arrays.copy, piece.place + element, w);
        }
    }
}

// The mean loss and the hits of the step's images, by one block.
DEVICE void sum_losses(const Control& step, const float* image_loss, const int* image_hit, float* losses, int* hits) {
    SHARED float loss_of[THREADS];
    SHARED int hits_of[THREADS];
    float loss = 0.f;
    int hit = 0;
    for (int image = threadIdx.x; image < step.images; image += THREADS) {
        loss += image_loss[image];
        hit += image_hit[image];
    }
    loss_of[threadIdx.x] = loss, hits_of[threadIdx.x] = hit;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        sync_block();
        if (threadIdx.x < half) {
            loss_of[threadIdx.x] += loss_of[threadIdx.x + half];
            hits_of[threadIdx.x] += hits_of[threadIdx.x + half];
        }
    }
    if (threadIdx.x == 0) {
        losses[step.position] = loss_of[0] / (float)max(step.images, 1);
        hits[step.position] = hits_of[0];
    }
}

DEVICE void advance(Control* control, const Control& step) {
    control->position = step.position + 1;
    if (step.batch > 0) control->images = max(0, min(step.batch, step.total - (step.position + 1) * step.batch));
}

// It must be the last kernel of its step, for its first block moves ``control`` on to the next; the others know the
// step's position from the kernel that had the loss. That block sums the losses, too.
KERNEL(THREADS, 4)
update(const Piece* RESTRICT pieces, u8* memory, float* RESTRICT master, float* RESTRICT state1, float* RESTRICT state2,
       float* RESTRICT gradient, const float* RESTRICT all_scalars, const int* RESTRICT position, Control* control,
       const float* RESTRICT image_loss, const int* RESTRICT image_hit, float* RESTRICT losses, int* RESTRICT hits) {
    Piece piece = {};
    if (blockIdx.x > 0) piece = pieces[blockIdx.x - 1];
    wait_for_kernels_before();
    let_next_kernel_start();
    if (blockIdx.x == 0) {
        const Control step = *control;
        sum_losses(step, image_loss, image_hit, losses, hits);
        if (threadIdx.x == 0) advance(control, step);
        return;
    }
    float scalars[SCALARS];
    load_scalars(scalars, all_scalars, *position);
    const Arrays arrays = {master, state1, state2, gradient, copy_of(piece, memory)};
    const float* partial = (const float*)((u64)memory + piece.partial);
    if (piece.width == 4) change<4>(piece, partial, scalars, arrays);
    else change<1>(piece, partial, scalars, arrays);
}

#else

// Masters to working copies, after others than the update have changed them.
KERNEL(THREADS, 4)
copy_weights(const Piece* RESTRICT pieces, u8* memory, const float* RESTRICT master) {
    const Piece piece = pieces[blockIdx.x];
    wait_for_kernels_before();
    let_next_kernel_start();
    if (piece.copy < 0) return;
    for (int element = threadIdx.x; element < piece.count; element += THREADS)
        copy_of(piece, memory)[place_in_copy(piece, piece.place + element)] = Number::of(master[piece.start + element]);
}

#endif
