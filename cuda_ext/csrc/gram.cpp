// bitsweep::add_gram, the upper triangle of X^T X added to a sum: schema and CPU implementation.
#include <torch/csrc/stable/library.h>

#include "cpu/chosen.h"
#include "operators.h"

namespace bitsweep {
namespace {

constexpr const char* kGramName = "add_gram";

void add_gram(const Tensor& total, const Tensor& rows) {
  const Place place{"total", device_of(total)};
  STD_TORCH_CHECK(
      rows.dim() == 2, kGramName, ": rows is ", text_of(sizes_of(rows)),
      "; expected [tokens, inputs].");
  const int64_t tokens = rows.size(0), inputs = rows.size(1);
  check(kGramName, "total", total, ScalarType::Float, {inputs, inputs}, place);
  check_strided(kGramName, "rows", rows, ScalarType::Float, {tokens, inputs}, place);
  STD_TORCH_CHECK(
      inputs < 2 || rows.numel() == 0 || rows.stride(1) == 1, kGramName, ": the last dimension of rows is not dense (stride ",
      rows.stride(1), "); pass rows.contiguous().");
  if (tokens == 0 || inputs == 0) return;
  const GramKernels run = chosen_kernels().gram;
  const int64_t panels = (inputs + run.width - 1) / run.width;
  const Tensor copy = torch::stable::new_empty(rows, {panels, tokens, run.width});
  Gram gram{};
  gram.rows = static_cast<const float*>(rows.data_ptr());
  gram.stride = rows.stride(0);
  gram.tokens = tokens;
  gram.inputs = inputs;
  gram.panels = static_cast<float*>(copy.data_ptr());
  gram.total = static_cast<float*>(total.data_ptr());
  gram.total_stride = inputs;
  const Gram& arguments = gram;
  // A share of work that is worth a thread: about 64 thousand numbers copied, or products.
  const int64_t copied = run.width * tokens;
  torch::stable::parallel_for(
      0, panels, copied >= 65536 ? 1 : 65536 / copied,
      [&](int64_t first, int64_t end) { run.panels(arguments, first, end); });
  const int64_t across = run.squares_across(inputs);
  torch::stable::parallel_for(
      0, across * (across + 1) / 2, 1,
      [&](int64_t first, int64_t end) { run.squares(arguments, first, end); });
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def("add_gram(Tensor(a!) total, Tensor rows) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("add_gram", TORCH_BOX(&bitsweep::add_gram));
}
