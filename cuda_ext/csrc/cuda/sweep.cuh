// The column sweep on a GPU: one thread a row, its errors of kTogether columns in registers.
//
// The rows of a thread block lie in shared memory column by column, so that neighbouring threads
// touch neighbouring words; all of them read the same element of U, which is a broadcast. Work goes
// in strips of kTogether columns: inside a strip everything is in registers, then each later column
// is read once, takes up the kTogether errors in rising order, and is written once. That is the
// rounding order of the plain loop (../shared/sweep.h).
//
// No float atomics and no order that depends on timing: results are the same from run to run. What a
// thread does is one function of its row, so that a host loop can run it (tests/cuda_ext).
#pragma once

#include "../shared/sweep.h"

namespace bitsweep::cuda {

constexpr int kSweepRows = 64;      // rows, and threads, of a thread block
constexpr int kTogether = 16;       // columns of a strip
constexpr int kSweepPitch = kSweepRows + 1;  // words between columns in shared memory: no conflicts

// One strip of the columns of a row.
struct Strip {
  float error[kTogether];
};

// Quantize up to kTogether columns from j on; `column` is the row's column 0 in shared memory,
// kSweepPitch words from column to column, `upper` is row j of U, U_jj at upper[j].
template <bool Ternary>
BITSWEEP_HD void sweep_strip(
    const Sweep& sweep, int64_t row, int64_t j, int count, float* column, const float* upper,
    int64_t upper_stride, Strip& strip) {
  float w[kTogether];
#pragma unroll
  for (int i = 0; i < kTogether; i++) w[i] = i < count ? column[(j + i) * kSweepPitch] : 0.0f;
#pragma unroll
  for (int i = 0; i < kTogether; i++) {
    strip.error[i] = 0.0f;
    if (i >= count) continue;
    const int64_t group = sweep.group == nullptr ? 0 : sweep.group[j + i];
    const float scale = sweep.scale[group * sweep.rows + row];
    const float other = sweep.other[group * sweep.rows + row];
    const Rounded rounded = Ternary ? round_ternary(w[i], scale, other)
                                    : round_uniform(w[i], scale, other, sweep.max_code);
    const float* factors = upper + i * upper_stride + j;
    const float error = sweep_error(w[i], rounded.value, factors[i]);
    strip.error[i] = error;
    const int64_t out = (j + i) * sweep.rows + row;
    sweep.codes[out] = static_cast<uint8_t>(rounded.code);
    sweep.errors[out] = error;
    w[i] = rounded.value;
#pragma unroll
    for (int k = i + 1; k < kTogether; k++)
      if (k < count) w[k] = exact_fma(-factors[k], error, w[k]);
  }
#pragma unroll
  for (int i = 0; i < kTogether; i++)
    if (i < count) column[(j + i) * kSweepPitch] = w[i];
}

// Every column behind the strip takes up its errors.
BITSWEEP_HD void sweep_later(
    const Sweep& sweep, int64_t j, int count, float* column, const float* upper,
    int64_t upper_stride, const Strip& strip) {
  for (int64_t k = j + count; k < sweep.columns; k++) {
    float w = column[k * kSweepPitch];
#pragma unroll
    for (int i = 0; i < kTogether; i++)
      if (i < count) w = exact_fma(-upper[i * upper_stride + k], strip.error[i], w);
    column[k * kSweepPitch] = w;
  }
}

// All that one thread does. `column` is its word of the first column in shared memory; it reads and
// writes no other row, so that no barrier is needed.
template <bool Ternary>
BITSWEEP_HD void sweep_row(const Sweep& sweep, int64_t row, float* column) {
  if (row >= sweep.rows) return;
  for (int64_t k = 0; k < sweep.columns; k++)
    column[k * kSweepPitch] = sweep.weight[k * sweep.rows + row];
  for (int64_t j = 0; j < sweep.count; j += kTogether) {
    const int64_t left = sweep.count - j;
    const int count = left < kTogether ? static_cast<int>(left) : kTogether;
    const float* upper = sweep.upper + j * sweep.upper_stride;
    Strip strip;
    sweep_strip<Ternary>(sweep, row, j, count, column, upper, sweep.upper_stride, strip);
    sweep_later(sweep, j, count, column, upper, sweep.upper_stride, strip);
  }
  for (int64_t k = 0; k < sweep.columns; k++)
    sweep.weight[k * sweep.rows + row] = column[k * kSweepPitch];
}

// Shared memory of a thread block: its rows of the block of columns.
inline int64_t sweep_shared_bytes(int64_t columns) {
  return columns * kSweepPitch * static_cast<int64_t>(sizeof(float));
}

}  // namespace bitsweep::cuda
