// One decode step in one parallel region (stages.h): the products of q, k and v; attention; its
// output; gate, up and what is made of them; down. The short serial part of a stage is rotation, sum,
// norm and the order that packed products read. Items are independent and each has a fixed order of
// sums, so results are the same bits whoever took which.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <initializer_list>
#include <memory>

#include "../cpu/fixed_row.h"
#include "buffers.h"
#include "stages.h"

namespace bitsweep::step {
namespace {

constexpr int64_t kStagesOfLayer = 5, kAttentionStage = 1;

size_t stages_of(const Model& model) { return kStagesOfLayer * model.layers.size() + 1; }

// Activations of `inputs` numbers a token, in both orders, and in fixed-point if it is one token.
struct Rows {
  const float* plain;
  const float* lanes;
  const FixedRow* fixed;
};

class Run {
 public:
  Run(Model& model, const Kernels& kernels, int64_t count, int64_t position, float* logits)
      : model_(model),
        sizes_(model.sizes),
        kernels_(kernels),
        buffers_(model, count),
        threads_(torch::stable::get_num_threads()),
        stages_(stages_of(model), threads_),
        count_(count),
        position_(position),
        logits_(logits) {}

  Times all(const int64_t* tokens) {
    const auto start = Clock::now();
    embed(tokens);
    if (!model_.layers.empty()) norm_rows(model_.layers.front().norm);
    fix_normed(0);
    const auto begun = Clock::now();
    torch::stable::parallel_for(0, threads_, 1, [&](int64_t thread, int64_t) { work(thread); });
    // Whoever ended a stage looked at the clock: a thread that came late knows nothing of it.
    Times times;
    times.rest = nanoseconds(start, begun);
    auto last = begun;
    const int64_t depth = static_cast<int64_t>(model_.layers.size());
    for (int64_t i = 0; i < depth * kStagesOfLayer + (logits_ != nullptr); i++) {
      const bool attention = i < depth * kStagesOfLayer && i % kStagesOfLayer == kAttentionStage;
      (attention ? times.attention : times.products) += nanoseconds(last, stages_.done_at(i));
      times.rest += nanoseconds(stages_.done_at(i), stages_.ready_at(i));
      last = stages_.ready_at(i);
    }
    return times;
  }

 private:
  void embed(const int64_t* tokens) {
    const int64_t hidden = sizes_.hidden;
    for (int64_t m = 0; m < count_; m++) {
      float* out = buffers_.hidden.data() + m * hidden;
      const int64_t at = tokens[m] * hidden;
      for (int64_t i = 0; i < hidden; i++)
        out[i] = load_as_float(model_.embedding, model_.embedding_storage, at + i);
      if (model_.learned != nullptr)
        kernels_.step.add(out, model_.learned + (position_ + m) * hidden, hidden);
      if (model_.embedding_norm.weight != nullptr) norm_row(model_.embedding_norm, out, out);
    }
  }

  void arrange_rows(const Floats& from, int64_t inputs, const Floats& lanes) {
    for (int64_t m = 0; m < count_; m++)
      kernels_.step.arrange(from.data() + m * inputs, inputs, lanes.data() + m * lanes_of(inputs));
  }

  // For the products with one token that come next; nothing reads what was there.
  void fix_row(FixedRow& fixed, const float* lanes, std::initializer_list<const Matrix*> readers) {
    fixed.forget();
    for (const Matrix* matrix : readers)
      if (matrix->packed) fixed.make(kernels_, matrix->weight, lanes);
  }

  void fix_rows(
      FixedRow& fixed, const Floats& lanes, std::initializer_list<const Matrix*> readers) {
    if (count_ == 1) fix_row(fixed, lanes.data(), readers);
  }

  // What reads the norm before layer l, or before the head, which takes the last token alone.
  void fix_normed(int64_t l) {
    if (l < static_cast<int64_t>(model_.layers.size())) {
      const Matrix* matrix = model_.layers[l].matrix;
      fix_rows(
          fixed_normed_, buffers_.normed_lanes,
          {matrix + kQuery, matrix + kKey, matrix + kValue, matrix + kQueryKeyValue});
    } else if (logits_ != nullptr) {
      const int64_t last = (count_ - 1) * lanes_of(sizes_.hidden);
      fix_row(fixed_normed_, buffers_.normed_lanes.data() + last, {&model_.head});
    }
  }

