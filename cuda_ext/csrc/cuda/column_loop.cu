// bitsweep::gptq_column_loop on CUDA: the kernel, its launch on torch's current stream, its registration.
#include "column_loop.cuh"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../column_loop.h"
#include "current.h"

namespace bitsweep::cuda {
namespace {

// What a launch gets without asking for more.
constexpr int64_t kSharedBytes = 48 * 1024;

template <bool Ternary>
__global__ void __launch_bounds__(kLoopRows) loop_kernel(ColumnLoop loop) {
  extern __shared__ float slab[];
  loop_row<Ternary>(
      loop, static_cast<int64_t>(blockIdx.x) * kLoopRows + threadIdx.x, slab + threadIdx.x);
}

// Lets a kernel use more shared memory than every launch gets; a block of 128 columns needs no more.
template <bool Ternary>
void allow(const ColumnLoop& loop, int64_t bytes, int32_t device) {
  int limit = 0;
  checked(
      kColumnLoopName,
      cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  STD_TORCH_CHECK(
      bytes <= limit, kColumnLoopName, ": a block of ", loop.columns, " columns needs ", bytes,
      " bytes of shared memory and this GPU offers ", limit, "; use blocks of at most ",
      limit / loop_shared_bytes(1), " columns.");
  checked(
      kColumnLoopName, cudaFuncSetAttribute(
                      loop_kernel<Ternary>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                      static_cast<int>(bytes)));
}

template <bool Ternary>
void launch(const ColumnLoop& loop, int32_t device, cudaStream_t stream) {
  const int64_t bytes = loop_shared_bytes(loop.columns);
  if (bytes > kSharedBytes) allow<Ternary>(loop, bytes, device);
  const auto blocks = static_cast<unsigned>((loop.rows + kLoopRows - 1) / kLoopRows);
  loop_kernel<Ternary><<<blocks, kLoopRows, bytes, stream>>>(loop);
  checked(kColumnLoopName, cudaGetLastError());
}

std::tuple<Tensor, Tensor> gptq_column_loop(
    const Tensor& weight, const Tensor& upper, const Tensor& scale,
    const std::optional<Tensor>& zero, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& group, int64_t count, int64_t max_code) {
  const auto [loop, codes, errors] =
      plan_column_loop(weight, upper, scale, zero, negative, group, count, max_code);
  if (loop.count == 0 || loop.rows == 0) return {codes, errors};
  const Here here(kColumnLoopName, weight);
  const int32_t device = weight.get_device_index();
  if (loop.ternary) launch<true>(loop, device, here.stream());
  else launch<false>(loop, device, here.stream());
  return {codes, errors};
}

}  // namespace
}  // namespace bitsweep::cuda

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CUDA, m) {
  m.impl("gptq_column_loop", TORCH_BOX(&bitsweep::cuda::gptq_column_loop));
}
