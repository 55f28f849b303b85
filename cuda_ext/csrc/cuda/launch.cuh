// The choice of one instance of the kernel. Each width has its own file, so that they compile side by
// side.
#pragma once

#include <atomic>

#include "linear.cuh"

namespace bitsweep::cuda {

cudaError_t multiply_2(const LinearArguments& p, Storage storage, cudaStream_t stream);
cudaError_t multiply_ternary(const LinearArguments& p, Storage storage, cudaStream_t stream);
cudaError_t multiply_3(const LinearArguments& p, Storage storage, cudaStream_t stream);
cudaError_t multiply_4(const LinearArguments& p, Storage storage, cudaStream_t stream);
cudaError_t multiply_8(const LinearArguments& p, Storage storage, cudaStream_t stream);

// Let a kernel have all the shared memory of a device, once a device.
template <class C>
cudaError_t allow_shared_memory() {
  static std::atomic<uint64_t> allowed{0};
  int ordinal = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  const uint64_t mark = ordinal < 64 ? uint64_t{1} << ordinal : 0;
  if (allowed.load() & mark) return cudaSuccess;
  Device device;
  if (cudaError_t error = current_device(&device); error != cudaSuccess) return error;
  const auto kernel = reinterpret_cast<const void*>(&multiply<C>);
  cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.block_shared);
  if (error != cudaSuccess) return error;
  error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess) allowed.fetch_or(mark);
  return error;
}

template <class T, int Bits, bool Ternary, int Segment>
cudaError_t multiply_tokens(const LinearArguments& p, cudaStream_t stream) {
  auto run = [&](auto config) {
    using C = decltype(config);
    if (cudaError_t error = allow_shared_memory<C>(); error != cudaSuccess) return error;
    return launch(&multiply<C>, p.plan.blocks, kThreads, p.plan.shared_bytes, stream, p);
  };
  switch (p.plan.tokens) {
    case 8: return run(Config<T, Bits, Ternary, Segment, 8>{});
    case 16: return run(Config<T, Bits, Ternary, Segment, 16>{});
    case 32: return run(Config<T, Bits, Ternary, Segment, 32>{});
    case 64:
      if constexpr (max_tokens(Bits, Segment) == 64) return run(Config<T, Bits, Ternary, Segment, 64>{});
    default: return cudaErrorInvalidValue;
  }
}

template <int Bits, bool Ternary>
cudaError_t multiply_any(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  constexpr int kLong = long_segment(Bits);
  const bool longer = p.plan.segment == kLong;
  if (storage == Storage::kFloat16)
    return longer ? multiply_tokens<Half, Bits, Ternary, kLong>(p, stream)
                  : multiply_tokens<Half, Bits, Ternary, 1>(p, stream);
  return longer ? multiply_tokens<BFloat16, Bits, Ternary, kLong>(p, stream)
                : multiply_tokens<BFloat16, Bits, Ternary, 1>(p, stream);
}

}  // namespace bitsweep::cuda
