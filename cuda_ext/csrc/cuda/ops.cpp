// The CUDA implementations of the operators whose schemas ../ops.cpp defines, on torch's current
// stream of the tensors' device.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../operators.h"
#include "current.h"
#include "kernels.h"

namespace bitsweep {
namespace {

// Rows of x that are multiplied from the codes; more are multiplied by torch, after dequantizing.
// To be measured: kMaxBatch is what the kernel takes, not yet where torch's product gets faster.
// float32 has no packed kernel: 0 rows.
constexpr int64_t packed_rows(Storage storage) {
  return storage == Storage::kFloat32 ? 0 : cuda::kMaxBatch;
}

Tensor dequantize_into(
    const char* op, const Weight& weight, const Tensor& like, ScalarType type, const Here& here) {
  const Storage storage = storage_of(op, "dtype", type);
  const Tensor out = torch::stable::new_empty(like, {weight.outputs, weight.inputs}, type);
  checked(op, cuda::dequantize(weight, out.data_ptr(), storage, here.stream()));
  return out;
}

Tensor packed_linear(
    const Tensor& x, const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, const std::optional<Tensor>& bias, int64_t bits,
    int64_t out_features, int64_t group_size) {
  constexpr const char* op = "packed_linear";
  const LinearCall call =
      linear_call(x, tiles, scales, zeros, negative, bias, bits, out_features, group_size);
  const Weight& weight = call.weight;
  const int64_t batch = call.batch;
  const Here here(op, x);
  if (batch > packed_rows(call.storage))
    return torch_linear(x, dequantize_into(op, weight, tiles, x.scalar_type(), here), bias);

  const Tensor y = torch::stable::new_empty(x, output_shape(x, out_features));
  if (batch == 0) return y;
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor workspace = torch::stable::new_empty(
      x, {cuda::workspace_bytes(weight, batch)}, ScalarType::Byte);
  cuda::Product product{};
  product.weight = weight;
  product.x = rows.data_ptr();
  product.storage = call.storage;
  product.batch = batch;
  product.bias = call.bias;
  product.bias_storage = call.bias_storage;
  product.y = y.data_ptr();
  product.workspace = workspace.data_ptr();
  checked(op, cuda::linear(product, here.stream()));
  return y;
}

Tensor packed_dequantize(
    const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, int64_t bits, int64_t in_features,
    int64_t out_features, int64_t group_size, ScalarType dtype) {
  constexpr const char* op = "packed_dequantize";
  const Weight weight = weight_of(
      op, tiles, scales, zeros, negative, bits, in_features, out_features, group_size,
      {"tiles", device_of(tiles)});
  return dequantize_into(op, weight, tiles, dtype, Here(op, tiles));
}

Tensor repack(const Tensor& qweight, int64_t bits, int64_t in_features) {
  constexpr const char* op = "repack";
  const Tensor tiles =
      torch::stable::new_empty(qweight, tiles_shape(qweight, bits, in_features));
  if (tiles.numel() == 0) return tiles;
  const Here here(op, qweight);
  checked(
      op, cuda::repack(
              static_cast<const uint32_t*>(qweight.data_ptr()), static_cast<int>(bits),
              in_features, qweight.size(1), static_cast<uint32_t*>(tiles.data_ptr()),
              here.stream()));
  return tiles;
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CUDA, m) {
  m.impl("packed_linear", TORCH_BOX(&bitsweep::packed_linear));
  m.impl("packed_dequantize", TORCH_BOX(&bitsweep::packed_dequantize));
  m.impl("repack", TORCH_BOX(&bitsweep::repack));
}
