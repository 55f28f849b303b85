// A decoder of the Llama family as a decode step sees it: matrices as they are stored, norms,
// rotations, and the cache of keys and values.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <mutex>
#include <vector>

#include "../cpu/kernels.h"

namespace bitsweep::step {

using torch::stable::Tensor;

// A weight [outputs, inputs]: packed, or dense as it is.
struct Matrix {
  bool packed = false;
  Weight weight{};
  const void* dense = nullptr;
  bool bfloat16 = false;
  const void* bias = nullptr;  // dense: float32
  Storage bias_storage = Storage::kFloat32;
  int64_t inputs = 0, outputs = 0;

  int64_t tiles() const { return (outputs + kTileRows - 1) / kTileRows; }
};

// Where a matrix stands in a layer; the head stands behind all layers.
enum Place : int64_t { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kPlaces, kHead = kPlaces };
constexpr const char* kPlaceNames[] = {
    "query", "key", "value", "output", "gate", "up", "down", "head"};

struct Layer {
  Matrix matrix[kPlaces];
  const float* norm;       // [hidden], before attention
  const float* feed_norm;  // before gate and up
  float* keys;             // [kv_heads, positions, width]
  float* values;
};

struct Sizes {
  int64_t vocabulary, hidden, heads, kv_heads, width, feed, positions, most_tokens;
};

struct Model {
  Sizes sizes;
  const void* embedding;  // [vocabulary, hidden]
  bool bfloat16;
  const float* norm;    // [hidden], before the head
  const float* cosine;  // [positions, width]
  const float* sine;
  float epsilon, scale;
  std::vector<Layer> layers;
  Matrix head;
  std::vector<Tensor> held;  // everything above points into these
  std::mutex busy;           // one step at a time
};

// What a step took, nanoseconds: products of matrices, attention, and everything between them.
struct Times {
  double products = 0, attention = 0, rest = 0;
};

// Tokens at positions [position, position + count); logits [vocabulary] of the last one, or null.
Times run(
    Model& model, const Kernels& kernels, const int64_t* tokens, int64_t count, int64_t position,
    float* logits);

}  // namespace bitsweep::step
