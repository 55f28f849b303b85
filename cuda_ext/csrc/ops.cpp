// The operators of the kernel layout and their CPU implementations, bound through LibTorch's stable
// ABI (torch >= 2.10). cuda/ops.cpp registers CUDA implementations of the same schemas.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/fixed_row.h"
#include "cpu/floats.h"
#include "cpu/kernels.h"
#include "cpu/repack.h"
#include "in_shares.h"
#include "operators.h"

namespace bitsweep {
namespace {

enum class IsaLevel : int64_t { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3 };

IsaLevel best_isa() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return IsaLevel::kPortable;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi2")
        ? IsaLevel::kAvx512Vnni
        : IsaLevel::kAvx512;
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
  const char* names[] = {"portable", "avx2", "avx512", "avx512vnni"};
  for (int64_t level = 0; level < 4; level++) {
    if (std::strcmp(wanted, names[level]) != 0) continue;
    STD_TORCH_CHECK(
        level <= static_cast<int64_t>(best),
        "BITSWEEP_CPU_ISA=", wanted, ", but this processor offers at most ",
        names[static_cast<int64_t>(best)], "; unset it, or choose one that is there.");
    return static_cast<IsaLevel>(level);
  }
  STD_TORCH_CHECK(
      false, "BITSWEEP_CPU_ISA=", wanted, " is unknown; choose avx512vnni, avx512, avx2 or portable.");
  return best;
}

Kernels kernels() {
#if defined(__x86_64__)
  switch (chosen_isa()) {
    case IsaLevel::kAvx512Vnni: return avx512vnni_kernels();
    case IsaLevel::kAvx512: return avx512_kernels();
    case IsaLevel::kAvx2: return avx2_kernels();
    default: return portable_kernels();
  }
#else
  chosen_isa();
  return portable_kernels();
#endif
}

// Above this many rows of x, unpacking the weight once and multiplying with torch's own product is
// faster: measured, docs/kernels.md. With AVX-512 torch multiplies half types faster than float32;
// without it four to five times slower than these kernels, which take them with any number of rows.
int64_t packed_rows(Storage storage) {
  const bool halves = storage != Storage::kFloat32;
  switch (chosen_isa()) {
    case IsaLevel::kAvx512Vnni:
    case IsaLevel::kAvx512: return halves ? 192 : 512;
    case IsaLevel::kAvx2: return halves ? std::numeric_limits<int64_t>::max() : 192;
    default: return 192;
  }
}

int64_t tiles_per_thread(const Weight& weight, int64_t batch) {
  return worth_a_thread(kTileRows * weight.blocks * kBlock * batch);
}

// x [batch, inputs] as floats in the order of the lanes, short last blocks filled with zeros.
void arrange(
    const Tensor& x, Storage storage, int64_t batch, const Weight& weight, const Floats& arranged) {
  const int64_t stride = x_stride_of(weight.blocks), inputs = weight.inputs;
  const void* data = x.data_ptr();
  auto rows = [&](int64_t first, int64_t end) {
    float plain[kBlock];
    for (int64_t m = first; m < end; m++) {
      float* out = arranged.data() + m * stride;
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
  in_shares(batch, worth_a_thread(inputs), rows);
}

Tensor dequantize_into(const Weight& weight, const Tensor& like, ScalarType type) {
  const Storage storage = storage_of("packed_dequantize", "dtype", type);
  std::vector<int64_t> shape = {weight.outputs, weight.inputs};
  Tensor out = torch::stable::new_empty(like, shape, type);
  const Kernels run = kernels();
  void* data = out.data_ptr();
  in_shares(
      tiles_for(weight.outputs), tiles_per_thread(weight, 1),
      [&](int64_t first, int64_t end) { run.dequantize(weight, data, storage, first, end); });
  return out;
}

Tensor packed_linear(
    const Tensor& x, const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, const std::optional<Tensor>& bias, int64_t bits,
    int64_t out_features, int64_t group_size) {
  const LinearCall call =
      linear_call(x, tiles, scales, zeros, negative, bias, bits, out_features, group_size);
  const Weight& weight = call.weight;
  const int64_t batch = call.batch;
  if (batch > packed_rows(call.storage))
    return torch_linear(x, dequantize_into(weight, tiles, x.scalar_type()), bias);

  const Tensor y = torch::stable::new_empty(x, output_shape(x, out_features));
  if (batch == 0) return y;
  const Floats arranged(batch * x_stride_of(weight.blocks));
  arrange(torch::stable::contiguous(x), call.storage, batch, weight, arranged);
  Product product{};
  product.weight = weight;
  product.x = arranged.data();
  product.x_stride = x_stride_of(weight.blocks);
  product.batch = batch;
  product.bias = call.bias;
  product.bias_storage = call.bias_storage;
  product.y = y.data_ptr();
  product.y_storage = call.storage;
  const Kernels run = kernels();
  FixedRow fixed;
  if (batch == 1) {
    fixed.make(run, weight, product.x);
    product.fixed = fixed.find(run, weight);
  }
  in_shares(
      tiles_for(out_features), tiles_per_thread(weight, batch),
      [&](int64_t first, int64_t end) { run.multiply(product, first, end); });
  return y;
}

Tensor packed_dequantize(
    const Tensor& tiles, const Tensor& scales, const std::optional<Tensor>& zeros,
    const std::optional<Tensor>& negative, int64_t bits, int64_t in_features,
    int64_t out_features, int64_t group_size, ScalarType dtype) {
  const Weight weight = weight_of(
      "packed_dequantize", tiles, scales, zeros, negative, bits, in_features, out_features,
      group_size, {"tiles", device_of(tiles)});
  return dequantize_into(weight, tiles, dtype);
}

Tensor repack(const Tensor& qweight, int64_t bits, int64_t in_features) {
  const Tensor tiles =
      torch::stable::new_zeros(qweight, tiles_shape(qweight, bits, in_features));
  const int64_t outputs = qweight.size(1);
  const auto* from = static_cast<const uint32_t*>(qweight.data_ptr());
  auto* to = static_cast<uint32_t*>(tiles.data_ptr());
  in_shares(
      tiles_for(outputs), worth_a_thread(kTileRows * in_features),
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

int64_t rows_from_codes(ScalarType dtype) {
  return packed_rows(storage_of("rows_from_codes", "dtype", dtype));
}

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
  m.def("rows_from_codes(ScalarType dtype) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("packed_linear", TORCH_BOX(&bitsweep::packed_linear));
  m.impl("packed_dequantize", TORCH_BOX(&bitsweep::packed_dequantize));
  m.impl("repack", TORCH_BOX(&bitsweep::repack));
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&bitsweep::cpu_isa));
  m.impl("rows_from_codes", TORCH_BOX(&bitsweep::rows_from_codes));
}
