// bitsweep::gptq_sweep on CUDA: the kernel, its launch on torch's current stream, its registration.
#include "sweep.cuh"

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../sweep.h"

// In libtorch_cuda, which a CPU build of torch lacks: weak, so that the library loads there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** stream);

namespace bitsweep::cuda {
namespace {

using torch::stable::Tensor;

template <bool Ternary>
__global__ void __launch_bounds__(kSweepRows) sweep_kernel(Sweep sweep) {
  extern __shared__ float slab[];
  sweep_row<Ternary>(
      sweep, static_cast<int64_t>(blockIdx.x) * kSweepRows + threadIdx.x, slab + threadIdx.x);
}

void checked(cudaError_t error) {
  STD_TORCH_CHECK(
      error == cudaSuccess, "gptq_sweep: CUDA says: ", cudaGetErrorString(error),
      ". `bitsweep doctor` shows what the library was built for.");
}

template <bool Ternary>
void launch(const Sweep& sweep, int device, cudaStream_t stream) {
  const int64_t bytes = sweep_shared_bytes(sweep.columns);
  int limit = 0;
  checked(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  STD_TORCH_CHECK(
      bytes <= limit, "gptq_sweep: a block of ", sweep.columns, " columns needs ", bytes,
      " bytes of shared memory and this GPU offers ", limit, "; use blocks of at most ",
      limit / static_cast<int64_t>(kSweepPitch * sizeof(float)), " columns.");
  checked(cudaFuncSetAttribute(
      sweep_kernel<Ternary>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const auto blocks = static_cast<unsigned>((sweep.rows + kSweepRows - 1) / kSweepRows);
  sweep_kernel<Ternary><<<blocks, kSweepRows, bytes, stream>>>(sweep);
  checked(cudaGetLastError());
}

std::tuple<Tensor, Tensor> gptq_sweep(
    const Tensor& weight, const Tensor& upper, const Tensor& scale,
    const std::optional<Tensor>& zero, const std::optional<Tensor>& negative,
    const std::optional<Tensor>& group, int64_t count, int64_t max_code) {
  STD_TORCH_CHECK(weight.is_cuda(), "gptq_sweep: weight is not on a CUDA device.");
  const int device = weight.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr,
      "gptq_sweep: this torch has no CUDA streams; install a CUDA build of torch.");
  // The runtime linked into this library has its own idea of the current device.
  checked(cudaSetDevice(device));
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const auto [sweep, made] =
      plan_sweep(weight, upper, scale, zero, negative, group, count, max_code);
  if (sweep.count > 0 && sweep.rows > 0) {
    if (sweep.ternary) launch<true>(sweep, device, static_cast<cudaStream_t>(stream));
    else launch<false>(sweep, device, static_cast<cudaStream_t>(stream));
  }
  return {made.first, made.second};
}

}  // namespace
}  // namespace bitsweep::cuda

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CUDA, m) {
  m.impl("gptq_sweep", TORCH_BOX(&bitsweep::cuda::gptq_sweep));
}
