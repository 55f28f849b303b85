#include "launch.cuh"

namespace bitsweep::cuda {

cudaError_t multiply_3(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  return multiply_any<3, false>(p, storage, stream);
}

}  // namespace bitsweep::cuda
