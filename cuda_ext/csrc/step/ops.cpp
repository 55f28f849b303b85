// bitsweep::step_*: a decoder is described once, matrix by matrix, and every step is one call.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <map>
#include <memory>

#include "../cpu/chosen.h"
#include "../operators.h"
#include "model.h"

namespace bitsweep::step {
namespace {

constexpr int64_t kWidthStep = 16;  // whole vectors of every instruction set
const bitsweep::Place on_cpu{"the step", "cpu"};

std::mutex guard;
std::map<int64_t, std::shared_ptr<Model>> models;
int64_t last_number = 0;

std::shared_ptr<Model> find(const char* op, int64_t step) {
  const std::lock_guard lock(guard);
  const auto found = models.find(step);
  STD_TORCH_CHECK(
      found != models.end(), op, ": step=", step, " is none that is open; open one first.");
  return found->second;
}

const float* floats(
    const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
    Model& model) {
  check(op, name, tensor, ScalarType::Float, shape, on_cpu);
  model.held.push_back(tensor);
  return static_cast<const float*>(tensor.data_ptr());
}

// A table of rows of any storage.
const void* table(
    const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& shape,
    Storage& storage, Model& model) {
  const ScalarType type = tensor.scalar_type();
  storage = type == ScalarType::BFloat16 ? Storage::kBFloat16
      : type == ScalarType::Half         ? Storage::kFloat16
                                         : Storage::kFloat32;
  check(op, name, tensor, storage == Storage::kFloat32 ? ScalarType::Float : type, shape, on_cpu);
  model.held.push_back(tensor);
  return tensor.data_ptr();
}

// A norm of `width` numbers; with a bias a LayerNorm.
Norm norm_of(
    const char* op, const char* name, const Tensor& weight, const std::optional<Tensor>& bias,
    int64_t width, Model& model) {
  Norm found;
  found.weight = floats(op, name, weight, {width}, model);
  if (bias) found.bias = floats(op, "bias", *bias, {width}, model);
  return found;
}

int64_t step_open(
    const Tensor& embedding, const Tensor& norm, const std::optional<Tensor>& bias, int64_t heads,
    int64_t kv_heads, int64_t width, int64_t positions, int64_t feed, int64_t activation,
    bool parallel, double epsilon, double scale, int64_t most_tokens) {
  constexpr const char* op = "step_open";
  STD_TORCH_CHECK(
      embedding.dim() == 2, op, ": embedding is ", text_of(sizes_of(embedding)),
      "; expected [vocabulary, hidden].");
  STD_TORCH_CHECK(
      kv_heads > 0 && heads > 0 && heads % kv_heads == 0, op, ": heads=", heads,
      " and kv_heads=", kv_heads, "; the second must divide the first.");
  STD_TORCH_CHECK(
      width > 0 && width % kWidthStep == 0, op, ": width=", width,
      " of a head; pass a multiple of ", kWidthStep, ".");
  STD_TORCH_CHECK(
      feed > 0 && most_tokens > 0 && positions > 0, op, ": feed=", feed, ", most_tokens=",
      most_tokens, " and positions=", positions, "; pass at least 1 of each.");
  STD_TORCH_CHECK(
      activation >= 0 && activation < kActivations, op, ": activation=", activation,
      " is none; choose 0 to ", static_cast<int64_t>(kActivations) - 1, ".");
  STD_TORCH_CHECK(
      std::isfinite(scale) && scale > 0 && std::isfinite(epsilon) && epsilon >= 0, op, ": scale=",
      scale, " and epsilon=", epsilon, "; pass finite numbers, the scale above 0.");
  auto model = std::make_shared<Model>();
  model->sizes = {embedding.size(0), embedding.size(1), heads, kv_heads, width, feed, positions,
                  most_tokens};
  model->activation = static_cast<Activation>(activation);
  model->parallel = parallel;
  const Sizes& sizes = model->sizes;
  model->embedding = table(
      op, "embedding", embedding, {sizes.vocabulary, sizes.hidden}, model->embedding_storage,
      *model);
  model->norm = norm_of(op, "norm", norm, bias, sizes.hidden, *model);
  model->epsilon = static_cast<float>(epsilon);
  model->scale = static_cast<float>(scale);
  const std::lock_guard lock(guard);
  models[++last_number] = model;
  return last_number;
}

void step_rotate(int64_t step, const Tensor& cosine, const Tensor& sine) {
  constexpr const char* op = "step_rotate";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  const int64_t turned = cosine.dim() == 2 ? cosine.size(1) : 0, width = model->sizes.width;
  STD_TORCH_CHECK(
      turned > 0 && turned <= width && turned % 2 == 0, op, ": cosine is ",
      text_of(sizes_of(cosine)), "; expected [", model->sizes.positions,
      ", an even number of those of a head, at most ", width, "].");
  const std::vector<int64_t> shape = {model->sizes.positions, turned};
  model->turned = turned;
  model->cosine = floats(op, "cosine", cosine, shape, *model);
  model->sine = floats(op, "sine", sine, shape, *model);
}

void step_learned(int64_t step, const Tensor& rows) {
  constexpr const char* op = "step_learned";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  const Sizes& sizes = model->sizes;
  model->learned = floats(op, "rows", rows, {sizes.positions, sizes.hidden}, *model);
}

void step_slopes(int64_t step, const Tensor& slopes) {
  constexpr const char* op = "step_slopes";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  check(op, "slopes", slopes, ScalarType::Float, {model->sizes.heads}, on_cpu);
  const auto* from = static_cast<const float*>(slopes.data_ptr());
  model->slopes.assign(from, from + model->sizes.heads);
  for (float& slope : model->slopes) slope /= model->scale;
}

void step_embedding_norm(int64_t step, const Tensor& norm, const std::optional<Tensor>& bias) {
  constexpr const char* op = "step_embedding_norm";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  model->embedding_norm = norm_of(op, "norm", norm, bias, model->sizes.hidden, *model);
}

void step_layer(
    int64_t step, const Tensor& norm, const std::optional<Tensor>& bias, const Tensor& feed_norm,
    const std::optional<Tensor>& feed_bias, const std::optional<Tensor>& query_norm,
    const std::optional<Tensor>& key_norm, const Tensor& keys, const Tensor& values) {
  constexpr const char* op = "step_layer";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  const Sizes& sizes = model->sizes;
  const std::vector<int64_t> cache = {1, sizes.kv_heads, sizes.positions, sizes.width};
  Layer layer{};
  layer.norm = norm_of(op, "norm", norm, bias, sizes.hidden, *model);
  layer.feed_norm = norm_of(op, "feed_norm", feed_norm, feed_bias, sizes.hidden, *model);
  if (query_norm) layer.query_norm = floats(op, "query_norm", *query_norm, {sizes.width}, *model);
  if (key_norm) layer.key_norm = floats(op, "key_norm", *key_norm, {sizes.width}, *model);
  layer.keys = const_cast<float*>(floats(op, "keys", keys, cache, *model));
  layer.values = const_cast<float*>(floats(op, "values", values, cache, *model));
  model->layers.push_back(layer);
}

// What a matrix of a place takes and gives.
void check_ends(
    const char* op, const Sizes& sizes, int64_t place, int64_t inputs, int64_t outputs) {
  const int64_t mixed = sizes.heads * sizes.width, shared = sizes.kv_heads * sizes.width;
  const int64_t ends[][2] = {
      {sizes.hidden, mixed},      {sizes.hidden, shared},     {sizes.hidden, shared},
      {mixed, sizes.hidden},      {sizes.hidden, sizes.feed}, {sizes.hidden, sizes.feed},
      {sizes.feed, sizes.hidden}, {sizes.hidden, 3 * mixed},  {sizes.hidden, sizes.vocabulary}};
  STD_TORCH_CHECK(
      inputs == ends[place][0] && outputs == ends[place][1], op, ": the matrix of ",
      kPlaceNames[place], " takes ", inputs, " inputs to ", outputs, " outputs; expected ",
      ends[place][0], " to ", ends[place][1], ".");
  STD_TORCH_CHECK(
      place != kQueryKeyValue || sizes.kv_heads == sizes.heads, op,
      ": one matrix for query, key and value has as many heads of each; kv_heads=", sizes.kv_heads,
      " of heads=", sizes.heads, ".");
}

Matrix& slot(const char* op, Model& model, int64_t layer, int64_t place) {
  STD_TORCH_CHECK(
      place >= 0 && place <= kHead, op, ": place=", place, " is none; choose 0 to ",
      static_cast<int64_t>(kHead), ".");
  if (place == kHead) return model.head;
  STD_TORCH_CHECK(
      layer >= 0 && layer < static_cast<int64_t>(model.layers.size()), op, ": layer=", layer,
      " of ", model.layers.size(), "; add it with step_layer first.");
  return model.layers[layer].matrix[place];
}

void step_packed(
    int64_t step, int64_t layer, int64_t place, const Tensor& tiles, const Tensor& scales,
    const std::optional<Tensor>& zeros, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& bias, int64_t bits, int64_t in_features, int64_t out_features,
    int64_t group_size) {
  constexpr const char* op = "step_packed";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  Matrix& matrix = slot(op, *model, layer, place);
  check_ends(op, model->sizes, place, in_features, out_features);
  const bitsweep::Place& cpu = on_cpu;
  Matrix found{};
  found.packed = true;
  found.weight = weight_of(
      op, tiles, scales, zeros, negative, bits, in_features, out_features, group_size, cpu);
  found.inputs = in_features;
  found.outputs = out_features;
  if (bias) {
    found.bias_storage = check_bias(op, *bias, out_features, cpu);
    found.bias = bias->data_ptr();
  }
  for (const auto& part : {std::optional<Tensor>(tiles), std::optional<Tensor>(scales), zeros,
                           negative, bias})
    if (part) model->held.push_back(*part);
  matrix = found;
}

void step_dense(
    int64_t step, int64_t layer, int64_t place, const Tensor& weight,
    const std::optional<Tensor>& bias) {
  constexpr const char* op = "step_dense";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  Matrix& matrix = slot(op, *model, layer, place);
  STD_TORCH_CHECK(
      weight.dim() == 2, op, ": weight is ", text_of(sizes_of(weight)), "; expected [out, in].");
  check_ends(op, model->sizes, place, weight.size(1), weight.size(0));
  Matrix found{};
  found.inputs = weight.size(1);
  found.outputs = weight.size(0);
  found.dense = table(op, "weight", weight, sizes_of(weight), found.storage, *model);
  if (bias) found.bias = floats(op, "bias", *bias, {found.outputs}, *model);
  matrix = found;
}

// One matrix for query, key and value has as many heads of each.
bool stands_in_for(const Model& model, const Layer& layer, int64_t place) {
  if (place == kQueryKeyValue) return layer.matrix[kQuery].outputs > 0;
  if (place <= kValue) return layer.joined();
  return place == kGate && model.activation != kSiluGate;
}

void check_whole(const char* op, const Model& model) {
  STD_TORCH_CHECK(
      model.head.outputs > 0, op, ": the matrix of head is missing; give it with step_packed or "
      "step_dense.");
  for (size_t l = 0; l < model.layers.size(); l++)
    for (int64_t place = 0; place < kPlaces; place++)
      STD_TORCH_CHECK(
          model.layers[l].matrix[place].outputs > 0 || stands_in_for(model, model.layers[l], place),
          op, ": the matrix of ", kPlaceNames[place],
          " of layer ", l, " is missing; give it with step_packed or step_dense.");
}

void step_run(
    int64_t step, const Tensor& tokens, int64_t position, const std::optional<Tensor>& logits,
    const Tensor& times) {
  constexpr const char* op = "step_run";
  const auto model = find(op, step);
  const std::lock_guard lock(model->busy);
  const Sizes& sizes = model->sizes;
  const bitsweep::Place& cpu = on_cpu;
  const int64_t count = tokens.numel();
  check(op, "tokens", tokens, ScalarType::Long, {1, count}, cpu);
  if (logits) check(op, "logits", *logits, ScalarType::Float, {1, sizes.vocabulary}, cpu);
  check(op, "times", times, ScalarType::Double, {3}, cpu);
  STD_TORCH_CHECK(
      count > 0 && count <= sizes.most_tokens, op, ": ", count, " tokens; pass 1 to ",
      sizes.most_tokens, ".");
  STD_TORCH_CHECK(
      position >= 0 && position + count <= sizes.positions, op, ": position=", position, " and ",
      count, " tokens go past the ", sizes.positions, " positions of the cache.");
  const auto* token = static_cast<const int64_t*>(tokens.data_ptr());
  for (int64_t m = 0; m < count; m++)
    STD_TORCH_CHECK(
        token[m] >= 0 && token[m] < sizes.vocabulary, op, ": token ", token[m],
        " is none of the vocabulary of ", sizes.vocabulary, ".");
  check_whole(op, *model);
  float* scores = logits ? static_cast<float*>(logits->data_ptr()) : nullptr;
  const Times took = run(*model, chosen_kernels(), token, count, position, scores);
  auto* out = static_cast<double*>(times.data_ptr());
  out[0] = took.products;
  out[1] = took.attention;
  out[2] = took.rest;
}

int64_t step_workspace(int64_t step, int64_t tokens) {
  constexpr const char* op = "step_workspace";
  const auto model = find(op, step);
  STD_TORCH_CHECK(
      tokens > 0 && tokens <= model->sizes.most_tokens, op, ": ", tokens, " tokens; pass 1 to ",
      model->sizes.most_tokens, ".");
  return workspace(*model, tokens);
}

void step_close(int64_t step) {
  const std::lock_guard lock(guard);
  models.erase(step);
}

}  // namespace
}  // namespace bitsweep::step

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def(
      "step_open(Tensor embedding, Tensor norm, Tensor? bias, int heads, int kv_heads, int width, "
      "int positions, int feed, int activation, bool parallel, float epsilon, float scale, "
      "int most_tokens) -> int");
  m.def("step_rotate(int step, Tensor cosine, Tensor sine) -> ()");
  m.def("step_learned(int step, Tensor rows) -> ()");
  m.def("step_slopes(int step, Tensor slopes) -> ()");
  m.def("step_embedding_norm(int step, Tensor norm, Tensor? bias) -> ()");
  m.def(
      "step_layer(int step, Tensor norm, Tensor? bias, Tensor feed_norm, Tensor? feed_bias, "
      "Tensor? query_norm, Tensor? key_norm, Tensor keys, Tensor values) -> ()");
  m.def(
      "step_packed(int step, int layer, int place, Tensor tiles, Tensor scales, Tensor? zeros, "
      "Tensor? negative, Tensor? bias, int bits, int in_features, int out_features, "
      "int group_size) -> ()");
  m.def("step_dense(int step, int layer, int place, Tensor weight, Tensor? bias) -> ()");
  m.def(
      "step_run(int step, Tensor tokens, int position, Tensor(a!)? logits, Tensor(b!) times) "
      "-> ()");
  m.def("step_workspace(int step, int tokens) -> int");
  m.def("step_close(int step) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CompositeExplicitAutograd, m) {
  m.impl("step_open", TORCH_BOX(&bitsweep::step::step_open));
  m.impl("step_rotate", TORCH_BOX(&bitsweep::step::step_rotate));
  m.impl("step_learned", TORCH_BOX(&bitsweep::step::step_learned));
  m.impl("step_slopes", TORCH_BOX(&bitsweep::step::step_slopes));
  m.impl("step_embedding_norm", TORCH_BOX(&bitsweep::step::step_embedding_norm));
  m.impl("step_layer", TORCH_BOX(&bitsweep::step::step_layer));
  m.impl("step_packed", TORCH_BOX(&bitsweep::step::step_packed));
  m.impl("step_dense", TORCH_BOX(&bitsweep::step::step_dense));
  m.impl("step_run", TORCH_BOX(&bitsweep::step::step_run));
  m.impl("step_workspace", TORCH_BOX(&bitsweep::step::step_workspace));
  m.impl("step_close", TORCH_BOX(&bitsweep::step::step_close));
}
