#include "launch.cuh"

namespace bitsweep::cuda {

cudaError_t multiply_8(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  return multiply_any<8, false>(p, storage, stream);
}

}  // namespace bitsweep::cuda
