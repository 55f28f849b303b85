// The device and the stream that torch has current, for the operators of this folder.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

// In libtorch_cuda, which a CPU build of torch lacks: weak, so that the library loads there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** stream);

namespace bitsweep {

inline void checked(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(
      error == cudaSuccess, op, ": CUDA says: ", cudaGetErrorString(error),
      ". `bitsweep doctor` shows what the library was built for.");
}

// Makes the device of a tensor the current one while it lives, and knows torch's stream there.
class Here {
 public:
  Here(const char* op, const torch::stable::Tensor& tensor) : guard_(index_of(op, tensor)) {
    const int32_t index = tensor.get_device_index();
    // The runtime linked into this library has its own idea of the current device.
    checked(op, cudaSetDevice(index));
    void* found = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &found));
    stream_ = static_cast<cudaStream_t>(found);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  static int32_t index_of(const char* op, const torch::stable::Tensor& tensor) {
    STD_TORCH_CHECK(
        aoti_torch_get_current_cuda_stream != nullptr, op,
        ": this torch has no CUDA; install a CUDA build of torch.");
    return tensor.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace bitsweep
