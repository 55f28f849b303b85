// Norms, gates, rotations, attention of one token and products with plain weights: what a decode
// step does besides its packed products, written once over `struct Wide` (attention_template.h,
// which is included before). Sums have a fixed order, whatever the number of threads or tokens.
#include <cmath>

#include "../shared/dequantize.h"
#include "../shared/layout.h"
#include "step.h"

namespace bitsweep {
namespace {

// Words of 16 bits by what they stand for.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
using Halves = uint16_t __attribute__((vector_size(2 * Wide::kWidth)));

inline float sum_of(F a) {
  float lane[Wide::kWidth];
  store(lane, a);
  for (int half = Wide::kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lane[i] += lane[i + half];
  return lane[0];
}

inline F load_weights(const float* at) { return load(at); }
inline F load_weights(const BFloat16* at) {
  Halves halves;
  std::memcpy(&halves, at, sizeof(Halves));
  return reinterpret_cast<F>(__builtin_convertvector(halves, Wide::Bits) << 16);
}
inline F load_weights(const Float16* at) { return Wide::of_halves(&at->bits); }
inline float load_weight(float value) { return value; }
inline float load_weight(BFloat16 value) { return bfloat16_to_float(value.bits); }
inline float load_weight(Float16 value) { return half_to_float(value.bits); }

// R rows times one row of x: two sums a row, which take turns.
template <int R, class T>
inline void dense_rows(const DenseProduct& product, const T* weight, const float* x, float* y) {
  const int64_t inputs = product.inputs, step = 2 * Wide::kWidth;
  F sum[R][2];
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = Wide::set(0.0f);
  int64_t k = 0;
  for (; k + step <= inputs; k += step) {
    const F low = load(x + k), high = load(x + k + Wide::kWidth);
    for (int r = 0; r < R; r++) {
      const T* at = weight + r * inputs + k;
      sum[r][0] = Wide::fma(load_weights(at), low, sum[r][0]);
      sum[r][1] = Wide::fma(load_weights(at + Wide::kWidth), high, sum[r][1]);
    }
  }
  for (int r = 0; r < R; r++) {
    float found = sum_of(sum[r][0] + sum[r][1]);
    for (int64_t rest = k; rest < inputs; rest++)
      found += load_weight(weight[r * inputs + rest]) * x[rest];
    y[r] = found;
  }
}

template <class T>
void dense_of(const DenseProduct& product, const T* weight, int64_t first, int64_t end) {
  constexpr int together = 4;
  for (int64_t n = first; n < end; n += together) {
    const int64_t rows = end - n < together ? end - n : together;
    for (int64_t m = 0; m < product.batch; m++) {
      const float* x = product.x + m * product.inputs;
      float* y = product.y + m * product.outputs + n;
      const T* from = weight + n * product.inputs;
      if (rows == together) {
        dense_rows<together>(product, from, x, y);
      } else {
        for (int64_t r = 0; r < rows; r++)
          dense_rows<1>(product, from + r * product.inputs, x, y + r);
      }
      if (product.bias)
        for (int64_t r = 0; r < rows; r++) y[r] += product.bias[n + r];
    }
  }
}

void dense(const DenseProduct& product, int64_t first, int64_t end) {
  switch (product.storage) {
    case Storage::kFloat32:
      return dense_of(product, static_cast<const float*>(product.weight), first, end);
    case Storage::kFloat16:
      return dense_of(product, static_cast<const Float16*>(product.weight), first, end);
    case Storage::kBFloat16:
      return dense_of(product, static_cast<const BFloat16*>(product.weight), first, end);
  }
}

// Scores of one query, then their weights; returns the sum of these.
float weigh_keys(
    const TokenAttention& attention, const float* query, float slope, float* scores) {
  const int64_t width = attention.width, count = attention.count;
  F largest = Wide::set(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < count; j++) {
    const float* key = attention.keys + j * width;
    F sum = Wide::set(0.0f);
    for (int64_t i = 0; i < width; i += Wide::kWidth)
      sum = Wide::fma(load(query + i), load(key + i), sum);
    scores[j] = sum_of(sum) + slope * static_cast<float>(j);
  }
  const int64_t filled = score_stride(count);
  for (int64_t j = count; j < filled; j++) scores[j] = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < filled; j += Wide::kWidth) {
    const F score = load(scores + j);
    largest = score > largest ? score : largest;
  }
  float lane[Wide::kWidth], top = -std::numeric_limits<float>::infinity();
  store(lane, largest);
  for (int i = 0; i < Wide::kWidth; i++) top = lane[i] > top ? lane[i] : top;
  F total = Wide::set(0.0f);
  const F highest = Wide::set(top), factor = Wide::set(attention.factor);
  for (int64_t j = 0; j < filled; j += Wide::kWidth) {
    const F weight = power_of_two((load(scores + j) - highest) * factor);
    store(scores + j, weight);
    total += weight;
  }
  return sum_of(total);
}

void attend_token(const TokenAttention& attention) {
  constexpr int together = 4;  // vectors of the output that are summed at a time
  const int64_t width = attention.width;
  for (int64_t head = 0; head < attention.sharing; head++) {
    const float slope = attention.slopes == nullptr ? 0.0f : attention.slopes[head];
    const float total =
        weigh_keys(attention, attention.query + head * width, slope, attention.scores);
    const F factor = Wide::set(1.0f / total);
    for (int64_t at = 0; at < width; at += together * Wide::kWidth) {
      const int64_t left = (width - at) / Wide::kWidth;
      const int vectors = left < together ? static_cast<int>(left) : together;
      F sum[together];
      for (int v = 0; v < together; v++) sum[v] = Wide::set(0.0f);
      const float* value = attention.values + at;
      for (int64_t j = 0; j < attention.count; j++, value += width) {
        const F weight = Wide::set(attention.scores[j]);
        if (vectors == together) {
          for (int v = 0; v < together; v++)
            sum[v] = Wide::fma(weight, load(value + v * Wide::kWidth), sum[v]);
        } else {
          for (int v = 0; v < vectors; v++)
            sum[v] = Wide::fma(weight, load(value + v * Wide::kWidth), sum[v]);
        }
      }
      for (int v = 0; v < vectors; v++)
        store(attention.out + head * width + at + v * Wide::kWidth, sum[v] * factor);
    }
  }
}

void norm(const float* x, const float* weight, float epsilon, int64_t count, float* out) {
  F squares = Wide::set(0.0f);
  int64_t k = 0;
  for (; k + Wide::kWidth <= count; k += Wide::kWidth) {
    const F some = load(x + k);
    squares = Wide::fma(some, some, squares);
  }
  float sum = sum_of(squares);
  for (; k < count; k++) sum += x[k] * x[k];
  const float factor = 1.0f / std::sqrt(sum / static_cast<float>(count) + epsilon);
  for (int64_t i = 0; i < count; i++) out[i] = x[i] * factor * weight[i];
}

void layer_norm(
    const float* x, const float* weight, const float* bias, float epsilon, int64_t count,
    float* out) {
  const int64_t whole = count / Wide::kWidth * Wide::kWidth;
  F sums = Wide::set(0.0f), squares = Wide::set(0.0f);
  for (int64_t k = 0; k < whole; k += Wide::kWidth) sums += load(x + k);
  float sum = sum_of(sums);
  for (int64_t k = whole; k < count; k++) sum += x[k];
  const float mean = sum / static_cast<float>(count);
  const F middle = Wide::set(mean);
  for (int64_t k = 0; k < whole; k += Wide::kWidth) {
    const F some = load(x + k) - middle;
    squares = Wide::fma(some, some, squares);
  }
  float square = sum_of(squares);
  for (int64_t k = whole; k < count; k++) square += (x[k] - mean) * (x[k] - mean);
  const float factor = 1.0f / std::sqrt(square / static_cast<float>(count) + epsilon);
  for (int64_t i = 0; i < count; i++) out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

// x times 1 / (1 + e^-t). 2^t is had for t <= 0 alone: below 0 it is e^t / (1 + e^t).
inline F times_sigmoid(F x, F t) {
  const F one = Wide::set(1.0f), zero = Wide::set(0.0f);
  const F power = power_of_two((t > zero ? -t : t) * Wide::set(1.44269504f));
  return x * ((t > zero ? one : power) / (one + power));
}

// out = function(x, y) of whole vectors; those of the end are filled up with zeros.
template <class Function>
inline void each_number(
    const float* x, const float* y, int64_t count, float* out, Function function) {
  float some[Wide::kWidth] = {}, other[Wide::kWidth] = {};
  int64_t k = 0;
  for (; k + Wide::kWidth <= count; k += Wide::kWidth)
    store(out + k, function(load(x + k), load(y + k)));
  const int64_t left = count - k;
  if (left == 0) return;
  for (int64_t i = 0; i < left; i++) {
    some[i] = x[k + i];
    other[i] = y[k + i];
  }
  store(some, function(load(some), load(other)));
  for (int64_t i = 0; i < left; i++) out[k + i] = some[i];
}

void gate(const float* gates, const float* up, int64_t count, float* out) {
  each_number(gates, up, count, out, [](F x, F y) { return times_sigmoid(x, x) * y; });
}

void relu(const float* x, int64_t count, float* out) {
  each_number(x, x, count, out, [](F some, F) {
    return some < Wide::set(0.0f) ? Wide::set(0.0f) : some;  // keeps what is no number
  });
}

// x times the normal distribution function, whose tail is a polynomial of t = 1 / (1 + p |z|) times
// e^(-z^2), z = x / sqrt(2): within 1e-7 before rounding (Abramowitz and Stegun 7.1.26).
void gelu(const float* x, int64_t count, float* out) {
  each_number(x, x, count, out, [](F some, F) {
    const F zero = Wide::set(0.0f), one = Wide::set(1.0f);
    const F z = (some > zero ? some : -some) * Wide::set(0.70710678f);
    const F t = one / (one + Wide::set(0.3275911f) * z);
    F sum = Wide::set(1.061405429f);
    for (const float next : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
      sum = Wide::fma(sum, t, Wide::set(next));
    const F tail = Wide::set(0.5f) * t * sum * power_of_two(z * z * Wide::set(-1.44269504f));
    return some * (some > zero ? one - tail : tail);
  });
}

// (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
void gelu_tanh(const float* x, int64_t count, float* out) {
  each_number(x, x, count, out, [](F some, F) {
    const F cube = some * some * some;
    const F inner = some + Wide::set(0.044715f) * cube;
    return times_sigmoid(some, Wide::set(1.59576912f) * inner);
  });
}

void rotate(
    float* x, const float* cosine, const float* sine, int64_t heads, int64_t width,
    int64_t turned) {
  const int64_t half = turned / 2;
  for (int64_t head = 0; head < heads; head++, x += width) {
    for (int64_t i = 0; i < half; i++) {
      const float low = x[i], high = x[half + i];
      x[i] = low * cosine[i] - high * sine[i];
      x[half + i] = high * cosine[half + i] + low * sine[half + i];
    }
  }
}

void add(float* x, const float* y, int64_t count) {
  for (int64_t i = 0; i < count; i++) x[i] += y[i];
}

void arrange(const float* x, int64_t count, float* out) {
  int64_t k = 0;
  for (; k + kBlock <= count; k += kBlock) {
    for (int lane = 0; lane < kLanes; lane++) {
      out[k + lane] = x[k + 2 * lane];
      out[k + kLanes + lane] = x[k + 2 * lane + 1];
    }
  }
  if (k == count) return;
  for (int lane = 0; lane < kBlock; lane++) {
    const int64_t from = k + (lane < kLanes ? 2 * lane : 2 * (lane - kLanes) + 1);
    out[k + lane] = from < count ? x[from] : 0.0f;
  }
}

StepKernels step_kernels() {
  return {dense, attend_token, norm, layer_norm, gate, relu, gelu, gelu_tanh, rotate, add, arrange};
}

}  // namespace
}  // namespace bitsweep
