// Checks of bitsweep::gptq_sweep, the same on every device: errors name the argument and its value.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "shared/sweep.h"

namespace bitsweep {

inline void check_sweep_argument(
    const char* name, const torch::stable::Tensor& tensor, const torch::stable::Tensor& weight,
    torch::headeronly::ScalarType type, const char* type_name,
    const std::vector<int64_t>& shape, bool contiguous = true) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string found = "[", expected = "[";
  for (int64_t i = 0; i < tensor.dim(); i++)
    found += (i ? ", " : "") + std::to_string(tensor.size(i));
  for (size_t i = 0; i < shape.size(); i++) {
    same = same && tensor.size(static_cast<int64_t>(i)) == shape[i];
    expected += (i ? ", " : "") + std::to_string(shape[i]);
  }
  STD_TORCH_CHECK(
      tensor.is_cpu() == weight.is_cpu() &&
          (weight.is_cpu() || tensor.get_device_index() == weight.get_device_index()),
      "gptq_sweep: ", name, " and weight are on different devices; move them to one.");
  STD_TORCH_CHECK(
      tensor.scalar_type() == type, "gptq_sweep: ", name, " is not ", type_name, "; convert it.");
  STD_TORCH_CHECK(
      same, "gptq_sweep: ", name, " is ", found, "]; expected ", expected,
      "] for this weight, count and grids.");
  STD_TORCH_CHECK(
      !contiguous || tensor.is_contiguous(), "gptq_sweep: ", name,
      " is not contiguous; pass a contiguous tensor.");
}

// The arguments as the kernels take them, checked, and the tensors of codes and errors.
inline std::pair<Sweep, std::pair<torch::stable::Tensor, torch::stable::Tensor>> plan_sweep(
    const torch::stable::Tensor& weight, const torch::stable::Tensor& upper,
    const torch::stable::Tensor& scale, const std::optional<torch::stable::Tensor>& zero,
    const std::optional<torch::stable::Tensor>& negative,
    const std::optional<torch::stable::Tensor>& group, int64_t count, int64_t max_code) {
  using torch::headeronly::ScalarType;
  constexpr auto kFloat = ScalarType::Float;
  STD_TORCH_CHECK(
      weight.dim() == 2, "gptq_sweep: weight has ", weight.dim(),
      " dimensions; expected [columns, rows].");
  const int64_t columns = weight.size(0), rows = weight.size(1);
  check_sweep_argument("weight", weight, weight, kFloat, "float32", {columns, rows});
  check_sweep_argument("upper", upper, weight, kFloat, "float32", {columns, columns}, false);
  STD_TORCH_CHECK(
      columns < 2 || upper.stride(1) == 1,
      "gptq_sweep: the rows of upper are not contiguous; pass upper.contiguous().");
  STD_TORCH_CHECK(
      0 <= count && count <= columns, "gptq_sweep: count=", count, " of ", columns,
      " columns; pass at most all.");
  STD_TORCH_CHECK(
      1 <= max_code && max_code <= 255, "gptq_sweep: max_code=", max_code,
      "; codes are bytes: pass 1 to 255.");
  STD_TORCH_CHECK(
      zero.has_value() != negative.has_value(), "gptq_sweep: ", zero ? "both" : "neither",
      " of zero (uniform levels) and negative (ternary levels) given; pass exactly one.");
  STD_TORCH_CHECK(
      scale.dim() == 2, "gptq_sweep: scale has ", scale.dim(),
      " dimensions; expected [groups, rows].");
  const std::vector<int64_t> grid = {scale.size(0), rows};
  STD_TORCH_CHECK(
      count == 0 || grid[0] > 0, "gptq_sweep: scale holds no group; pass [groups, rows].");
  STD_TORCH_CHECK(
      group || grid[0] <= 1, "gptq_sweep: scale holds ", grid[0],
      " groups; pass group, the index of each column's.");
  check_sweep_argument("scale", scale, weight, kFloat, "float32", grid);
  if (zero) check_sweep_argument("zero", *zero, weight, kFloat, "float32", grid);
  if (negative) check_sweep_argument("negative", *negative, weight, kFloat, "float32", grid);
  if (group) check_sweep_argument("group", *group, weight, ScalarType::Int, "int32", {count});
  auto codes = torch::stable::new_empty(weight, {count, rows}, ScalarType::Byte);
  auto errors = torch::stable::new_empty(weight, {count, rows}, kFloat);
  Sweep sweep{};
  sweep.weight = static_cast<float*>(weight.data_ptr());
  sweep.upper = static_cast<const float*>(upper.data_ptr());
  sweep.upper_stride = upper.stride(0);
  sweep.scale = static_cast<const float*>(scale.data_ptr());
  sweep.other = static_cast<const float*>((zero ? *zero : *negative).data_ptr());
  sweep.group = group ? static_cast<const int32_t*>(group->data_ptr()) : nullptr;
  sweep.ternary = negative.has_value();
  sweep.max_code = static_cast<float>(max_code);
  sweep.columns = columns;
  sweep.count = count;
  sweep.rows = rows;
  sweep.codes = static_cast<uint8_t*>(codes.data_ptr());
  sweep.errors = static_cast<float*>(errors.data_ptr());
  return {sweep, {codes, errors}};
}

}  // namespace bitsweep
