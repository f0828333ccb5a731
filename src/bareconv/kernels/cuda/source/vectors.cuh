// 16 bytes of neighbouring channels: what a thread of a kernel that is bound by memory reads and writes at once.
#pragma once
#include "portable.cuh"

template <int P>
struct Vector {
    static constexpr int LENGTH = 16 / Kept<P>::BYTES;  // numbers
    u32 words[4];

    DEVICE static Vector load(const typename Kept<P>::Type* from) {
        const uint4 bits = *(const uint4*)from;
        return Vector{{bits.x, bits.y, bits.z, bits.w}};
    }
    DEVICE void store(typename Kept<P>::Type* to) const { *(uint4*)to = uint4{words[0], words[1], words[2], words[3]}; }

    // ``i`` must be known to the compiler, or the vector goes through memory.
    DEVICE float operator[](int i) const {
        if constexpr (LENGTH == 4) return float_of(words[i]);
        return i & 1 ? high_half(words[i / 2]) : low_half(words[i / 2]);
    }
    DEVICE static Vector of(const float (&values)[LENGTH]) {
        Vector result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (LENGTH == 4) result.words[i] = bits_of(Kept<P>::of(values[i]));
            else result.words[i] = pack(values[2 * i], values[2 * i + 1]);
        }
        return result;
    }
};

// A vector's worth of neighbouring float32, at a multiple of 16 bytes.
template <int LENGTH>
DEVICE void load_floats(float (&values)[LENGTH], const float* from) {
#pragma unroll
    for (int i = 0; i < LENGTH; i += 4) {
        const float4 four = *(const float4*)(from + i);
        values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    }
}

// Whether ``value`` takes the place of the maximum so far: the first of equals stays, a NaN wins.
DEVICE bool is_larger(float value, float largest) { return value > largest || value != value; }
