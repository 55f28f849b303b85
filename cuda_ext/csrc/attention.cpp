// bitsweep::causal_attention, softmax(scale * Q K^T) V without a look ahead: schema and CPU
// implementation.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "cpu/chosen.h"
#include "in_shares.h"
#include "operators.h"

namespace bitsweep {
namespace {

constexpr const char* kAttentionName = "causal_attention";
// Widths of a head: whole vectors of every instruction set, and a strip that fits the second-level
// cache (two matrices of 64 queries, and weights: 148 KiB at 256).
constexpr int64_t kWidthStep = 16, kLargestWidth = 256;

const float* rows_of(const char* name, const Tensor& tensor, Strides& at) {
  STD_TORCH_CHECK(
      tensor.stride(3) == 1, kAttentionName, ": the last dimension of ", name,
      " is not dense (stride ", tensor.stride(3), "); pass ", name, ".contiguous().");
  at = {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
  return static_cast<const float*>(tensor.data_ptr());
}

void check_shapes(const Tensor& query, const Tensor& key, const Tensor& value) {
  constexpr const char* op = kAttentionName;
  const Place place{"query", device_of(query)};
  STD_TORCH_CHECK(
      query.dim() == 4, op, ": query is ", text_of(sizes_of(query)),
      "; expected [batch, heads, tokens, width].");
  STD_TORCH_CHECK(
      key.dim() == 4, op, ": key is ", text_of(sizes_of(key)),
      "; expected [batch, kv_heads, tokens, width].");
  const int64_t heads = query.size(1), shared = key.size(1), width = query.size(3);
  check_strided(op, "query", query, ScalarType::Float, sizes_of(query), place);
  const std::vector<int64_t> shape = {query.size(0), shared, query.size(2), width};
  check_strided(op, "key", key, ScalarType::Float, shape, place);
  check_strided(op, "value", value, ScalarType::Float, shape, place);
  STD_TORCH_CHECK(
      shared > 0 && heads > 0 && heads % shared == 0, op, ": query has ", heads,
      " heads and key ", shared, "; pass a key whose heads divide those of query.");
  STD_TORCH_CHECK(query.size(2) > 0, op, ": query has no token; pass at least 1.");
  STD_TORCH_CHECK(
      width > 0 && width <= kLargestWidth && width % kWidthStep == 0, op, ": width=", width,
      " of a head; pass a multiple of ", kWidthStep, " up to ", kLargestWidth, ".");
}

Tensor causal_attention(
    const Tensor& query, const Tensor& key, const Tensor& value, double scale) {
  check_shapes(query, key, value);
  STD_TORCH_CHECK(
      std::isfinite(scale) && scale > 0, kAttentionName, ": scale=", scale,
      "; pass a positive, finite number.");
  const int64_t batch = query.size(0), heads = query.size(1), tokens = query.size(2);
  Attention attention{};
  attention.query = rows_of("query", query, attention.query_at);
  attention.key = rows_of("key", key, attention.key_at);
  attention.value = rows_of("value", value, attention.value_at);
  attention.heads = heads;
  attention.sharing = heads / key.size(1);
  attention.tokens = tokens;
  attention.width = query.size(3);
  attention.factor = static_cast<float>(scale * 1.4426950408889634);
  // Heads of a token side by side: what comes next, a product with all of them, reads it so.
  const Tensor out = torch::stable::new_empty(query, {batch, tokens, heads, attention.width});
  attention.out = static_cast<float*>(out.data_ptr());
  attention.out_at = {tokens * heads * attention.width, attention.width, heads * attention.width};
  const Kernels run = chosen_kernels();
  const int64_t strips = (tokens + run.attention_rows - 1) / run.attention_rows;
  const int64_t products = run.attention_rows * tokens * attention.width;
  const Attention& arguments = attention;
  in_shares(
      batch * heads * strips, worth_a_thread(products),
      [&](int64_t first, int64_t end) { run.attention(arguments, first, end); });
  return torch::stable::transpose(out, 1, 2);
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def("causal_attention(Tensor query, Tensor key, Tensor value, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&bitsweep::causal_attention));
}
