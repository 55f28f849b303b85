// The operators of the kernel layout, bound through LibTorch's stable ABI (torch >= 2.10). The
// kernels for CUDA register their own implementations of the same schemas.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/repack.h"

namespace bitsweep {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Above this many rows of x, unpacking the weight once and multiplying with torch's own product is
// faster: measured, docs/kernels.md. torch multiplies half types faster than float32.
constexpr int64_t packed_rows(Storage storage) {
  return storage == Storage::kFloat32 ? 512 : 192;
}

enum class IsaLevel : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

IsaLevel best_isa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return IsaLevel::kPortable;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return IsaLevel::kAvx512;
  return IsaLevel::kAvx2;
#else
  return IsaLevel::kPortable;
#endif
}

// The instruction set to run: the best of this processor, or what BITSWEEP_CPU_ISA asks for.
IsaLevel chosen_isa() {
  static const IsaLevel best = best_isa();
  const char* wanted = std::getenv("BITSWEEP_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  const char* names[] = {"portable", "avx2", "avx512"};
  for (int64_t level = 0; level < 3; level++) {
    if (std::strcmp(wanted, names[level]) != 0) continue;
    STD_TORCH_CHECK(
        level <= static_cast<int64_t>(best),
        "BITSWEEP_CPU_ISA=", wanted, ", but this processor offers at most ",
        names[static_cast<int64_t>(best)], "; unset it, or choose one that is there.");
    return static_cast<IsaLevel>(level);
  }
  STD_TORCH_CHECK(
      false, "BITSWEEP_CPU_ISA=", wanted, " is unknown; choose avx512, avx2 or portable.");
  return best;
}

Kernels kernels() {
#if defined(__x86_64__)
  switch (chosen_isa()) {
    case IsaLevel::kAvx512: return avx512_kernels();
    case IsaLevel::kAvx2: return avx2_kernels();
    default: return portable_kernels();
  }
#else
  chosen_isa();
  return portable_kernels();
#endif
}

const char* name_of(ScalarType type) {
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

std::string shape_of(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); i++)
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

Storage storage_of(const char* op, const char* name, ScalarType type) {
  if (type == ScalarType::Float) return Storage::kFloat32;
  if (type == ScalarType::Half) return Storage::kFloat16;
  STD_TORCH_CHECK(
      type == ScalarType::BFloat16, op, ": ", name, " is ", name_of(type),
      "; pass float32, bfloat16 or float16.");
  return Storage::kBFloat16;
}

void check(
    const char* op, const char* name, const Tensor& tensor, ScalarType type,
    const std::vector<int64_t>& shape) {
  STD_TORCH_CHECK(
      tensor.is_cpu(), op, ": ", name, " is not on the CPU; move the layer and x to one device.");
  STD_TORCH_CHECK(
      tensor.scalar_type() == type, op, ": ", name, " is ", name_of(tensor.scalar_type()),
      "; expected ", name_of(type), ".");
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string expected = "[";
  for (size_t i = 0; i < shape.size(); i++) {
    same = same && tensor.size(static_cast<int64_t>(i)) == shape[i];
    expected += (i ? ", " : "") + std::to_string(shape[i]);
  }
  STD_TORCH_CHECK(
      same, op, ": ", name, " is ", shape_of(tensor), "; expected ", expected,
      "] for these bits, inputs, outputs and groups.");
  STD_TORCH_CHECK(
      tensor.is_contiguous(), op, ": ", name, " is not contiguous; pass ", name, ".contiguous().");
  STD_TORCH_CHECK(
      reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0 || std::strcmp(name, "tiles") != 0,
      op, ": ", name, " begins at an address that is not a multiple of 16; pass ", name,
      ".clone().");
}

Weight weight_of(
    const char* op, const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, int64_t bits, int64_t inputs, int64_t outputs,
    int64_t group_size) {
  STD_TORCH_CHECK(
      bits == 2 || bits == 3 || bits == 4 || bits == 8, op, ": bits=", bits,
      " is not a bit width; choose one of 2, 3, 4, 8.");
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
  const int64_t groups = (inputs + group_size - 1) / group_size, tile_count = tiles_for(outputs);
  const int width = static_cast<int>(bits);
  check(
      op, "tiles", tiles, ScalarType::Int,
      {tile_count, units_for(width, inputs), kTileRows, kLanes});
  const std::vector<int64_t> grid = {tile_count, groups, kTileRows};
  const Storage storage = storage_of(op, "scales", scales.scalar_type());
  check(op, "scales", scales, scales.scalar_type(), grid);
  if (zeros) check(op, "zeros", *zeros, ScalarType::Byte, grid);
  if (negative) check(op, "negative", *negative, scales.scalar_type(), grid);
  Weight weight{};
  weight.tiles = static_cast<const uint32_t*>(tiles.data_ptr());
  weight.scales = scales.data_ptr();
  weight.zeros = zeros ? static_cast<const uint8_t*>(zeros->data_ptr()) : nullptr;
  weight.negative = negative ? negative->data_ptr() : nullptr;
  weight.scale_storage = storage;
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

// A share of work that is worth a thread: about 64 thousand products.
int64_t tiles_per_thread(const Weight& weight, int64_t batch) {
  const int64_t products = kTileRows * weight.blocks * kBlock * batch;
  return products >= 65536 ? 1 : (65536 + products - 1) / products;
}

// Floats that begin on a cache line, so that no vector of 16 of them lies across two.
class Floats {
 public:
  explicit Floats(int64_t count)
      : data_(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}))) {}
  ~Floats() { ::operator delete(data_, std::align_val_t{64}); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }

 private:
  float* data_;
};