  void norm_row(const Norm& norm, const float* x, float* out) const {
    const StepKernels& step = kernels_.step;
    if (norm.bias == nullptr) step.norm(x, norm.weight, model_.epsilon, sizes_.hidden, out);
    else step.layer_norm(x, norm.weight, norm.bias, model_.epsilon, sizes_.hidden, out);
  }

  void norm_rows(const Norm& norm) {
    const int64_t hidden = sizes_.hidden;
    for (int64_t m = 0; m < count_; m++)
      norm_row(norm, buffers_.hidden.data() + m * hidden, buffers_.normed.data() + m * hidden);
    arrange_rows(buffers_.normed, hidden, buffers_.normed_lanes);
  }

  // Tiles [first, end) of a product of all tokens.
  void multiply(const Matrix& matrix, Rows rows, float* y, int64_t first, int64_t end) const {
    multiply(matrix, rows, y, first, end, 0, count_);
  }

  void multiply(
      const Matrix& matrix, Rows rows, float* y, int64_t first, int64_t end, int64_t token,
      int64_t tokens) const {
    if (matrix.packed) {
      Product product{};
      product.weight = matrix.weight;
      product.x_stride = lanes_of(matrix.inputs);
      product.x = rows.lanes + token * product.x_stride;
      product.batch = tokens;
      if (tokens == 1) product.fixed = rows.fixed->find(kernels_, matrix.weight);
      product.bias = matrix.bias;
      product.bias_storage = matrix.bias_storage;
      product.y = y;
      product.y_storage = Storage::kFloat32;
      kernels_.multiply(product, first, end);
      return;
    }
    DenseProduct product{};
    product.weight = matrix.dense;
    product.storage = matrix.storage;
    product.bias = static_cast<const float*>(matrix.bias);
    product.x = rows.plain + token * matrix.inputs;
    product.y = y;
    product.inputs = matrix.inputs;
    product.outputs = matrix.outputs;
    product.batch = tokens;
    const int64_t last = end * kTileRows;
    kernels_.step.dense(
        product, first * kTileRows, last < matrix.outputs ? last : matrix.outputs);
  }

  void work(int64_t thread) {
    const int64_t depth = static_cast<int64_t>(model_.layers.size());
    for (int64_t l = 0; l < depth; l++) {
      attend(thread, model_.layers[l], l * kStagesOfLayer);
      feed(thread, l, l * kStagesOfLayer + 3);
    }
    if (logits_ != nullptr) score(thread, depth * kStagesOfLayer);
  }

  void attend(int64_t thread, const Layer& layer, int64_t index) {
    const Matrix* matrix = layer.matrix;
    const Rows normed{buffers_.normed.data(), buffers_.normed_lanes.data(), &fixed_normed_};
    const Readers readers = query_key_value(layer);
    stages_.run(
        thread, index, readers.tiles(),
        [&](int64_t first, int64_t end) { multiply_each(readers, normed, first, end); },
        [&] { keep_keys(layer); });
    stages_.run(
        thread, index + kAttentionStage, count_ * sizes_.kv_heads,
        [&](int64_t first, int64_t end) { attend_heads(layer, first, end); },
        [&] {
          arrange_rows(buffers_.mixed, sizes_.heads * sizes_.width, buffers_.mixed_lanes);
          fix_rows(fixed_mixed_, buffers_.mixed_lanes, {matrix + kOutput});
        });
    const Rows mixed{buffers_.mixed.data(), buffers_.mixed_lanes.data(), &fixed_mixed_};
    stages_.run(
        thread, index + 2, matrix[kOutput].tiles(),
        [&](int64_t first, int64_t end) {
          multiply(matrix[kOutput], mixed, buffers_.sum.data(), first, end);
        },
        [&] {
          if (model_.parallel) norm_rows(layer.feed_norm);
          add_sum();
          if (!model_.parallel) norm_rows(layer.feed_norm);
          fix_rows(fixed_normed_, buffers_.normed_lanes, {matrix + kGate, matrix + kUp});
        });
  }

