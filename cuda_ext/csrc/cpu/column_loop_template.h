// The column loop, written once over an instruction set. A source file defines, in an anonymous
// namespace, `struct Lanes` and includes this header (see kernel_template.h for why).
//
// Rows are independent: a slab of rows, one register or a few wide, goes through all columns of the
// block in a copy that lies side by side in the first-level cache.
//
// Lanes: V (kWidth floats), kSlab (rows of a slab), kTogether (columns between two updates of all
// that come after them: their errors fill the registers), load, store, set, error, fnma, store_codes,
// uniform and ternary.
#include <cstring>

#include "floats.h"
#include "kernels.h"

namespace bitsweep {
namespace {

// `rows` floats, filled up to a slab.
inline void take(const float* from, int64_t rows, float filling, float* to) {
  std::memcpy(to, from, rows * sizeof(float));
  for (int64_t i = rows; i < Lanes::kSlab; i++) to[i] = filling;
}

// Column j: its codes, values and errors.
template <bool Ternary, int N>
inline void quantize_column(
    const ColumnLoop& loop, int64_t j, int64_t row, int64_t rows, float* column,
    typename Lanes::V (&error)[N]) {
  alignas(64) float scale[Lanes::kSlab], other[Lanes::kSlab], errors[Lanes::kSlab];
  alignas(64) uint8_t codes[Lanes::kSlab];
  const int64_t grid = (loop.group == nullptr ? 0 : loop.group[j]) * loop.rows + row;
  take(loop.scale + grid, rows, 1.0f, scale);
  take(loop.other + grid, rows, 0.0f, other);
  const auto diagonal = Lanes::set(loop.upper[j * loop.upper_stride + j]);
  const auto max_code = Lanes::set(loop.max_code);
  for (int v = 0; v < N; v++) {
    const int at = v * Lanes::kWidth;
    const auto w = Lanes::load(column + at);
    typename Lanes::V code, value;
    if constexpr (Ternary)
      Lanes::ternary(w, Lanes::load(scale + at), Lanes::load(other + at), code, value);
    else
      Lanes::uniform(w, Lanes::load(scale + at), Lanes::load(other + at), max_code, code, value);
    error[v] = Lanes::error(w, value, diagonal);
    Lanes::store(column + at, value);
    Lanes::store(errors + at, error[v]);
    Lanes::store_codes(codes + at, code);
  }
  const int64_t out = j * loop.rows + row;
  // The next slab comes in while this one is worked on: its pieces are too short, and too far from
  // each other, for the processor to foresee. Addresses past the end do no harm.
  for (int at = 0; at < Lanes::kSlab; at += 16)
    __builtin_prefetch(loop.weight + out + Lanes::kSlab + at);
  std::memcpy(loop.errors + out, errors, rows * sizeof(float));
  std::memcpy(loop.codes + out, codes, rows);
}

// Columns k from `first` on take up the errors of M columns from j on, in the order of those.
template <int M, int N>
inline void propagate(
    const ColumnLoop& loop, int64_t j, int64_t first, int64_t end, float* slab,
    const typename Lanes::V (*error)[N]) {
  const float* upper = loop.upper + j * loop.upper_stride;
  for (int64_t k = first; k < end; k++) {
    float* column = slab + k * Lanes::kSlab;
    typename Lanes::V sum[N];
    for (int v = 0; v < N; v++) sum[v] = Lanes::load(column + v * Lanes::kWidth);
    for (int m = 0; m < M; m++) {
      const auto factor = Lanes::set(upper[m * loop.upper_stride + k]);
      for (int v = 0; v < N; v++) sum[v] = Lanes::fnma(factor, error[m][v], sum[v]);
    }
    for (int v = 0; v < N; v++) Lanes::store(column + v * Lanes::kWidth, sum[v]);
  }
}

// Columns j .. j + M, whose errors stay in registers while the columns behind them are updated.
template <bool Ternary, int M>
inline void loop_over_columns(
    const ColumnLoop& loop, int64_t j, int64_t row, int64_t rows, float* slab) {
  constexpr int N = Lanes::kSlab / Lanes::kWidth;
  typename Lanes::V error[M][N];
  for (int m = 0; m < M; m++) {
    quantize_column<Ternary, N>(loop, j + m, row, rows, slab + (j + m) * Lanes::kSlab, error[m]);
    propagate<1, N>(loop, j + m, j + m + 1, j + M, slab, error + m);
  }
  propagate<M, N>(loop, j, j + M, loop.columns, slab, error);
}

template <bool Ternary>
void loop_slab(const ColumnLoop& loop, int64_t row, float* slab) {
  constexpr int M = Lanes::kTogether;
  const int64_t left = loop.rows - row;
  const int64_t rows = left < Lanes::kSlab ? left : Lanes::kSlab;
  for (int64_t k = 0; k < loop.columns; k++)
    take(loop.weight + k * loop.rows + row, rows, 0.0f, slab + k * Lanes::kSlab);
  int64_t j = 0;
  for (; j + M <= loop.count; j += M) loop_over_columns<Ternary, M>(loop, j, row, rows, slab);
  for (; j < loop.count; j++) loop_over_columns<Ternary, 1>(loop, j, row, rows, slab);
  for (int64_t k = 0; k < loop.columns; k++)
    std::memcpy(
        loop.weight + k * loop.rows + row, slab + k * Lanes::kSlab, rows * sizeof(float));
}

// Slabs [first, end) of kSlab rows each.
void column_loop(const ColumnLoop& loop, int64_t first, int64_t end) {
  const Floats slab(loop.columns * Lanes::kSlab);
  for (int64_t i = first; i < end; i++) {
    if (loop.ternary) loop_slab<true>(loop, i * Lanes::kSlab, slab.data());
    else loop_slab<false>(loop, i * Lanes::kSlab, slab.data());
  }
}

}  // namespace
}  // namespace bitsweep