// x [batch, inputs] as floats in the order of the lanes, short last blocks filled with zeros.
void arrange(
    const Tensor& x, Storage storage, int64_t batch, const Weight& weight, const Floats& arranged) {
  const int64_t padded = weight.blocks * kBlock, inputs = weight.inputs;
  const void* data = x.data_ptr();
  auto rows = [&](int64_t first, int64_t end) {
    float plain[kBlock];
    for (int64_t m = first; m < end; m++) {
      float* out = arranged.data() + m * padded;
      for (int64_t k0 = 0; k0 < inputs; k0 += kBlock, out += kBlock) {
        const int64_t count = inputs - k0 < kBlock ? inputs - k0 : kBlock;
        const int64_t at = m * inputs + k0;
        const float* from = plain;
        if (storage == Storage::kFloat32 && count == kBlock) {
          from = static_cast<const float*>(data) + at;
        } else {
          for (int64_t k = 0; k < kBlock; k++)
            plain[k] = k < count ? load_as_float(data, storage, at + k) : 0.0f;
        }
        for (int lane = 0; lane < kLanes; lane++) {
          out[lane] = from[2 * lane];
          out[kLanes + lane] = from[2 * lane + 1];
        }
      }
    }
  };
  torch::stable::parallel_for(0, batch, 1 + 65536 / (inputs + 1), rows);
}

Tensor dequantize_into(const Weight& weight, const Tensor& like, ScalarType type) {
  const Storage storage = storage_of("packed_dequantize", "dtype", type);
  std::vector<int64_t> shape = {weight.outputs, weight.inputs};
  Tensor out = torch::stable::new_empty(like, shape, type);
  const Kernels run = kernels();
  void* data = out.data_ptr();
  torch::stable::parallel_for(
      0, tiles_for(weight.outputs), tiles_per_thread(weight, 1),
      [&](int64_t first, int64_t end) { run.dequantize(weight, data, storage, first, end); });
  return out;
}

