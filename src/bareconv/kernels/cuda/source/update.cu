// What ends a training step: gradients summed, all parameters updated, losses summed, on to the next step.
//
//   gradient = sum over parts of partial[part][element]        w, states: see update.cuh
//
// One launch serves all parameters of a model. They lie in flat float arrays (master, state1, state2, gradient); each
// row of a table says which elements a block has. Sums run in an order that depends on the table alone.
//
// RULE, MOMENTUM, NESTEROV, DECAY as update.cuh has them, PRECISION of the working copies. Without RULE the file has the
// kernels that update nothing.
#if defined(RULE)
#include "update.cuh"
#endif
#include "portable.cuh"

typedef Kept<PRECISION> Number;

constexpr int THREADS = 256;
constexpr int ELEMENTS = 4;  // of a thread, where no others share the work on them
constexpr int PARTS = 8;     // of an element, loaded at once

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
    int unused;
};

// Where element ``place`` of a parameter, [tap][channel][filter], lies in its working copy.
DEVICE long long place_in_copy(const Piece& piece, int place) {
    if (piece.filters == 0) return place;
    const u32 row = (u32)place / (u32)piece.filters, filter = (u32)place - row * piece.filters;
    const u32 tap = row / (u32)piece.channels, channel = row - tap * piece.channels;
    return ((long long)tap * padded(piece.channels) + channel) * padded(piece.filters) + filter;
}

DEVICE Number::Type* copy_of(const Piece& piece, u8* memory) { return (Number::Type*)((u64)memory + piece.copy); }

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

#if defined(RULE)

// Elements first, first + stride, ... of the piece, those below its count: their parts group, group + groups, ...
template <int N, int AT_ONCE>
DEVICE void sum_parts(float (&sum)[N], const Piece& piece, const float* RESTRICT partial, int first, int stride, int group, int groups) {
    const float* RESTRICT from = partial + first + (long long)group * piece.pitch;
    const long long step = (long long)groups * piece.pitch;
#pragma unroll
    for (int e = 0; e < N; e++) sum[e] = 0.f;
    for (int part = group; part < piece.parts; part += AT_ONCE * groups, from += AT_ONCE * step) {
        float loaded[AT_ONCE][N];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
            for (int e = 0; e < N; e++) {
                const bool there = part + i * groups < piece.parts && first + e * stride < piece.count;
                loaded[i][e] = there ? from[i * step + e * stride] : 0.f;
            }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
            for (int e = 0; e < N; e++) sum[e] += loaded[i][e];
    }
}

struct Arrays {
    float *RESTRICT master, *RESTRICT state1, *RESTRICT state2, *RESTRICT gradient;
    Number::Type* RESTRICT copy;
};

// What becomes of elements first, first + stride, ... of the piece. All loads come before all stores: that the arrays do
// not overlap is more than the compiler sees.
template <int N>
DEVICE void change(const float (&sum)[N], const Piece& piece, int first, int stride, const float* scalars, const Arrays& arrays) {
    float w[N], s1[N], s2[N];
#pragma unroll
    for (int e = 0; e < N; e++) {
        const long long at = piece.start + first + e * stride;
        const bool there = first + e * stride < piece.count;
        w[e] = there && RULE != GRADIENT ? arrays.master[at] : 0.f;
        s1[e] = there && HAS_STATE1 ? arrays.state1[at] : 0.f;
        s2[e] = there && HAS_STATE2 ? arrays.state2[at] : 0.f;
    }
#pragma unroll
    for (int e = 0; e < N; e++) {
        const int element = first + e * stride;
        const long long at = piece.start + element;
        if (element >= piece.count) break;
        if constexpr (RULE == GRADIENT) {
            arrays.gradient[at] = sum[e];
        } else {
            w[e] = updated(scalars, w[e], sum[e], s1[e], s2[e]);
            arrays.master[at] = w[e];
            if constexpr (HAS_STATE1) arrays.state1[at] = s1[e];
            if constexpr (HAS_STATE2) arrays.state2[at] = s2[e];
            if (piece.copy >= 0) arrays.copy[place_in_copy(piece, piece.place + element)] = Number::of(w[e]);
        }
    }
}

// It must be the last kernel of its step, for it changes ``control``: the last block to have read it does that, so
// that no launch is spent on it. ``readers`` counts them, and is 0 between steps. Block 0 sums the losses.
KERNEL(THREADS, 4)
update(const Piece* RESTRICT pieces, u8* memory, float* RESTRICT master, float* RESTRICT state1, float* RESTRICT state2,
       float* RESTRICT gradient, const float* RESTRICT all_scalars, Control* control, const float* RESTRICT image_loss,
       const int* RESTRICT image_hit, float* RESTRICT losses, int* RESTRICT hits, int* readers) {
    SHARED float shared[THREADS];
    Piece piece = {};
    if (blockIdx.x > 0) piece = pieces[blockIdx.x - 1];
    wait_for_kernels_before();
    let_next_kernel_start();
    const Control step = *control;
    if (blockIdx.x == 0) {
        sum_losses(step, image_loss, image_hit, losses, hits);
    } else {
        const int lane = threadIdx.x & (piece.lanes - 1), groups = THREADS / piece.lanes;
        const int group = threadIdx.x / piece.lanes;
        float scalars[SCALARS];
        load_scalars(scalars, all_scalars, &step);
        const Arrays arrays = {master, state1, state2, gradient, copy_of(piece, memory)};
        const float* partial = (const float*)((u64)memory + piece.partial);
        if (groups == 1) {
            for (int first = lane; first < piece.count; first += ELEMENTS * THREADS) {
                float sum[ELEMENTS];
                sum_parts<ELEMENTS, PARTS / ELEMENTS>(sum, piece, partial, first, THREADS, 0, 1);
                change(sum, piece, first, THREADS, scalars, arrays);
            }
        } else {
            for (int begin = 0; begin < piece.count; begin += piece.lanes) {
                float sum[1];
                sum_parts<1, PARTS>(sum, piece, partial, begin + lane, 0, group, groups);
                shared[threadIdx.x] = sum[0];
                sync_block();
                if (group == 0 && begin + lane < piece.count) {
                    for (int other = 1; other < groups; other++) sum[0] += shared[other * piece.lanes + lane];
                    change(sum, piece, begin + lane, 0, scalars, arrays);
                }
                sync_block();
            }
        }
    }
    sync_block();
    if (threadIdx.x == 0 && count_up(readers) == gridDim.x - 1) {
        *readers = 0;
        advance(control, step);
    }
}

#else

// The same end of a step without parameters to update: one block.
KERNEL(THREADS, 1)
finish_step(Control* control, const float* RESTRICT image_loss, const int* RESTRICT image_hit, float* RESTRICT losses,
            int* RESTRICT hits) {
    wait_for_kernels_before();
    const Control step = *control;
    sum_losses(step, image_loss, image_hit, losses, hits);
    sync_block();
    if (threadIdx.x == 0) advance(control, step);
}

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
