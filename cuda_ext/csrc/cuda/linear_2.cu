#include "launch.cuh"

namespace bitsweep::cuda {

cudaError_t multiply_2(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  return multiply_any<2, false>(p, storage, stream);
}

}  // namespace bitsweep::cuda
