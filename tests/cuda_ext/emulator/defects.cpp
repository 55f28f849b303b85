// Kernels with one mistake each: what the emulator must notice.
#include "../../../cuda_ext/csrc/cuda/intrinsics.cuh"
#include "guarded.h"

namespace bitsweep::cuda {
namespace {

struct Defect {
  int kind;
  const float* from;
  float* to;
};

void defective(Defect p) {
  const unsigned i = threadIdx.x;
  const Shared shared = shared_memory();
  switch (p.kind) {
    case 0:  // none: a copy through shared memory, reversed
      copy_16(shared + 16 * i, p.from + 4 * i);
      close_copies();
      await_copies<0>();
      __syncthreads();
      for (int e = 0; e < 4; e++) p.to[4 * i + e] = load_float(shared + 16 * (63 - i) + 4 * e);
      break;
    case 1:  // what another warp has written, without a barrier
      store_float(shared + 4 * i, p.from[i]);
      p.to[i] = load_float(shared + 4 * (63 - i));
      break;
    case 2:  // what another lane has written, without waiting for the warp
      store_float(shared + 4 * i, p.from[i]);
      p.to[i] = load_float(shared + 4 * (i ^ 1));
      break;
    case 3:  // copies that have not arrived
      copy_16(shared + 16 * i, p.from + 4 * i);
      close_copies();
      await_copies<1>();
      for (int e = 0; e < 4; e++) p.to[4 * i + e] = load_float(shared + 16 * i + 4 * e);
      break;
    case 4:  // half a warp
      if (i % 32 < 16) __syncwarp();
      else barrier<1>(64);
      break;
    case 5:  // one warp fewer than the barrier counts
      if (i < 32) barrier<1>(64);
      break;
    case 6: p.to[i] = p.from[i + 256]; break;          // past the end of a buffer
    case 7: store_float(shared + 4 * i + 1024, 1.0f); break;  // past the end of shared memory
    case 8: copy_16(shared + 16 * i, p.from + i); break;    // off alignment
    case 9: copy_16(shared + 16 * i + 16, p.from); break;  // a copy past the end
    case 10: p.to[i] = load_float(shared + 4 * i); break;  // what nobody has written
    case 11:  // overwrites what another warp may still read
      store_float(shared + 4 * i, p.from[i]);
      __syncthreads();
      p.to[i] = load_float(shared + 4 * (63 - i));
      copy_16(shared + 16 * (i / 4), p.from);
      break;
  }
}

}  // namespace
}  // namespace bitsweep::cuda

// 256 floats from -> to by 64 threads with 1 KB of shared memory.
extern "C" int run_defect(int kind, const float* from, float* to) {
  using bitsweep::emulator::Guarded;
  const Guarded source(from, 1024), target(1024);
  const bitsweep::cuda::Defect defect{
      kind, reinterpret_cast<const float*>(source.data()), reinterpret_cast<float*>(target.data())};
  const cudaError_t error =
      bitsweep::cuda::launch(&bitsweep::cuda::defective, 1, 64, 1024, nullptr, defect);
  std::memcpy(to, target.data(), 1024);
  return error;
}
