// From the words of a unit to the operands of a product: pairs of code - zero, exact in T.
//
// A field of bits at place r of a pair of halves is or-ed into the mantissa of 2^(M - r), where M is
// the number of mantissa bits: that is the number 2^(M - r) + code, and one addition of
// -(2^(M - r) + zero) leaves code - zero. Fields above the mantissa are shifted down first, several
// at a time. bfloat16 has 7 bits of mantissa: fewer fields to a shift, zero-points up to 128, and
// codes of 8 bits go through float.
#pragma once

#include "../shared/layout.h"
#include "intrinsics.cuh"

namespace bitsweep::cuda {

__host__ __device__ constexpr uint32_t both(uint32_t half) { return half * 0x00010001u; }

// The pair (2^e, 2^e).
template <class T>
__host__ __device__ constexpr uint32_t power_pair(int e) {
  return both(static_cast<uint32_t>(T::kBias + e) << T::kMantissa);
}

// The pair of 2^M - 2^(M - r), r > 0: how the offset of place r differs from that of place 0.
template <class T>
__host__ __device__ constexpr uint32_t step_pair(int r) {
  constexpr int M = T::kMantissa;
  return both(
      (static_cast<uint32_t>(T::kBias + M - 1) << M) + (1u << M) - (1u << (M + 1 - r)));
}

// Which bits of a code make the operand: all of them, or for ternary levels whether the code is 2
// (its upper bit) or 0 (made visible in the lower bit by `clear_codes`).
enum class Plane { kCode, kPositive, kNegative };

// Bit 2i of every field: whether its code is 0.
__device__ __forceinline__ uint32_t clear_codes(uint32_t word) { return ~(word | (word >> 1)); }

// Operands of `Bits`-wide codes in a plane. An offset holds -(2^M + zero) as a pair; for 8 bits and
// bfloat16, 2^23 + zero as a float.
template <class T, int Bits, Plane P = Plane::kCode>
struct Codes {
  static constexpr int M = T::kMantissa;
  static constexpr bool kThroughFloat = Bits > M;
  // Bits of a word that one shift serves.
  static constexpr int kReach = kThroughFloat ? Bits : M / Bits * Bits;
  static constexpr uint32_t kMask = P == Plane::kCode ? (1u << Bits) - 1u : 1u;

  __device__ static __forceinline__ uint32_t offset(uint32_t zero) {
    if constexpr (kThroughFloat) return 0x4b000000u | zero;
    return both(zero) + (power_pair<T>(M) | 0x80008000u);
  }

  __device__ static __forceinline__ uint32_t place(uint32_t word, int r, uint32_t offset) {
    uint32_t value = mask_or(word, both(kMask << r), power_pair<T>(M - r));
    uint32_t minus = r == 0 ? offset : add_pairs<T>(offset, step_pair<T>(r));
    return add_pairs<T>(value, minus);
  }

  // The codes of block i of a chunk that lie in this word.
  __device__ static __forceinline__ uint32_t pair(uint32_t word, int i, uint32_t offset) {
    int shift = shift_of(Bits, i);
    if constexpr (kThroughFloat) {
      float minus = -bits_to_float(offset);
      float low = bits_to_float(0x4b000000u | ((word >> shift) & kMask));
      float high = bits_to_float(0x4b000000u | ((word >> (shift + 16)) & kMask));
      return round_pair<T>(low + minus, high + minus);
    }
    int base = shift / kReach * kReach;
    int r = shift - base + (P == Plane::kPositive ? 1 : 0);
    return place(base == 0 ? word : word >> base, r, offset);
  }

  // Three bits: what unit u says of the codes of block 15 that lie in words q of three units. They
  // are gathered as if they were blocks q = 0 .. 3 of one word.
  __device__ static __forceinline__ uint32_t top(uint32_t word, int u, int q) {
    return word >> (15 - u - 3 * q) & both(1u << (u + 3 * q));
  }
};

}  // namespace bitsweep::cuda
