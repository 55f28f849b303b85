// bitsweep::gptq_sweep on CUDA: the kernel, its launch on torch's current stream, its registration.
#include "sweep.cuh"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../sweep.h"
#include "current.h"

namespace bitsweep::cuda {
namespace {

// What a launch gets without asking for more.
constexpr int64_t kSharedBytes = 48 * 1024;

template <bool Ternary>
__global__ void __launch_bounds__(kSweepRows) sweep_kernel(Sweep sweep) {
  extern __shared__ float slab[];
  sweep_row<Ternary>(
      sweep, static_cast<int64_t>(blockIdx.x) * kSweepRows + threadIdx.x, slab + threadIdx.x);
}

// Lets a kernel use more shared memory than every launch gets; a block of 128 columns needs no more.
template <bool Ternary>
void allow(const Sweep& sweep, int64_t bytes, int32_t device) {
  int limit = 0;
  checked(
      kSweepName,
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  STD_TORCH_CHECK(
      bytes <= limit, kSweepName, ": a block of ", sweep.columns, " columns needs ", bytes,
      " bytes of shared memory and this GPU offers ", limit, "; use blocks of at most ",
      limit / sweep_shared_bytes(1), " columns.");
  checked(
      kSweepName, cudaFuncSetAttribute(
                      sweep_kernel<Ternary>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                      static_cast<int>(bytes)));
}

template <bool Ternary>
void launch(const Sweep& sweep, int32_t device, cudaStream_t stream) {
  const int64_t bytes = sweep_shared_bytes(sweep.columns);
  if (bytes > kSharedBytes) allow<Ternary>(sweep, bytes, device);
  const auto blocks = static_cast<unsigned>((sweep.rows + kSweepRows - 1) / kSweepRows);
  sweep_kernel<Ternary><<<blocks, kSweepRows, bytes, stream>>>(sweep);
  checked(kSweepName, cudaGetLastError());
}

std::tuple<Tensor, Tensor> gptq_sweep(
    const Tensor& weight, const Tensor& upper, const Tensor& scale,
    const std::optional<Tensor>& zero, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& group, int64_t count, int64_t max_code) {
  const auto [sweep, codes, errors] =
      plan_sweep(weight, upper, scale, zero, negative, group, count, max_code);
  if (sweep.count == 0 || sweep.rows == 0) return {codes, errors};
  const Here here(kSweepName, weight);
  const int32_t device = weight.get_device_index();
  if (sweep.ternary) launch<true>(sweep, device, here.stream());
  else launch<false>(sweep, device, here.stream());
  return {codes, errors};
}

}  // namespace
}  // namespace bitsweep::cuda

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CUDA, m) {
  m.impl("gptq_sweep", TORCH_BOX(&bitsweep::cuda::gptq_sweep));
}
