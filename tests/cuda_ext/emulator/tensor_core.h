// mma.m16n8k16 with float sums, pessimistic: eight products and the sum so far are cut (not rounded)
// to 25 bits of the largest of them, added, and the result cut to a float, as measurements of tensor
// cores describe them. Products of halves are exact.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../../../cuda_ext/csrc/shared/dequantize.h"

namespace bitsweep::emulator {

struct Fragment {
  uint32_t a[4], b[2];
  float sum[4];
};

inline float cut_to_float(double value) {
  float near = static_cast<float>(value);
  return std::fabs(static_cast<double>(near)) > std::fabs(value) ? std::nextafterf(near, 0.0f)
                                                                 : near;
}

inline double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

inline float add_products(float sum, const float* a, const float* b) {
  double terms[9], largest = std::fabs(static_cast<double>(sum));
  terms[8] = sum;
  bool finite = std::isfinite(sum);
  for (int k = 0; k < 8; k++) {
    terms[k] = static_cast<double>(a[k]) * static_cast<double>(b[k]);
    finite &= std::isfinite(terms[k]);
    largest = std::max(largest, std::fabs(terms[k]));
  }
  if (!finite) {
    double total = 0.0;
    for (double term : terms) total += term;
    return static_cast<float>(total);
  }
  if (largest == 0.0) return 0.0f;
  // No product or sum of floats is so small that a double of it is subnormal.
  const int exponent = static_cast<int>(std::bit_cast<uint64_t>(largest) >> 52) - 1023;
  const double up = power_of_two(24 - exponent);
  int64_t total = 0;
  for (double term : terms) total += static_cast<int64_t>(term * up);
  return cut_to_float(static_cast<double>(total) * power_of_two(exponent - 24));
}

inline void multiply(Fragment* const (&lanes)[32], bool bfloat16) {
  auto widen = [&](uint32_t pair, int high) {
    const auto bits = static_cast<uint16_t>(pair >> (16 * high));
    return bfloat16 ? bfloat16_to_float(bits) : half_to_float(bits);
  };
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    for (int high = 0; high < 2; high++) {
      for (int r = 0; r < 4; r++)
        a[g + r % 2 * 8][2 * t + r / 2 * 8 + high] = widen(lanes[lane]->a[r], high);
      for (int r = 0; r < 2; r++) b[g][2 * t + r * 8 + high] = widen(lanes[lane]->b[r], high);
    }
  }
  for (int lane = 0; lane < 32; lane++)
    for (int c = 0; c < 4; c++) {
      const int row = lane / 4 + c / 2 * 8, column = lane % 4 * 2 + c % 2;
      float& sum = lanes[lane]->sum[c];
      sum = add_products(sum, a[row], b[column]);
      sum = add_products(sum, a[row] + 8, b[column] + 8);
    }
}

}  // namespace bitsweep::emulator
