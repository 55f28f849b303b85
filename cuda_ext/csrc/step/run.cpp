// One decode step in one parallel region. A stage (the products of q, k and v; attention; ...) is
// cut into items that threads take in shares, and whoever ends the last one does the short serial
// part that follows (rotation, sum, norm) and opens the next stage. Threads wait for work to be
// done, never for each other: one that the system holds back costs nothing but its help, and any
// number of threads, one included, goes through. Items are independent and each has a fixed order of
// sums, so results are the same bits whoever took which.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <initializer_list>
#include <memory>
#include <thread>

#include "../cpu/fixed_row.h"
#include "../cpu/floats.h"
#include "../shares.h"
#include "model.h"

namespace bitsweep::step {
namespace {

using Clock = std::chrono::steady_clock;

double nanoseconds(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::nano>(end - start).count();
}

constexpr int64_t kStagesOfLayer = 5, kAttentionStage = 1;
constexpr int kSpins = 4000;  // looks at the counter before the processor is offered to others

struct alignas(64) Stage {
  std::atomic<int64_t> done{0};
  std::atomic<bool> ready{false};
  Clock::time_point done_at, ready_at;  // before and after its serial part
};

inline void breathe() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

size_t stages_of(const Model& model) { return kStagesOfLayer * model.layers.size() + 1; }

int64_t lanes_of(int64_t inputs) { return x_stride_of(blocks_for(inputs)); }

// Activations of up to `most_tokens` tokens; "lanes" are in the order that packed products read.
struct Buffers {
  Floats hidden, normed, normed_lanes, query, key, value, mixed, mixed_lanes, sum, gate, up,
      gated, gated_lanes;

