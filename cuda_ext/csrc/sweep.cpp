// bitsweep::gptq_sweep, GPTQ's inner column loop as one operator: schema and CPU implementation.
#include "sweep.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/chosen.h"

namespace bitsweep {
namespace {

void check_groups(const Sweep& sweep, int64_t groups) {
  if (sweep.group == nullptr) return;
  for (int64_t j = 0; j < sweep.count; j++)
    STD_TORCH_CHECK(
        0 <= sweep.group[j] && sweep.group[j] < groups, kSweepName, ": group[", j,
        "]=", sweep.group[j], ", but scale holds ", groups, " groups; pass 0 to ", groups - 1, ".");
}

std::tuple<Tensor, Tensor> gptq_sweep(
    const Tensor& weight, const Tensor& upper, const Tensor& scale,
    const std::optional<Tensor>& zero, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& group, int64_t count, int64_t max_code) {
  const auto [sweep, codes, errors] =
      plan_sweep(weight, upper, scale, zero, negative, group, count, max_code);
  check_groups(sweep, scale.size(0));
  const Kernels run = chosen_kernels();
  const int64_t slabs = (sweep.rows + run.sweep_rows - 1) / run.sweep_rows;
  // A share of work that is worth a thread: about 64 thousand products.
  const int64_t products = run.sweep_rows * count * sweep.columns + 1;
  const int64_t together = products >= 65536 ? 1 : 65536 / products;
  const Sweep& arguments = sweep;
  if (count > 0 && slabs > 0)
    torch::stable::parallel_for(0, slabs, together, [&](int64_t first, int64_t end) {
      run.sweep(arguments, first, end);
    });
  return {codes, errors};
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def(
      "gptq_sweep(Tensor(a!) weight, Tensor upper, Tensor scale, Tensor? zero, Tensor? negative, "
      "Tensor? group, int count, int max_code) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("gptq_sweep", TORCH_BOX(&bitsweep::gptq_sweep));
}
