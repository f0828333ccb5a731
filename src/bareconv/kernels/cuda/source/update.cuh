// The optimizers' rules on one parameter. What an optimizer decides once is a macro:
//
//   RULE      0 gradient (no step), 1 SGD, 2 RMSprop, 3 Adam, 4 AdamW
//   MOMENTUM  0 or 1, of SGD and RMSprop     NESTEROV  0 or 1, of SGD     DECAY  0 or 1, whether weights decay
//
// What changes from step to step is SCALARS numbers in memory, in the order of ``scalars`` in bareconv/optim/rule.py:
//
//   rate, decay, one, two, three, four, 0, 0       the rate is Adam's with its correction
//   decay: the weight decay, or AdamW's factor 1 - rate * weight decay
//   SGD      one: momentum
//   RMSprop  one: alpha   two: 1 - alpha   three: eps             four: momentum
//   Adam     one: beta1   two: beta2       three: 1 - beta2       four: eps * correction
#pragma once
#include "portable.cuh"

#define GRADIENT 0
#define SGD 1
#define RMSPROP 2
#define ADAM 3
#define ADAMW 4

constexpr int SCALARS = 8;

// What a rule keeps of a parameter from step to step; a state that it does not have may be a null pointer.
constexpr bool HAS_STATE1 = RULE == RMSPROP || RULE == ADAM || RULE == ADAMW || (RULE == SGD && MOMENTUM);
constexpr bool HAS_STATE2 = RULE == ADAM || RULE == ADAMW || (RULE == RMSPROP && MOMENTUM);

// This step's numbers, out of those of all steps. To be called once: ``mine`` then stays in registers.
DEVICE void load_scalars(float (&mine)[SCALARS], const float* all, int position) {
    const float* row = all + (long long)SCALARS * position;
#pragma unroll
    for (int i = 0; i < SCALARS; i++) mine[i] = row[i];
}

// The parameter after a step along gradient ``g``; the states are changed in place.
DEVICE float updated(const float* scalars, float w, float g, float& state1, float& state2) {
    if constexpr (RULE == GRADIENT) return w;
    const float rate = scalars[0], decay = scalars[1];
    if constexpr (RULE == ADAMW && DECAY) w = w * decay;
    if constexpr (RULE != ADAMW && DECAY) g = fmaf(w, decay, g);
    float step = g;
    if constexpr (RULE == SGD && MOMENTUM) {
        state1 = fmaf(state1, scalars[2], g);
        step = NESTEROV ? fmaf(state1, scalars[2], g) : state1;
    }
    if constexpr (RULE == RMSPROP) {
        state1 = state1 * scalars[2] + g * g * scalars[3];
        step = g / (sqrtf(state1) + scalars[4]);
        if constexpr (MOMENTUM) {
            step = fmaf(state2, scalars[5], step);
            state2 = step;
        }
    }
    if constexpr (RULE == ADAM || RULE == ADAMW) {
        state1 = state1 * scalars[2] + g * (1.f - scalars[2]);
        state2 = state2 * scalars[3] + g * g * scalars[4];
        step = state1 / (sqrtf(state2) + scalars[5]);
    }
    return w - rate * step;
}