  explicit Buffers(const Sizes& s, int64_t count)
      : hidden(count * s.hidden),
        normed(count * s.hidden),
        normed_lanes(count * lanes_of(s.hidden)),
        query(count * s.heads * s.width),
        key(count * s.kv_heads * s.width),
        value(count * s.kv_heads * s.width),
        mixed(count * s.heads * s.width),
        mixed_lanes(count * lanes_of(s.heads * s.width)),
        sum(count * s.hidden),
        gate(count * s.feed),
        up(count * s.feed),
        gated(count * s.feed),
        gated_lanes(count * lanes_of(s.feed)) {}
};

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
        buffers_(model.sizes, count),
        threads_(torch::stable::get_num_threads()),
        parts_of_stage_(std::min<int64_t>(threads_, kMostParts)),
        stages_(new Stage[stages_of(model)]),
        parts_(new Part[stages_of(model) * parts_of_stage_]),
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
      (attention ? times.attention : times.products) += nanoseconds(last, stages_[i].done_at);
      times.rest += nanoseconds(stages_[i].done_at, stages_[i].ready_at);
      last = stages_[i].ready_at;
    }
    return times;
  }

 private:
  void embed(const int64_t* tokens) {
    const int64_t hidden = sizes_.hidden;
    for (int64_t m = 0; m < count_; m++) {
      float* out = buffers_.hidden.data() + m * hidden;
      const int64_t at = tokens[m] * hidden;
      const Storage storage = model_.bfloat16 ? Storage::kBFloat16 : Storage::kFloat32;
      for (int64_t i = 0; i < hidden; i++)
        out[i] = load_as_float(model_.embedding, storage, at + i);
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
          {matrix + kQuery, matrix + kKey, matrix + kValue});
    } else if (logits_ != nullptr) {
      const int64_t last = (count_ - 1) * lanes_of(sizes_.hidden);
      fix_row(fixed_normed_, buffers_.normed_lanes.data() + last, {&model_.head});
    }
  }

  void norm_rows(const float* weight) {
    const int64_t hidden = sizes_.hidden;
    for (int64_t m = 0; m < count_; m++)
      kernels_.step.norm(
          buffers_.hidden.data() + m * hidden, weight, model_.epsilon, hidden,
          buffers_.normed.data() + m * hidden);
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
    product.bfloat16 = matrix.bfloat16;
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

  // Items [0, items) by whoever comes, `last` by whoever ends them.
  template <class Body, class Last>
  void stage(int64_t thread, int64_t index, int64_t items, Body body, Last last) {
    Stage& stage = stages_[index];
    Part* parts = parts_.get() + index * parts_of_stage_;
    int64_t mine = 0;
    while (const Share share = next_share(parts, parts_of_stage_, items, 1, thread)) {
      body(share.first, share.end);
      mine += share.end - share.first;
    }
    if (mine > 0 && stage.done.fetch_add(mine, std::memory_order_acq_rel) + mine == items) {
      stage.done_at = Clock::now();
      last();
      stage.ready_at = Clock::now();
      stage.ready.store(true, std::memory_order_release);
    }
    for (int spins = 0; !stage.ready.load(std::memory_order_acquire); spins++) {
      if (spins < kSpins) breathe();
      else std::this_thread::yield();
    }
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
    float* const out[] = {buffers_.query.data(), buffers_.key.data(), buffers_.value.data()};
    // Tiles of q, k and v one after the other.
    const int64_t ends[] = {
        matrix[kQuery].tiles(), matrix[kQuery].tiles() + matrix[kKey].tiles(),
        matrix[kQuery].tiles() + matrix[kKey].tiles() + matrix[kValue].tiles()};
    stage(
        thread, index, ends[2],
        [&](int64_t first, int64_t end) {
          for (int64_t i = 0, begin = 0; i < 3; begin = ends[i++]) {
            const int64_t from = first > begin ? first : begin, to = end < ends[i] ? end : ends[i];
            if (from < to) multiply(matrix[kQuery + i], normed, out[i], from - begin, to - begin);
          }
        },
        [&] { keep_keys(layer); });
    stage(
        thread, index + kAttentionStage, count_ * sizes_.kv_heads,
        [&](int64_t first, int64_t end) { attend_heads(layer, first, end); },
        [&] {
          arrange_rows(buffers_.mixed, sizes_.heads * sizes_.width, buffers_.mixed_lanes);
          fix_rows(fixed_mixed_, buffers_.mixed_lanes, {matrix + kOutput});
        });
    const Rows mixed{buffers_.mixed.data(), buffers_.mixed_lanes.data(), &fixed_mixed_};
    stage(
        thread, index + 2, matrix[kOutput].tiles(),
        [&](int64_t first, int64_t end) {
          multiply(matrix[kOutput], mixed, buffers_.sum.data(), first, end);
        },
        [&] {
          add_and_norm(layer.feed_norm);
          fix_rows(fixed_normed_, buffers_.normed_lanes, {matrix + kGate, matrix + kUp});
        });
  }

  // Queries and keys turned to their positions; keys and values behind those of earlier tokens.
  void keep_keys(const Layer& layer) {
    const int64_t width = sizes_.width, shared = sizes_.kv_heads;
    for (int64_t m = 0; m < count_; m++) {
      const int64_t at = position_ + m;
      const float *cosine = model_.cosine + at * width, *sine = model_.sine + at * width;
      float* key = buffers_.key.data() + m * shared * width;
      const float* value = buffers_.value.data() + m * shared * width;
      kernels_.step.rotate(
          buffers_.query.data() + m * sizes_.heads * width, cosine, sine, sizes_.heads, width);
      kernels_.step.rotate(key, cosine, sine, shared, width);
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
      attention.scores = scores.data();
      attention.out = buffers_.mixed.data() + from;
      kernels_.step.attend(attention);
    }
  }

  void feed(int64_t thread, int64_t l, int64_t index) {
    const Matrix* matrix = model_.layers[l].matrix;
    const bool last_layer = l + 1 == static_cast<int64_t>(model_.layers.size());
    const float* next_norm = last_layer ? model_.norm : model_.layers[l + 1].norm;
    const Rows normed{buffers_.normed.data(), buffers_.normed_lanes.data(), &fixed_normed_};
    float *gates = buffers_.gate.data(), *up = buffers_.up.data(), *out = buffers_.gated.data();
    stage(
        thread, index, matrix[kGate].tiles(),
        [&](int64_t first, int64_t end) {
          multiply(matrix[kGate], normed, gates, first, end);
          multiply(matrix[kUp], normed, up, first, end);
          const int64_t from = first * kTileRows, last = end * kTileRows;
          const int64_t to = last < sizes_.feed ? last : sizes_.feed;
          for (int64_t m = 0; m < count_; m++) {
            const int64_t at = m * sizes_.feed + from;
            kernels_.step.gate(gates + at, up + at, to - from, out + at);
          }
        },
        [&] {
          arrange_rows(buffers_.gated, sizes_.feed, buffers_.gated_lanes);
          fix_rows(fixed_gated_, buffers_.gated_lanes, {matrix + kDown});
        });
    const Rows gated{buffers_.gated.data(), buffers_.gated_lanes.data(), &fixed_gated_};
    stage(
        thread, index + 1, matrix[kDown].tiles(),
        [&](int64_t first, int64_t end) {
          multiply(matrix[kDown], gated, buffers_.sum.data(), first, end);
        },
        [&] {
          add_and_norm(next_norm);
          fix_normed(l + 1);
        });
  }

  void add_and_norm(const float* weight) {
    kernels_.step.add(buffers_.hidden.data(), buffers_.sum.data(), count_ * sizes_.hidden);
    norm_rows(weight);
  }

  // Logits of the last token.
  void score(int64_t thread, int64_t index) {
    const Rows normed{buffers_.normed.data(), buffers_.normed_lanes.data(), &fixed_normed_};
    stage(
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
  const int64_t threads_, parts_of_stage_;
  const std::unique_ptr<Stage[]> stages_;
  const std::unique_ptr<Part[]> parts_;  // of every stage
  const int64_t count_, position_;
  float* const logits_;
};

}  // namespace

Times run(
    Model& model, const Kernels& kernels, const int64_t* tokens, int64_t count, int64_t position,
    float* logits) {
  return Run(model, kernels, count, position, logits).all(tokens);
}

}  // namespace bitsweep::step
