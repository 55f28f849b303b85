// bitsweep::gptq_column_loop, GPTQ's inner column loop as one operator: schema and CPU implementation.
#include "column_loop.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/chosen.h"
#include "in_shares.h"

namespace bitsweep {
namespace {

void check_groups(const ColumnLoop& loop, int64_t groups) {
  if (loop.group == nullptr) return;
  for (int64_t j = 0; j < loop.count; j++)
    STD_TORCH_CHECK(
        0 <= loop.group[j] && loop.group[j] < groups, kColumnLoopName, ": group[", j,
        "]=", loop.group[j], ", but scale holds ", groups, " groups; pass 0 to ", groups - 1, ".");
}

std::tuple<Tensor, Tensor> gptq_column_loop(
    const Tensor& weight, const Tensor& upper, const Tensor& scale,
    const std::optional<Tensor>& zero, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& group, int64_t count, int64_t max_code) {
  const auto [loop, codes, errors] =
      plan_column_loop(weight, upper, scale, zero, negative, group, count, max_code);
  check_groups(loop, scale.size(0));
  const Kernels run = chosen_kernels();
  const int64_t slabs = (loop.rows + run.loop_rows - 1) / run.loop_rows;
  const int64_t products = run.loop_rows * count * loop.columns;
  const ColumnLoop& arguments = loop;
  if (count > 0 && slabs > 0)
    in_shares(slabs, worth_a_thread(products), [&](int64_t first, int64_t end) {
      run.column_loop(arguments, first, end);
    });
  return {codes, errors};
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def(
      "gptq_column_loop(Tensor(a!) weight, Tensor upper, Tensor scale, Tensor? zero, Tensor? negative, "
      "Tensor? group, int count, int max_code) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("gptq_column_loop", TORCH_BOX(&bitsweep::gptq_column_loop));
}
