// Causal attention, written once over an instruction set. A source file defines, in an anonymous
// namespace, `struct Wide` and includes this header (see kernel_template.h for why).
//
// A task is a strip of queries of one head, and the queries are the lanes of every vector: scores,
// weights and outputs of a strip are kept transposed, a key or a column of value to a row. Maximum
// and sum of the softmax run down those rows: nothing is summed across lanes. Keys and values are
// read where they lie, one number for all queries of the strip; any number of them fits.
//
// The softmax is the online one (arXiv 1805.02867): with every tile of keys, sums and outputs so
// far are scaled to the largest score so far. Order of sums: keys of a tile, then tiles, always
// from the first, whatever the number of threads.
//
// Wide: F (kWidth floats, with the compiler's operators on vectors), Bits (kWidth of uint32_t),
// kVectors (vectors of a strip, at most 4), kRows (rows of a product, so that its sums fill the
// registers), set, fma, transpose (of kWidth vectors), of_halves (kWidth numbers of float16).
#include <cstring>
#include <limits>
#include <type_traits>

#include "floats.h"
#include "kernels.h"

namespace bitsweep {
namespace {

using F = Wide::F;
constexpr int kStrip = Wide::kVectors * Wide::kWidth;
// Keys of a tile. Its weights stay in the first-level cache while the columns of value pass by.
constexpr int64_t kKeys = 64;
alignas(64) constexpr float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// One strip under way. All rows are kStrip floats wide.
struct Strip {
  float* query;    // [width]
  float* out;      // [width]
  float* weights;  // [kKeys]: scores, then weights
  float* highest;  // [1]: the largest score so far
  float* total;    // [1]: the sum of weights so far
};

inline F load(const float* at) {
  F a;
  std::memcpy(&a, at, sizeof(F));
  return a;
}

inline void store(float* at, F a) { std::memcpy(at, &a, sizeof(F)); }

// 2^t for t <= 0: within 1 ulp, and exactly 1 for 0. Below 2^-125 it is 0, so that a masked score,
// which is minus infinity, weighs nothing. NaN stays NaN.
inline F power_of_two(F t) {
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits of the sum.
  const F shift = Wide::set(12582912.0f);
  const F moved = t + shift, part = t - (moved - shift);
  F value = Wide::set(0x1.41fbbcp-13f);  // minimax on [-1/2, 1/2], with 1 at 0
  value = Wide::fma(value, part, Wide::set(0x1.5f3e54p-10f));
  value = Wide::fma(value, part, Wide::set(0x1.3b2d4cp-7f));
  value = Wide::fma(value, part, Wide::set(0x1.c6aee8p-5f));
  value = Wide::fma(value, part, Wide::set(0x1.ebfbdcp-3f));
  value = Wide::fma(value, part, Wide::set(0x1.62e430p-1f));
  value = Wide::fma(value, part, Wide::set(1.0f));
  const auto whole = (reinterpret_cast<Wide::Bits>(moved) << 23) + 0x3f800000u;
  value *= reinterpret_cast<F>(whole);
  return t < Wide::set(-125.0f) ? Wide::set(0.0f) : value;
}

// R rows of a product: row r is the sum over i < count of factor[r * row + i * step] times the N
// vectors at x + i * kStrip. `finish` takes a row and its sums.
template <int R, int N, class Finish>
inline __attribute__((always_inline)) void strip_rows(
    const float* x, const float* factor, int64_t row, int64_t step, int64_t count, Finish finish) {
  F sum[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sum[r][n] = Wide::set(0.0f);
  for (int64_t i = 0; i < count; i++, x += kStrip, factor += step) {
    F lanes[N];
    for (int n = 0; n < N; n++) lanes[n] = load(x + n * Wide::kWidth);
    for (int r = 0; r < R; r++) {
      const F one = Wide::set(factor[r * row]);
      for (int n = 0; n < N; n++) sum[r][n] = Wide::fma(one, lanes[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; r++) finish(r, sum[r]);
}

// All `rows` of a product, kRows at a time, and what is left by 4, 2 and 1.
template <int N, class Finish>
inline __attribute__((always_inline)) void strip_product(
    const float* x, const float* factor, int64_t row, int64_t step, int64_t rows, int64_t count,
    Finish finish) {
  int64_t at = 0;
  const auto some = [&](auto size) __attribute__((always_inline)) {
    constexpr int R = decltype(size)::value;
    for (; at + R <= rows; at += R)
      strip_rows<R, N>(
          x, factor + at * row, row, step, count,
          [&](int r, const F(&sum)[N]) __attribute__((always_inline)) { finish(at + r, sum); });
  };
  some(std::integral_constant<int, Wide::kRows>{});
  some(std::integral_constant<int, 4>{});
  some(std::integral_constant<int, 2>{});
  some(std::integral_constant<int, 1>{});
}

// Scores of `keys` keys become weights, sums and outputs so far are scaled: returns by how much.
template <int N>
inline void weigh(const Strip& strip, float by, int64_t at, int64_t keys, F (&shrink)[N]) {
  const F factor = Wide::set(by);
  const auto place = [&](int64_t j, int n) {
    return strip.weights + j * kStrip + at + n * Wide::kWidth;
  };
  F before[N], largest[N], sum[N];
  for (int n = 0; n < N; n++) {
    sum[n] = Wide::set(0.0f);
    before[n] = largest[n] = load(strip.highest + at + n * Wide::kWidth);
  }
  for (int64_t j = 0; j < keys; j++) {
    for (int n = 0; n < N; n++) {
      const F score = load(place(j, n));
      largest[n] = score > largest[n] ? score : largest[n];
    }
  }
  for (int64_t j = 0; j < keys; j++) {
    for (int n = 0; n < N; n++) {
      const F weight = power_of_two((load(place(j, n)) - largest[n]) * factor);
      store(place(j, n), weight);
      sum[n] += weight;
    }
  }
  for (int n = 0; n < N; n++) {
    shrink[n] = power_of_two((before[n] - largest[n]) * factor);
    store(strip.highest + at + n * Wide::kWidth, largest[n]);
    float* total = strip.total + at + n * Wide::kWidth;
    store(total, Wide::fma(load(total), shrink[n], sum[n]));
  }
}

// N vectors of queries, from lane `at` of the strip on, take up `keys` keys. On the diagonal lane i
// of the first vector sees i + 1 of them, and the other vectors all.
template <int N>
void take_up(
    const Strip& strip, const Attention& attention, int64_t at, const float* key,
    const float* value, int64_t keys, bool diagonal) {
  float* weights = strip.weights + at;
  strip_product<N>(
      strip.query + at, key, attention.key_at.token, 1, keys, attention.width,
      [&](int64_t j, const F(&sum)[N]) __attribute__((always_inline)) {
        for (int n = 0; n < N; n++) store(weights + j * kStrip + n * Wide::kWidth, sum[n]);
      });
  if (diagonal) {
    const F masked = Wide::set(-std::numeric_limits<float>::infinity());
    for (int64_t j = 1; j < keys; j++) {
      const F score = load(weights + j * kStrip);
      const F later = Wide::set(static_cast<float>(j));
      store(weights + j * kStrip, load(kLane) < later ? masked : score);
    }
  }
  F shrink[N];
  weigh<N>(strip, attention.factor, at, keys, shrink);
  strip_product<N>(
      weights, value, 1, attention.value_at.token, attention.width, keys,
      [&](int64_t i, const F(&sum)[N]) __attribute__((always_inline)) {
        float* out = strip.out + i * kStrip + at;
        for (int n = 0; n < N; n++, out += Wide::kWidth)
          store(out, Wide::fma(load(out), shrink[n], sum[n]));
      });
}

void take_up(
    const Strip& strip, const Attention& attention, int64_t at, int vectors, const float* key,
    const float* value, int64_t keys, bool diagonal) {
  switch (vectors) {
    case 1: return take_up<1>(strip, attention, at, key, value, keys, diagonal);
    case 2: return take_up<2>(strip, attention, at, key, value, keys, diagonal);
    case 3: return take_up<3>(strip, attention, at, key, value, keys, diagonal);
    default: return take_up<4>(strip, attention, at, key, value, keys, diagonal);
  }
}

// Queries [rows, width] to [width, kStrip], zeros in the lanes that are left of the last vector.
inline void bring(
    const float* query, int64_t stride, int64_t rows, int64_t width, float* transposed) {
  for (int64_t at = 0; at < rows; at += Wide::kWidth) {
    for (int64_t k = 0; k < width; k += Wide::kWidth) {
      F square[Wide::kWidth];
      for (int i = 0; i < Wide::kWidth; i++)
        square[i] = at + i < rows ? load(query + (at + i) * stride + k) : Wide::set(0.0f);
      Wide::transpose(square);
      for (int i = 0; i < Wide::kWidth; i++) store(transposed + (k + i) * kStrip + at, square[i]);
    }
  }
}

// Outputs divided by the sums of their weights, back to [rows, width].
inline void hand_over(
    const Strip& strip, int64_t rows, int64_t width, float* out, int64_t stride) {
  for (int64_t at = 0; at < rows; at += Wide::kWidth) {
    const F factor = Wide::set(1.0f) / load(strip.total + at);
    for (int64_t k = 0; k < width; k += Wide::kWidth) {
      F square[Wide::kWidth];
      for (int i = 0; i < Wide::kWidth; i++)
        square[i] = load(strip.out + (k + i) * kStrip + at) * factor;
      Wide::transpose(square);
      for (int i = 0; i < Wide::kWidth && at + i < rows; i++)
        store(out + (at + i) * stride + k, square[i]);
    }
  }
}

// Queries first .. first + kStrip of one head.
void attend_strip(
    const Strip& strip, const Attention& attention, int64_t batch, int64_t head, int64_t first) {
  const int64_t left = attention.tokens - first, rows = left < kStrip ? left : kStrip;
  const int vectors = static_cast<int>((rows + Wide::kWidth - 1) / Wide::kWidth);
  const Strides &from = attention.query_at, &to = attention.out_at;
  const float* query =
      attention.query + batch * from.batch + head * from.head + first * from.token;
  const int64_t shared = head / attention.sharing;
  const float* key =
      attention.key + batch * attention.key_at.batch + shared * attention.key_at.head;
  const float* value =
      attention.value + batch * attention.value_at.batch + shared * attention.value_at.head;
  std::memset(strip.out, 0, attention.width * kStrip * sizeof(float));
  std::memset(strip.total, 0, kStrip * sizeof(float));
  for (int i = 0; i < kStrip; i++) strip.highest[i] = -std::numeric_limits<float>::infinity();
  bring(query, from.token, rows, attention.width, strip.query);

  for (int64_t j = 0; j < first; j += kKeys) {
    const int64_t keys = first - j < kKeys ? first - j : kKeys;
    take_up(
        strip, attention, 0, vectors, key + j * attention.key_at.token,
        value + j * attention.value_at.token, keys, false);
  }
  for (int v = 0; v < vectors; v++) {
    const int64_t at = v * Wide::kWidth, j = first + at, after = attention.tokens - j;
    const int64_t keys = after < Wide::kWidth ? after : Wide::kWidth;
    take_up(
        strip, attention, at, vectors - v, key + j * attention.key_at.token,
        value + j * attention.value_at.token, keys, true);
  }
  float* out = attention.out + batch * to.batch + head * to.head + first * to.token;
  hand_over(strip, rows, attention.width, out, to.token);
}

// Strips [first, end) of all batches and heads.
void attend(const Attention& attention, int64_t first, int64_t end) {
  const int64_t strips = (attention.tokens + kStrip - 1) / kStrip, width = attention.width;
  const Floats memory((2 * width + kKeys + 2) * kStrip);
  Strip strip{};
  strip.query = memory.data();
  strip.out = strip.query + width * kStrip;
  strip.weights = strip.out + width * kStrip;
  strip.highest = strip.weights + kKeys * kStrip;
  strip.total = strip.highest + kStrip;
  for (int64_t i = first; i < end; i++) {
    const int64_t head = i / strips, turn = i % strips;
    // Late strips see more keys: first, last, second, last but one share the work out evenly.
    const int64_t at = turn % 2 == 0 ? turn / 2 : strips - 1 - turn / 2;
    attend_strip(strip, attention, head / attention.heads, head % attention.heads, at * kStrip);
  }
}

}  // namespace
}  // namespace bitsweep
