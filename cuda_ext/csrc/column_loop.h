// Checks of bitsweep::gptq_column_loop, the same on every device: errors name the argument and its value.
#pragma once

#include <optional>
#include <vector>

#include "operators.h"
#include "shared/column_loop.h"

namespace bitsweep {

constexpr const char* kColumnLoopName = "gptq_column_loop";

// The arguments as the kernels take them, and the tensors that they fill.
struct PlannedColumnLoop {
  ColumnLoop loop;
  Tensor codes;
  Tensor errors;
};

// Checks the arguments and makes the tensors of codes and errors.
inline PlannedColumnLoop plan_column_loop(
    const Tensor& weight, const Tensor& upper, const Tensor& scale,
    const std::optional<Tensor>& zero, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& group, int64_t count, int64_t max_code) {
  constexpr const char* op = kColumnLoopName;
  const Place place{"weight", device_of(weight)};
  STD_TORCH_CHECK(
      weight.dim() == 2, op, ": weight is ", text_of(sizes_of(weight)),
      "; expected [columns, rows].");
  const int64_t columns = weight.size(0), rows = weight.size(1);
  check(op, "weight", weight, ScalarType::Float, {columns, rows}, place);
  check_strided(op, "upper", upper, ScalarType::Float, {columns, columns}, place);
  STD_TORCH_CHECK(
      columns < 2 || upper.stride(1) == 1, op,
      ": the rows of upper are not contiguous; pass upper.contiguous().");
  STD_TORCH_CHECK(
      0 <= count && count <= columns, op, ": count=", count, " of ", columns,
      " columns; pass at most all.");
  STD_TORCH_CHECK(
      1 <= max_code && max_code <= 255, op, ": max_code=", max_code,
      "; codes are bytes: pass 1 to 255.");
  STD_TORCH_CHECK(
      zero.has_value() != negative.has_value(), op, ": ", zero ? "both" : "neither",
      " of zero (uniform levels) and negative (ternary levels) given; pass exactly one.");
  STD_TORCH_CHECK(
      scale.dim() == 2, op, ": scale is ", text_of(sizes_of(scale)), "; expected [groups, rows].");
  const int64_t groups = scale.size(0);
  STD_TORCH_CHECK(
      count == 0 || groups > 0, op, ": scale holds no group; pass [groups, rows].");
  STD_TORCH_CHECK(
      group || groups <= 1, op, ": scale holds ", groups,
      " groups; pass group, the index of each column's.");
  check(op, "scale", scale, ScalarType::Float, {groups, rows}, place);
  if (zero) check(op, "zero", *zero, ScalarType::Float, {groups, rows}, place);
  if (negative) check(op, "negative", *negative, ScalarType::Float, {groups, rows}, place);
  if (group) check(op, "group", *group, ScalarType::Int, {count}, place);
  const Tensor codes = torch::stable::new_empty(weight, {count, rows}, ScalarType::Byte);
  const Tensor errors = torch::stable::new_empty(weight, {count, rows}, ScalarType::Float);
  ColumnLoop loop{};
  loop.weight = static_cast<float*>(weight.data_ptr());
  loop.upper = static_cast<const float*>(upper.data_ptr());
  loop.upper_stride = upper.stride(0);
  loop.scale = static_cast<const float*>(scale.data_ptr());
  loop.other = static_cast<const float*>((zero ? *zero : *negative).data_ptr());
  loop.group = group ? static_cast<const int32_t*>(group->data_ptr()) : nullptr;
  loop.ternary = negative.has_value();
  loop.max_code = static_cast<float>(max_code);
  loop.columns = columns;
  loop.count = count;
  loop.rows = rows;
  loop.codes = static_cast<uint8_t*>(codes.data_ptr());
  loop.errors = static_cast<float*>(errors.data_ptr());
  return {loop, codes, errors};
}

}  // namespace bitsweep
