// What the operators of every device share: checks that name the argument and its value, and the
// product by torch itself.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "shared/weight.h"

namespace bitsweep {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Widest load of any kernel: buffers of a weight begin at a multiple of it.
constexpr uintptr_t kAlignment = 16;

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Double: return "float64";
    case ScalarType::Int: return "int32";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Long: return "int64";
    default: return "another type";
  }
}

inline std::string text_of(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); i++) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < tensor.dim(); i++) sizes.push_back(tensor.size(i));
  return sizes;
}

inline std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

inline Storage storage_of(const char* op, const char* name, ScalarType type) {
  if (type == ScalarType::Float) return Storage::kFloat32;
  if (type == ScalarType::Half) return Storage::kFloat16;
  STD_TORCH_CHECK(
      type == ScalarType::BFloat16, op, ": ", name, " is ", name_of(type),
      "; pass float32, bfloat16 or float16.");
  return Storage::kBFloat16;
}

inline bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kAlignment == 0;
}

// One device for all: that of the tensor which chose the implementation, called `owner`.
struct Place {
  const char* owner;
  std::string device;
};

// Device, dtype and shape; the elements may lie anywhere.
inline void check_strided(
    const char* op, const char* name, const Tensor& tensor, ScalarType type,
    const std::vector<int64_t>& shape, const Place& place) {
  const std::string device = device_of(tensor);
  STD_TORCH_CHECK(
      device == place.device, op, ": ", name, " is on ", device, " and ", place.owner, " on ",
      place.device, "; move them to one device.");
  STD_TORCH_CHECK(
      tensor.scalar_type() == type, op, ": ", name, " is ", name_of(tensor.scalar_type()),
      "; expected ", name_of(type), ".");
  STD_TORCH_CHECK(
      sizes_of(tensor) == shape, op, ": ", name, " is ", text_of(sizes_of(tensor)), "; expected ",
      text_of(shape), " to fit the other arguments.");
}

inline void check(
    const char* op, const char* name, const Tensor& tensor, ScalarType type,
    const std::vector<int64_t>& shape, const Place& place) {
  check_strided(op, name, tensor, type, shape, place);
  STD_TORCH_CHECK(
      tensor.is_contiguous(), op, ": ", name, " is not contiguous; pass ", name, ".contiguous().");
}

// A buffer of a weight, which kernels read in wide loads.
inline const void* buffer(
    const char* op, const char* name, const Tensor& tensor, ScalarType type,
    const std::vector<int64_t>& shape, const Place& place) {
  check(op, name, tensor, type, shape, place);
  STD_TORCH_CHECK(
      is_aligned(tensor), op, ": ", name, " begins at an address that is not a multiple of ",
      kAlignment, "; pass ", name, ".clone().");
  return tensor.data_ptr();
}

inline void check_bits(const char* op, int64_t bits) {
  STD_TORCH_CHECK(
      bits == 2 || bits == 3 || bits == 4 || bits == 8, op, ": bits=", bits,
      " is not a bit width; choose one of 2, 3, 4, 8.");
}

