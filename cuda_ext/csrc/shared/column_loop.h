// GPTQ's inner column loop: what one weight becomes, and in which order it is rounded. Host and
// device code.
//
// Everything is float, rounded to nearest after every operation that is written here, as PyTorch
// does it in the plain loop of quant/solvers/gptq.py:
//   code  = clamp(round(w / scale) + zero, 0, max_code)          half to even
//   value = (code - zero) * scale
//   error = (w - value) / U_jj
//   w_k   = fma(-U_jk, error, w_k)                               for every later column k, j rising
#pragma once

#include <cmath>
#include <cstdint>

#include "layout.h"

namespace bitsweep {

// A block of columns (rows of these arrays are columns of the layer's weight, in the loop's order).
struct ColumnLoop {
  float* weight;         // [columns, rows]; values of the first `count`, the others up to date
  const float* upper;    // U of the block, `upper_stride` floats from row to row
  int64_t upper_stride;
  const float* scale;    // [groups, rows]
  const float* other;    // [groups, rows]: the zero-points; ternary: magnitudes of code 0
  const int32_t* group;  // [count], null: all columns in group 0
  bool ternary;
  float max_code;
  int64_t columns;
  int64_t count;
  int64_t rows;
  uint8_t* codes;        // [count, rows]
  float* errors;         // [count, rows]
};

struct Rounded {
  float code;
  float value;
};

// Division, product and fused product, which no compiler may contract or approximate.
BITSWEEP_HD float exact_divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

BITSWEEP_HD float exact_multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

BITSWEEP_HD float exact_fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

BITSWEEP_HD float half_to_even(float a) {
#if defined(__CUDA_ARCH__)
  return rintf(a);
#else
  return std::nearbyint(a);
#endif
}

BITSWEEP_HD Rounded round_uniform(float w, float scale, float zero, float max_code) {
  float code = half_to_even(exact_divide(w, scale)) + zero;
  code = code > 0.0f ? code : 0.0f;  // NaN too
  code = code < max_code ? code : max_code;
  return {code, exact_multiply(code - zero, scale)};
}

// {-negative, 0, positive} as codes 0, 1, 2: beyond half of an outer level, that level.
BITSWEEP_HD Rounded round_ternary(float w, float positive, float negative) {
  if (w > positive * 0.5f) return {2.0f, positive};
  if (w < negative * -0.5f) return {0.0f, -negative};
  return {1.0f, 0.0f};
}

BITSWEEP_HD float loop_error(float w, float value, float diagonal) {
  return exact_divide(w - value, diagonal);
}

}  // namespace bitsweep
