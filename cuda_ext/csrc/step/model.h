// A decoder as a decode step sees it: matrices as they are stored, norms, how it knows positions,
// and the cache of keys and values. Every layer adds attention of the normed input to its input, and
// then the feed-forward part of the normed sum; or, in parallel, of the normed input.
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
  Storage storage = Storage::kFloat32;  // of dense
  const void* bias = nullptr;  // dense: float32
  Storage bias_storage = Storage::kFloat32;
  int64_t inputs = 0, outputs = 0;

  int64_t tiles() const { return (outputs + kTileRows - 1) / kTileRows; }
};

// Where a matrix stands in a layer; the head stands behind all layers. One matrix may give query,
// key and value of the first head, then those of the next, instead of three; a gate is there where
// the activation has one.
enum Place : int64_t {
  kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kQueryKeyValue, kPlaces, kHead = kPlaces
};
constexpr const char* kPlaceNames[] = {
    "query", "key", "value", "output", "gate", "up", "down", "query, key and value", "head"};

// What makes the inputs of the last matrix of a layer: SiLU(gate) * up, or a function of up alone.
enum Activation : int64_t { kSiluGate, kRelu, kGelu, kGeluTanh, kActivations };

// A LayerNorm if it has a bias, else an RMSNorm.
struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;
};

struct Layer {
  Matrix matrix[kPlaces];
  Norm norm;                          // [hidden], before attention
  Norm feed_norm;                     // before gate and up
  const float* query_norm = nullptr;  // [width], of every head; null: none
  const float* key_norm = nullptr;
  float* keys;                        // [kv_heads, positions, width]
  float* values;

  // Whether one matrix gives query, key and value.
  bool joined() const { return matrix[kQueryKeyValue].outputs > 0; }
};

struct Sizes {
  int64_t vocabulary, hidden, heads, kv_heads, width, feed, positions, most_tokens;
};

struct Model {
  Sizes sizes;
  Activation activation;
  bool parallel;
  const void* embedding;  // [vocabulary, hidden]
  Storage embedding_storage;
  Norm embedding_norm;    // no weight: none
  Norm norm;              // [hidden], before the head
  // One of three ways to know positions, the others null: rotations [positions, turned] of the first
  // numbers of a head; a row [positions, hidden] that is added to that of a token; slopes [heads] over
  // the scale (ALiBi).
  const float* cosine = nullptr;
  const float* sine = nullptr;
  int64_t turned = 0;
  const float* learned = nullptr;
  std::vector<float> slopes;
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

// Bytes of the activations of `count` tokens, which are there during a run.
int64_t workspace(const Model& model, int64_t count);

// Tokens at positions [position, position + count); logits [vocabulary] of the last one, or null.
Times run(
    Model& model, const Kernels& kernels, const int64_t* tokens, int64_t count, int64_t position,
    float* logits);

}  // namespace bitsweep::step
