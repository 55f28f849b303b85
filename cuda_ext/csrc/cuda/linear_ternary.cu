#include "launch.cuh"

namespace bitsweep::cuda {

cudaError_t multiply_ternary(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  return multiply_any<2, true>(p, storage, stream);
}

}  // namespace bitsweep::cuda
