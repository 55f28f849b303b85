// bitsweep::add_gram and add_drift, X^T X (its upper triangle) and (Y - X)^T X added to a sum:
// schemas and CPU implementation.
#include <torch/csrc/stable/library.h>

#include "cpu/chosen.h"
#include "in_shares.h"
#include "operators.h"

namespace bitsweep {
namespace {

void check_rows(
    const char* op, const char* name, const Tensor& rows, const std::vector<int64_t>& shape,
    const Place& place) {
  check_strided(op, name, rows, ScalarType::Float, shape, place);
  STD_TORCH_CHECK(
      shape[1] < 2 || rows.numel() == 0 || rows.stride(1) == 1, op, ": the last dimension of ",
      name, " is not dense (stride ", rows.stride(1), "); pass ", name, ".contiguous().");
}

// The sum of one of the operators; a reference only of add_drift.
void add(
    const char* op, const Tensor& total, const Tensor& rows, const Tensor* reference, bool upper) {
  const Place place{"total", device_of(total)};
  STD_TORCH_CHECK(
      rows.dim() == 2, op, ": rows is ", text_of(sizes_of(rows)), "; expected [tokens, inputs].");
  const int64_t tokens = rows.size(0), inputs = rows.size(1);
  check(op, "total", total, ScalarType::Float, {inputs, inputs}, place);
  check_rows(op, "rows", rows, {tokens, inputs}, place);
  if (reference != nullptr) check_rows(op, "reference", *reference, {tokens, inputs}, place);
  if (tokens == 0 || inputs == 0) return;
  const GramKernels run = chosen_kernels().gram;
  const int64_t panels = (inputs + run.width - 1) / run.width;
  const Tensor copy = torch::stable::new_empty(
      rows, {reference == nullptr ? panels : 2 * panels, tokens, run.width});
  Gram gram{};
  gram.rows = static_cast<const float*>(rows.data_ptr());
  gram.stride = rows.stride(0);
  gram.tokens = tokens;
  gram.inputs = inputs;
  gram.panels = static_cast<float*>(copy.data_ptr());
  gram.left = gram.panels;
  if (reference != nullptr) {
    gram.reference = static_cast<const float*>(reference->data_ptr());
    gram.reference_stride = reference->stride(0);
    gram.left = gram.panels + panels * tokens * run.width;
  }
  gram.total = static_cast<float*>(total.data_ptr());
  gram.total_stride = inputs;
  gram.whole = !upper;
  const Gram& arguments = gram;
  in_shares(
      panels, worth_a_thread(run.width * tokens),
      [&](int64_t first, int64_t end) { run.panels(arguments, first, end); });
  const int64_t across = run.squares_across(inputs);
  in_shares(
      upper ? across * (across + 1) / 2 : across * across, 1,
      [&](int64_t first, int64_t end) { run.squares(arguments, first, end); });
}

void add_gram(const Tensor& total, const Tensor& rows) {
  add("add_gram", total, rows, nullptr, true);
}

void add_drift(const Tensor& total, const Tensor& rows, const Tensor& reference, bool upper) {
  add("add_drift", total, rows, &reference, upper);
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def("add_gram(Tensor(a!) total, Tensor rows) -> ()");
  m.def("add_drift(Tensor(a!) total, Tensor rows, Tensor reference, bool upper) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("add_gram", TORCH_BOX(&bitsweep::add_gram));
  m.impl("add_drift", TORCH_BOX(&bitsweep::add_drift));
}