  // Up to three matrices that read the same rows, one after the other, and where they write.
  struct Readers {
    const Matrix* matrix[3];
    float* out[3];
    int count;

    int64_t tiles() const {
      int64_t sum = 0;
      for (int i = 0; i < count; i++) sum += matrix[i]->tiles();
      return sum;
    }
  };

  // Tiles [first, end) of all of them.
  void multiply_each(const Readers& readers, Rows rows, int64_t first, int64_t end) const {
    for (int i = 0; i < readers.count; i++) {
      const int64_t tiles = readers.matrix[i]->tiles();
      const int64_t from = first > 0 ? first : 0, to = end < tiles ? end : tiles;
      if (from < to) multiply(*readers.matrix[i], rows, readers.out[i], from, to);
      first -= tiles;
      end -= tiles;
    }
  }

  Readers query_key_value(const Layer& layer) const {
    const Matrix* matrix = layer.matrix;
    if (layer.joined())
      return {{matrix + kQueryKeyValue}, {buffers_.joined.data()}, 1};
    return {
        {matrix + kQuery, matrix + kKey, matrix + kValue},
        {buffers_.query.data(), buffers_.key.data(), buffers_.value.data()},
        3};
  }

  // The three parts of every head to where the matrices of their own would write them.
  void part_joined() {
    const int64_t width = sizes_.width;
    float* const out[] = {buffers_.query.data(), buffers_.key.data(), buffers_.value.data()};
    for (int64_t i = 0; i < count_ * sizes_.heads; i++)
      for (int64_t part = 0; part < 3; part++)
        std::copy_n(
            buffers_.joined.data() + (3 * i + part) * width, width, out[part] + i * width);
  }

  // Each head of `x` [heads, width] normed, where the model does so.
  void norm_heads(const float* weight, float* x, int64_t heads) const {
    if (weight == nullptr) return;
    for (int64_t head = 0; head < heads; head++, x += sizes_.width)
      kernels_.step.norm(x, weight, model_.epsilon, sizes_.width, x);
  }

  // Queries and keys turned to their positions, where the model does so; keys and values behind those
  // of earlier tokens.
  void keep_keys(const Layer& layer) {
    const int64_t width = sizes_.width, shared = sizes_.kv_heads;
    if (layer.joined()) part_joined();
    for (int64_t m = 0; m < count_; m++) {
      const int64_t at = position_ + m;
      float* query = buffers_.query.data() + m * sizes_.heads * width;
      float* key = buffers_.key.data() + m * shared * width;
      const float* value = buffers_.value.data() + m * shared * width;
      norm_heads(layer.query_norm, query, sizes_.heads);
      norm_heads(layer.key_norm, key, shared);
      if (model_.cosine != nullptr) {
        const int64_t turned = model_.turned;
        const float *cosine = model_.cosine + at * turned, *sine = model_.sine + at * turned;
        kernels_.step.rotate(query, cosine, sine, sizes_.heads, width, turned);
        kernels_.step.rotate(key, cosine, sine, shared, width, turned);
      }
      for (int64_t head = 0; head < shared; head++) {
        const int64_t to = (head * sizes_.positions + at) * width;
        std::copy_n(key + head * width, width, layer.keys + to);
        std::copy_n(value + head * width, width, layer.values + to);
      }
    }
  }

