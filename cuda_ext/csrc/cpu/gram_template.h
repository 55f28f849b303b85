// Sums of products of all pairs of columns, X^T X on and above the diagonal or (Y - X)^T X, written
// once over `struct Wide` (attention_template.h, which is included before).
//
// Columns of X come as panels of kStrip of them, token by token: both factors of a product read one
// after the other, and what a token brings to a panel is a row of vectors. A task is a square of
// kAcross x kAcross panels of the result; its sums stay in the second-level cache while the tokens
// pass by, kTokens at a time. Order of sums:
// tokens of a turn, then turns, then what was there before, whatever the number of threads.
#include "kernels.h"

namespace bitsweep {
namespace {

constexpr int64_t kAcross = 96 / kStrip > 0 ? 96 / kStrip : 1;
constexpr int64_t kTokens = 6144 / kStrip < 256 ? 6144 / kStrip : 256;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Panels [first, end) of the columns; zeros behind the last column.
void gram_panels(const Gram& gram, int64_t first, int64_t end) {
  for (int64_t p = first; p < end; p++) {
    const int64_t columns = least(kStrip, gram.inputs - p * kStrip);
    float* to = gram.panels + p * kStrip * gram.tokens;
    const float* from = gram.rows + p * kStrip;
    for (int64_t t = 0; t < gram.tokens; t++, to += kStrip, from += gram.stride) {
      if (columns == kStrip) {
        for (int n = 0; n < Wide::kVectors; n++)
          store(to + n * Wide::kWidth, load(from + n * Wide::kWidth));
      } else {
        for (int64_t i = 0; i < kStrip; i++) to[i] = i < columns ? from[i] : 0.0f;
      }
    }
    if (gram.reference == nullptr) continue;
    to = gram.left + p * kStrip * gram.tokens;
    const float* less = gram.panels + p * kStrip * gram.tokens;
    from = gram.reference + p * kStrip;
    for (int64_t t = 0; t < gram.tokens;
         t++, to += kStrip, less += kStrip, from += gram.reference_stride) {
      if (columns == kStrip) {
        for (int n = 0, at = 0; n < Wide::kVectors; n++, at += Wide::kWidth)
          store(to + at, load(from + at) - load(less + at));
      } else {
        for (int64_t i = 0; i < kStrip; i++) to[i] = i < columns ? from[i] - less[i] : 0.0f;
      }
    }
  }
}

// What kTokens tokens (or those that are left) bring to one pair of panels.
inline void gram_pair(
    const float* left, const float* right, int64_t tokens, bool begin, float* sums) {
  strip_product<Wide::kVectors>(
      right, left, 1, kStrip, kStrip, tokens,
      [&](int64_t r, const F(&sum)[Wide::kVectors]) __attribute__((always_inline)) {
        float* at = sums + r * kStrip;
        for (int n = 0; n < Wide::kVectors; n++, at += Wide::kWidth)
          store(at, begin ? sum[n] : load(at) + sum[n]);
      });
}

// The square at panels (row, column) of the result.
void gram_square(const Gram& gram, int64_t row, int64_t column, float* sums) {
  const int64_t panels = (gram.inputs + kStrip - 1) / kStrip;
  const int64_t rows = least(row + kAcross, panels), columns = least(column + kAcross, panels);
  const auto place = [&](int64_t i, int64_t j) {
    return sums + ((i - row) * kAcross + j - column) * kStrip * kStrip;
  };
  const auto start = [&](int64_t i) { return gram.whole || column > i ? column : i; };
  for (int64_t t = 0; t < gram.tokens; t += kTokens) {
    const int64_t tokens = least(kTokens, gram.tokens - t);
    for (int64_t i = row; i < rows; i++) {
      const float* left = gram.left + (i * gram.tokens + t) * kStrip;
      for (int64_t j = start(i); j < columns; j++) {
        const float* right = gram.panels + (j * gram.tokens + t) * kStrip;
        gram_pair(left, right, tokens, t == 0, place(i, j));
      }
    }
  }
  for (int64_t i = row; i < rows; i++) {
    const int64_t high = least(kStrip, gram.inputs - i * kStrip);
    for (int64_t j = start(i); j < columns; j++) {
      const int64_t across = least(kStrip, gram.inputs - j * kStrip);
      const float* from = place(i, j);
      float* to = gram.total + i * kStrip * gram.total_stride + j * kStrip;
      for (int64_t r = 0; r < high; r++, from += kStrip, to += gram.total_stride)
        for (int64_t c = 0; c < across; c++) to[c] += from[c];
    }
  }
}

int64_t gram_squares_across(int64_t inputs) {
  return (inputs + kStrip * kAcross - 1) / (kStrip * kAcross);
}

// Squares [first, end) on and above the diagonal, or of all, row by row.
void gram_squares(const Gram& gram, int64_t first, int64_t end) {
  const Floats sums(kAcross * kAcross * kStrip * kStrip);
  const int64_t across = gram_squares_across(gram.inputs), squares = across * (across + 1) / 2;
  for (int64_t turn = first; turn < end; turn++) {
    if (gram.whole) {
      gram_square(gram, turn / across * kAcross, turn % across * kAcross, sums.data());
      continue;
    }
    // From both ends by turns: squares on the diagonal have half of the work, and the last rows
    // have most of them.
    int64_t left = turn % 2 == 0 ? turn / 2 : squares - 1 - turn / 2, row = 0;
    for (; left >= across - row; row++) left -= across - row;
    gram_square(gram, row * kAcross, (row + left) * kAcross, sums.data());
  }
}

GramKernels gram_kernels() {
  return {kStrip, gram_panels, gram_squares_across, gram_squares};
}

}  // namespace
}  // namespace bitsweep
