// Activations of a decode step.
#pragma once

#include <algorithm>

#include "../cpu/floats.h"
#include "model.h"

namespace bitsweep::step {
namespace {

int64_t lanes_of(int64_t inputs) { return x_stride_of(blocks_for(inputs)); }

// Activations of up to `most_tokens` tokens; "lanes" are in the order that packed products read.
struct Buffers {
  Floats hidden, normed, normed_lanes, query, key, value, joined, mixed, mixed_lanes, sum, gate,
      up, gated, gated_lanes;

  Buffers(const Model& model, int64_t count) : Buffers(model, model.sizes, count) {}

  int64_t bytes() const {
    int64_t sum = 0;
    for (const Floats* each :
         {&hidden, &normed, &normed_lanes, &query, &key, &value, &joined, &mixed, &mixed_lanes,
          &this->sum, &gate, &up, &gated, &gated_lanes})
      sum += each->bytes();
    return sum;
  }

 private:
  static bool any_joined(const Model& model) {
    return std::any_of(
        model.layers.begin(), model.layers.end(), [](const Layer& layer) { return layer.joined(); });
  }

  Buffers(const Model& model, const Sizes& s, int64_t count)
      : hidden(count * s.hidden),
        normed(count * s.hidden),
        normed_lanes(count * lanes_of(s.hidden)),
        query(count * s.heads * s.width),
        key(count * s.kv_heads * s.width),
        value(count * s.kv_heads * s.width),
        joined(any_joined(model) ? count * 3 * s.heads * s.width : 0),
        mixed(count * s.heads * s.width),
        mixed_lanes(count * lanes_of(s.heads * s.width)),
        sum(count * s.hidden),
        gate(model.activation == kSiluGate ? count * s.feed : 0),
        up(count * s.feed),
        gated(count * s.feed),
        gated_lanes(count * lanes_of(s.feed)) {}
};

}  // namespace
}  // namespace bitsweep::step