inline Weight weight_of(
    const char* op, const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, int64_t bits, int64_t inputs, int64_t outputs,
    int64_t group_size, const Place& place) {
  check_bits(op, bits);
  STD_TORCH_CHECK(inputs > 0, op, ": in_features=", inputs, "; pass at least 1.");
  STD_TORCH_CHECK(outputs > 0, op, ": out_features=", outputs, "; pass at least 1.");
  STD_TORCH_CHECK(
      group_size > 0 && (group_size % kBlock == 0 || group_size >= inputs), op, ": group_size=",
      group_size, " is neither a multiple of 32 nor the whole row of ", inputs,
      " inputs; dequantize first (cuda_ext.ops.linear).");
  STD_TORCH_CHECK(
      zeros.has_value() != negative.has_value(), op, ": ",
      zeros.has_value() ? "both" : "neither",
      " of zeros (uniform levels) and negative (ternary levels) given; pass exactly one.");
  STD_TORCH_CHECK(
      bits == 2 || !negative.has_value(), op, ": bits=", bits,
      " with negative; ternary codes take 2 bits.");
  const int64_t groups = (inputs + group_size - 1) / group_size, tiled = tiles_for(outputs);
  const int width = static_cast<int>(bits);
  const std::vector<int64_t> words = {tiled, units_for(width, inputs), kTileRows, kLanes};
  const std::vector<int64_t> grid = {tiled, groups, kTileRows};
  const ScalarType kept = scales.scalar_type();
  Weight weight{};
  weight.tiles =
      static_cast<const uint32_t*>(buffer(op, "tiles", tiles, ScalarType::Int, words, place));
  weight.scale_storage = storage_of(op, "scales", kept);
  weight.scales = buffer(op, "scales", scales, kept, grid, place);
  if (zeros)
    weight.zeros =
        static_cast<const uint8_t*>(buffer(op, "zeros", *zeros, ScalarType::Byte, grid, place));
  if (negative) weight.negative = buffer(op, "negative", *negative, kept, grid, place);
  weight.bits = width;
  weight.inputs = inputs;
  weight.outputs = outputs;
  weight.blocks = blocks_for(inputs);
  weight.units = units_for(width, inputs);
  weight.groups = groups;
  // One group for the whole row: a length that no chunk ends in.
  weight.group_blocks = groups == 1 ? int64_t{1} << 40 : group_size / kBlock;
  return weight;
}

// Storage of a bias [outputs], which may be of any floating-point type that kernels store.
inline Storage check_bias(const char* op, const Tensor& bias, int64_t outputs, const Place& place) {
  const Storage storage = storage_of(op, "bias", bias.scalar_type());
  check(op, "bias", bias, bias.scalar_type(), {outputs}, place);
  return storage;
}

// The checked arguments of packed_linear; x [..., in] is taken as `batch` rows.
struct LinearCall {
  Weight weight;
  Storage storage;  // of x and y
  const void* bias;  // null: none
  Storage bias_storage;
  int64_t batch;
};

inline LinearCall linear_call(
    const Tensor& x, const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, const std::optional<Tensor>& bias, int64_t bits,
    int64_t out_features, int64_t group_size) {
  constexpr const char* op = "packed_linear";
  STD_TORCH_CHECK(x.dim() > 0, op, ": x is a scalar; pass x as [..., in].");
  const Place place{"x", device_of(x)};
  const Storage storage = storage_of(op, "x", x.scalar_type());
  const int64_t inputs = x.size(x.dim() - 1);
  const Weight weight = weight_of(
      op, tiles, scales, zeros, negative, bits, inputs, out_features, group_size, place);
  const Storage bias_storage =
      bias ? check_bias(op, *bias, out_features, place) : Storage::kFloat32;
  return {weight, storage, bias ? bias->data_ptr() : nullptr, bias_storage, x.numel() / inputs};
}

// The shape of the tiles of GPTQ words [words, out].
inline std::vector<int64_t> tiles_shape(
    const Tensor& qweight, int64_t bits, int64_t in_features) {
  constexpr const char* op = "repack";
  check_bits(op, bits);
  STD_TORCH_CHECK(in_features > 0, op, ": in_features=", in_features, "; pass at least 1.");
  STD_TORCH_CHECK(
      qweight.dim() == 2, op, ": qweight is ", text_of(sizes_of(qweight)),
      "; expected [words, out].");
  const int64_t outputs = qweight.size(1);
  check(
      op, "qweight", qweight, ScalarType::Int, {(in_features * bits + 31) / 32, outputs},
      {"qweight", device_of(qweight)});
  return {tiles_for(outputs), units_for(static_cast<int>(bits), in_features), kTileRows, kLanes};
}

// The shape of y for x [..., in].
inline std::vector<int64_t> output_shape(const Tensor& x, int64_t outputs) {
  std::vector<int64_t> shape = sizes_of(x);
  shape.back() = outputs;
  return shape;
}

// x times a dequantized weight [out, in], by torch.
inline Tensor torch_linear(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::optional<Tensor> added;
  if (bias) added = torch::stable::to(*bias, x.scalar_type());
  StableIValue stack[3] = {
      torch::stable::detail::from(x),
      torch::stable::detail::from(weight),
      torch::stable::detail::from(added)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace bitsweep
