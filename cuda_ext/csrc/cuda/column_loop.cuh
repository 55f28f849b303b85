// The column loop on a GPU: one thread a row, its errors of kTogether columns in registers.
//
// The rows of a thread block lie in shared memory column by column, so that neighbouring threads
// touch neighbouring words; all of them read the same element of U, which is a broadcast. Work goes
// in strips of kTogether columns: inside a strip everything is in registers, then each later column
// is read once, takes up the kTogether errors in rising order, and is written once. That is the
// rounding order of the plain loop (../shared/column_loop.h).
//
// No float atomics and no order that depends on timing: results are the same from run to run. What a
// thread does is one function of its row, so that a host loop can run it (tests/cuda_ext).
#pragma once

#include "../shared/column_loop.h"

namespace bitsweep::cuda {

constexpr int kLoopRows = 64;      // rows, and threads, of a thread block
constexpr int kTogether = 16;       // columns of a strip
constexpr int kLoopPitch = kLoopRows + 1;  // words between columns in shared memory: no conflicts

// One strip of the columns of a row.
struct Strip {
  float error[kTogether];
};

// Quantize up to kTogether columns from j on; `column` is the row's column 0 in shared memory,
// kLoopPitch words from column to column, `upper` is row j of U, U_jj at upper[j].
template <bool Ternary>
BITSWEEP_HD void loop_strip(
    const ColumnLoop& loop, int64_t row, int64_t j, int count, float* column, const float* upper,
    int64_t upper_stride, Strip& strip) {
  float w[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; i++) w[i] = i < count ? column[(j + i) * kLoopPitch] : 0.0f;
#pragma unroll
  for (int i = 0; i < kTogether; i++) {
    strip.error[i] = 0.0f;
    if (i >= count) continue;
    const int64_t group = loop.group == nullptr ? 0 : loop.group[j + i];
    const float scale = loop.scale[group * loop.rows + row];
    const float other = loop.other[group * loop.rows + row];
    const Rounded rounded = Ternary ? round_ternary(w[i], scale, other)
                                    : round_uniform(w[i], scale, other, loop.max_code);
    const float* factors = upper + i * upper_stride + j;
    const float error = loop_error(w[i], rounded.value, factors[i]);
    strip.error[i] = error;
    const int64_t out = (j + i) * loop.rows + row;
    loop.codes[out] = static_cast<uint8_t>(rounded.code);
    loop.errors[out] = error;
    w[i] = rounded.value;
#pragma unroll
    for (int k = i + 1; k < kTogether; k++)
      if (k < count) w[k] = exact_fma(-factors[k], error, w[k]);
  }
#pragma unroll
  for (int i = 0; i < kTogether; i++)
    if (i < count) column[(j + i) * kLoopPitch] = w[i];
}

// Every column behind the strip takes up its errors.
BITSWEEP_HD void loop_later(
    const ColumnLoop& loop, int64_t j, int count, float* column, const float* upper,
    int64_t upper_stride, const Strip& strip) {
  for (int64_t k = j + count; k < loop.columns; k++) {
    float w = column[k * kLoopPitch];
#pragma unroll
    for (int i = 0; i < kTogether; i++)
      if (i < count) w = exact_fma(-upper[i * upper_stride + k], strip.error[i], w);
    column[k * kLoopPitch] = w;
  }
}

// All that one thread does. `column` is its word of the first column in shared memory; it reads and
// writes no other row, so that no barrier is needed.
template <bool Ternary>
BITSWEEP_HD void loop_row(const ColumnLoop& loop, int64_t row, float* column) {
  if (row >= loop.rows) return;
  for (int64_t k = 0; k < loop.columns; k++)
    column[k * kLoopPitch] = loop.weight[k * loop.rows + row];
  for (int64_t j = 0; j < loop.count; j += kTogether) {
    const int64_t left = loop.count - j;
    const int count = left < kTogether ? static_cast<int>(left) : kTogether;
    const float* upper = loop.upper + j * loop.upper_stride;
    Strip strip;
    loop_strip<Ternary>(loop, row, j, count, column, upper, loop.upper_stride, strip);
    loop_later(loop, j, count, column, upper, loop.upper_stride, strip);
  }
  for (int64_t k = 0; k < loop.columns; k++)
    loop.weight[k * loop.rows + row] = column[k * kLoopPitch];
}

// Shared memory of a thread block: its rows of the block of columns.
inline int64_t loop_shared_bytes(int64_t columns) {
  return columns * kLoopPitch * static_cast<int64_t>(sizeof(float));
}

}  // namespace bitsweep::cuda
