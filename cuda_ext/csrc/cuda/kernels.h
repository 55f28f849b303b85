// What the CUDA kernels offer. No torch here: raw pointers on the current device, a stream, and an
// error code; registration, checks and allocation are the caller's (ops.cpp).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../shared/weight.h"

namespace bitsweep::cuda {

// y [batch, outputs] = x times the weight, plus bias (null without one). x is [batch, inputs] in
// the natural order of inputs, contiguous; x and y are float16 or bfloat16, alike.
struct Product {
  Weight weight;
  const void* x;
  Storage storage;
  int64_t batch;
  const void* bias;
  Storage bias_storage;
  void* y;
  void* workspace;  // workspace_bytes() of them, 256-byte aligned, contents undefined
};

// Rows of x up to which the packed kernel runs; above it, dequantize and multiply.
constexpr int64_t kMaxBatch = 64;

// Scratch memory that `linear` needs on the current device; 0 is possible. Depends on nothing but
// the shape, the batch and the device, so it is the same in a captured graph.
int64_t workspace_bytes(const Weight& weight, int64_t batch);

cudaError_t linear(const Product& product, cudaStream_t stream);

// The weight [outputs, inputs] to out, computed in float and rounded once to `storage`.
cudaError_t dequantize(const Weight& weight, void* out, Storage storage, cudaStream_t stream);

// GPTQ words (qweight int32 [ceil(inputs * bits / 32), outputs]) to tiles; writes all of tiles.
cudaError_t repack(
    const uint32_t* qweight, int bits, int64_t inputs, int64_t outputs, uint32_t* tiles,
    cudaStream_t stream);

}  // namespace bitsweep::cuda
