// From codes to values, and between storage types and float. Host and device code.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.h"

namespace bitsweep {

// scale * (code - zero): the difference is exact, the product is rounded once.
BITSWEEP_HD float uniform_value(float code, float zero, float scale) {
  return scale * (code - zero);
}

// {-negative, 0, positive} for codes 0, 1, 2.
BITSWEEP_HD float ternary_value(uint32_t code, float negative, float positive) {
  return code == 0u ? -negative : (code == 2u ? positive : 0.0f);
}

BITSWEEP_HD float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

BITSWEEP_HD uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

BITSWEEP_HD float bfloat16_to_float(uint16_t bits) {
  return bits_to_float(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
BITSWEEP_HD uint16_t float_to_bfloat16(float value) {
  uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

BITSWEEP_HD float half_to_float(uint16_t half) {
  uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  if (rest >= 0x0400u) return bits_to_float(sign | ((rest << 13) + 0x38000000u));
  // A subnormal half is its integer times 2^-24, exact in float.
  return bits_to_float(sign | float_to_bits(static_cast<float>(rest) * 5.9604644775390625e-08f));
}

// Round to nearest, ties to even; overflow goes to infinity.
BITSWEEP_HD uint16_t float_to_half(float value) {
  uint32_t bits = float_to_bits(value);
  uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (bits < 0x38800000u) {
    // Below the smallest normal half: adding 0.5 leaves the rounded integer in the low bits.
    uint32_t rounded = float_to_bits(bits_to_float(bits) + 0.5f) - 0x3f000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  uint32_t shifted = bits - 0x38000000u;
  uint32_t rounded = (shifted + 0x0fffu + ((shifted >> 13) & 1u)) >> 13;
  return static_cast<uint16_t>(sign | rounded);
}

// How scales, activations, bias and outputs are stored.
enum class Storage : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

BITSWEEP_HD float load_as_float(const void* data, Storage storage, int64_t index) {
  if (storage == Storage::kFloat32) return static_cast<const float*>(data)[index];
  uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return storage == Storage::kFloat16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

BITSWEEP_HD void store_float(void* data, Storage storage, int64_t index, float value) {
  if (storage == Storage::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        storage == Storage::kFloat16 ? float_to_half(value) : float_to_bfloat16(value);
  }
}

}  // namespace bitsweep
