// What a decode step does between its packed products, for every instruction set.
#pragma once

#include <cstdint>

#include "../shared/dequantize.h"

namespace bitsweep {

// y [batch, outputs] = x [batch, inputs] times rows that are stored as they are, plus bias.
struct DenseProduct {
  const void* weight;  // [outputs, inputs]: float32, or halves that stand for the same numbers
  Storage storage;
  const float* bias;  // null: none
  const float* x;
  float* y;
  int64_t inputs, outputs, batch;
};

// softmax(scale * query key^T) value of one token, for the heads that share one of key and value.
struct TokenAttention {
  const float* query;  // [sharing, width]
  const float* keys;   // [positions, width]
  const float* values;
  int64_t count;       // positions that are seen
  int64_t sharing, width;
  float factor;        // scale * log2(e): weights are powers of two
  // What a position adds to the scores of each head, over the scale: position * slope (ALiBi, Press
  // et al., arXiv 2108.12409); null: nothing.
  const float* slopes;
  float* scores;       // scratch of score_stride(count) floats
  float* out;          // [sharing, width]
};

// A row of scores filled up to whole vectors of every instruction set.
constexpr int64_t score_stride(int64_t count) { return (count + 15) / 16 * 16; }

struct StepKernels {
  void (*dense)(const DenseProduct&, int64_t first_row, int64_t end_row);
  void (*attend)(const TokenAttention&);
  // out = x / sqrt(mean(x^2) + epsilon) * weight.
  void (*norm)(const float* x, const float* weight, float epsilon, int64_t count, float* out);
  // out = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias.
  void (*layer_norm)(
      const float* x, const float* weight, const float* bias, float epsilon, int64_t count,
      float* out);
  // out = gate / (1 + e^-gate) * up.
  void (*gate)(const float* gate, const float* up, int64_t count, float* out);
  // out = max(x, 0).
  void (*relu)(const float* x, int64_t count, float* out);
  // out = GELU(x) (Hendrycks and Gimpel, arXiv 1606.08415), and by its tanh.
  void (*gelu)(const float* x, int64_t count, float* out);
  void (*gelu_tanh)(const float* x, int64_t count, float* out);
  // The first `turned` numbers of each head of x [heads, width] turned by angles given as cosine and
  // sine [turned], halves as pairs.
  void (*rotate)(
      float* x, const float* cosine, const float* sine, int64_t heads, int64_t width,
      int64_t turned);
  // x += y.
  void (*add)(float* x, const float* y, int64_t count);
  // Floats of a row in the order of the lanes (Product::x), zeros behind them to a whole block.
  void (*arrange)(const float* x, int64_t count, float* out);
};

}  // namespace bitsweep