  void attend_heads(const Layer& layer, int64_t first, int64_t end) {
    const int64_t width = sizes_.width, sharing = sizes_.heads / sizes_.kv_heads;
    const Floats scores(score_stride(position_ + count_));
    for (int64_t i = first; i < end; i++) {
      const int64_t m = i / sizes_.kv_heads, head = i % sizes_.kv_heads;
      const int64_t from = (m * sizes_.heads + head * sharing) * width;
      TokenAttention attention{};
      attention.query = buffers_.query.data() + from;
      attention.keys = layer.keys + head * sizes_.positions * width;
      attention.values = layer.values + head * sizes_.positions * width;
      attention.count = position_ + m + 1;
      attention.sharing = sharing;
      attention.width = width;
      attention.factor = model_.scale * 1.44269504f;
      if (!model_.slopes.empty()) attention.slopes = model_.slopes.data() + head * sharing;
      attention.scores = scores.data();
      attention.out = buffers_.mixed.data() + from;
      kernels_.step.attend(attention);
    }
  }

  void feed(int64_t thread, int64_t l, int64_t index) {
    const Matrix* matrix = model_.layers[l].matrix;
    const bool last_layer = l + 1 == static_cast<int64_t>(model_.layers.size());
    const Norm& next_norm = last_layer ? model_.norm : model_.layers[l + 1].norm;
    const Rows normed{buffers_.normed.data(), buffers_.normed_lanes.data(), &fixed_normed_};
    stages_.run(
        thread, index, matrix[kUp].tiles(),
        [&](int64_t first, int64_t end) { feed_tiles(matrix, normed, first, end); },
        [&] {
          arrange_rows(buffers_.gated, sizes_.feed, buffers_.gated_lanes);
          fix_rows(fixed_gated_, buffers_.gated_lanes, {matrix + kDown});
        });
    const Rows gated{buffers_.gated.data(), buffers_.gated_lanes.data(), &fixed_gated_};
    stages_.run(
        thread, index + 1, matrix[kDown].tiles(),
        [&](int64_t first, int64_t end) {
          multiply(matrix[kDown], gated, buffers_.sum.data(), first, end);
        },
        [&] {
          add_sum();
          norm_rows(next_norm);
          fix_normed(l + 1);
        });
  }

  // Tiles [first, end) of what the last matrix of a layer reads.
  void feed_tiles(const Matrix* matrix, Rows normed, int64_t first, int64_t end) const {
    float *gates = buffers_.gate.data(), *up = buffers_.up.data(), *out = buffers_.gated.data();
    if (model_.activation == kSiluGate) multiply(matrix[kGate], normed, gates, first, end);
    multiply(matrix[kUp], normed, up, first, end);
    const int64_t from = first * kTileRows, last = end * kTileRows;
    const int64_t count = (last < sizes_.feed ? last : sizes_.feed) - from;
    for (int64_t m = 0; m < count_; m++) {
      const int64_t at = m * sizes_.feed + from;
      switch (model_.activation) {
        case kRelu: kernels_.step.relu(up + at, count, out + at); break;
        case kGelu: kernels_.step.gelu(up + at, count, out + at); break;
        case kGeluTanh: kernels_.step.gelu_tanh(up + at, count, out + at); break;
        default: kernels_.step.gate(gates + at, up + at, count, out + at);
      }
    }
  }

  void add_sum() {
    kernels_.step.add(buffers_.hidden.data(), buffers_.sum.data(), count_ * sizes_.hidden);
  }

  // Logits of the last token.
  void score(int64_t thread, int64_t index) {
    const Rows normed{buffers_.normed.data(), buffers_.normed_lanes.data(), &fixed_normed_};
    stages_.run(
        thread, index, model_.head.tiles(),
        [&](int64_t first, int64_t end) {
          multiply(model_.head, normed, logits_, first, end, count_ - 1, 1);
        },
        [] {});
  }

  Model& model_;
  const Sizes& sizes_;
  const Kernels& kernels_;
  const Buffers buffers_;
  FixedRow fixed_normed_, fixed_mixed_, fixed_gated_;
  const int64_t threads_;
  Stages stages_;
  const int64_t count_, position_;
  float* const logits_;
};

}  // namespace

int64_t workspace(const Model& model, int64_t count) { return Buffers(model, count).bytes(); }

Times run(
    Model& model, const Kernels& kernels, const int64_t* tokens, int64_t count, int64_t position,
    float* logits) {
  return Run(model, kernels, count, position, logits).all(tokens);
}

}  // namespace bitsweep::step
