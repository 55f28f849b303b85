#include "launch.cuh"

namespace bitsweep::cuda {

cudaError_t multiply_4(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  return multiply_any<4, false>(p, storage, stream);
}

}  // namespace bitsweep::cuda