Tensor torch_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  std::optional<Tensor> added;
  if (bias) added = torch::stable::to(*bias, x.scalar_type());
  StableIValue stack[3] = {
      torch::stable::detail::from(x),
      torch::stable::detail::from(weight),
      torch::stable::detail::from(added)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor packed_linear(
    const Tensor& x, const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, const std::optional<Tensor>& bias, int64_t bits,
    int64_t out_features, int64_t group_size) {
  constexpr const char* op = "packed_linear";
  STD_TORCH_CHECK(x.dim() > 0, op, ": x is a scalar; pass x as [..., in].");
  STD_TORCH_CHECK(
      x.is_cpu(), op, ": x is not on the CPU; move the layer and x to one device.");
  const Storage storage = storage_of(op, "x", x.scalar_type());
  const int64_t inputs = x.size(x.dim() - 1);
  const Weight weight = weight_of(
      op, tiles, scales, zeros, negative, bits, inputs, out_features, group_size);
  if (bias) {
    storage_of(op, "bias", bias->scalar_type());
    check(op, "bias", *bias, bias->scalar_type(), {out_features});
  }
  const int64_t batch = x.numel() / inputs;
  if (batch > packed_rows(storage))
    return torch_linear(x, dequantize_into(weight, tiles, x.scalar_type()), bias);

  std::vector<int64_t> shape;
  for (int64_t i = 0; i + 1 < x.dim(); i++) shape.push_back(x.size(i));
  shape.push_back(out_features);
  const Tensor y = torch::stable::new_empty(x, shape);
  if (batch == 0) return y;
  const Floats arranged(batch * weight.blocks * kBlock);
  arrange(torch::stable::contiguous(x), storage, batch, weight, arranged);
  Product product{};
  product.weight = weight;
  product.x = arranged.data();
  product.batch = batch;
  product.bias = bias ? bias->data_ptr() : nullptr;
  product.bias_storage = bias ? storage_of(op, "bias", bias->scalar_type()) : Storage::kFloat32;
  product.y = y.data_ptr();
  product.y_storage = storage;
  const Kernels run = kernels();
  torch::stable::parallel_for(
      0, tiles_for(out_features), tiles_per_thread(weight, batch),
      [&](int64_t first, int64_t end) { run.linear(product, first, end); });
  return y;
}

Tensor packed_dequantize(
    const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, int64_t bits, int64_t in_features,
    int64_t out_features, int64_t group_size, ScalarType dtype) {
  const Weight weight = weight_of(
      "packed_dequantize", tiles, scales, zeros, negative, bits, in_features, out_features,
      group_size);
  return dequantize_into(weight, tiles, dtype);
}

Tensor repack(const Tensor& qweight, int64_t bits, int64_t in_features) {
  constexpr const char* op = "repack";
  STD_TORCH_CHECK(
      bits == 2 || bits == 3 || bits == 4 || bits == 8, op, ": bits=", bits,
      " is not a bit width; choose one of 2, 3, 4, 8.");
  STD_TORCH_CHECK(in_features > 0, op, ": in_features=", in_features, "; pass at least 1.");
  STD_TORCH_CHECK(
      qweight.dim() == 2, op, ": qweight is ", shape_of(qweight), "; expected [words, out].");
  const int64_t outputs = qweight.size(1);
  check(op, "qweight", qweight, ScalarType::Int, {(in_features * bits + 31) / 32, outputs});
  const std::vector<int64_t> shape = {
      tiles_for(outputs), units_for(static_cast<int>(bits), in_features), kTileRows, kLanes};
  const Tensor tiles = torch::stable::new_zeros(qweight, shape);
  const auto* from = static_cast<const uint32_t*>(qweight.data_ptr());
  auto* to = static_cast<uint32_t*>(tiles.data_ptr());
  torch::stable::parallel_for(
      0, tiles_for(outputs), 1 + 65536 / (kTileRows * in_features),
      [&](int64_t first, int64_t end) {
        switch (bits) {
          case 2: return repack_tiles<2>(from, in_features, outputs, to, first, end);
          case 3: return repack_tiles<3>(from, in_features, outputs, to, first, end);
          case 4: return repack_tiles<4>(from, in_features, outputs, to, first, end);
          default: return repack_tiles<8>(from, in_features, outputs, to, first, end);
        }
      });
  return tiles;
}

int64_t cpu_isa() { return static_cast<int64_t>(chosen_isa()); }

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def(
      "packed_linear(Tensor x, Tensor tiles, Tensor scales, Tensor? zeros, Tensor? negative, "
      "Tensor? bias, int bits, SymInt out_features, SymInt group_size) -> Tensor");
  m.def(
      "packed_dequantize(Tensor tiles, Tensor scales, Tensor? zeros, Tensor? negative, int bits, "
      "SymInt in_features, SymInt out_features, SymInt group_size, ScalarType dtype) -> Tensor");
  m.def("repack(Tensor qweight, int bits, SymInt in_features) -> Tensor");
  m.def("cpu_isa() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("packed_linear", TORCH_BOX(&bitsweep::packed_linear));
  m.impl("packed_dequantize", TORCH_BOX(&bitsweep::packed_dequantize));
  m.impl("repack", TORCH_BOX(&bitsweep::repack));
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&bitsweep::cpu_isa));
}
