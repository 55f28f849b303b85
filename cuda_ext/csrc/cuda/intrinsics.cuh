// The instructions that C++ has no words for, and the launch of a kernel. Everything in this folder
// reaches them through here, so that the same kernels compile for the emulator of the tests
// (tests/cuda_ext/emulator), which defines these functions for the CPU.
#pragma once

#include "../shared/dequantize.h"

namespace bitsweep::cuda {

// The types of activations, as tags. kMantissa bits of a value 2^kMantissa are its unit place.
struct Half {
  static constexpr Storage kStorage = Storage::kFloat16;
  static constexpr int kMantissa = 10, kBias = 15;
};
struct BFloat16 {
  static constexpr Storage kStorage = Storage::kBFloat16;
  static constexpr int kMantissa = 7, kBias = 127;
};

}  // namespace bitsweep::cuda

#if defined(BITSWEEP_EMULATE)

#include "emulator.h"

#else

#include <cuda_runtime.h>

namespace bitsweep::cuda {

// Two values of type T in a register, added, each rounded once.
template <class T>
__device__ __forceinline__ uint32_t add_pairs(uint32_t a, uint32_t b) {
  uint32_t sum;
  if constexpr (T::kStorage == Storage::kFloat16) {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
  } else {
    // sm_80 multiplies bfloat16 and adds, and has no plain addition of them.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  }
  return sum;
}

// Two floats rounded to a pair of T, `low` in the low half.
template <class T>
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  uint32_t pair;
  if constexpr (T::kStorage == Storage::kFloat16) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

__device__ __forceinline__ float widen_half(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// sum += a (16 rows x 16 inputs) times b (16 inputs x 8 tokens), in the register order of
// mma.m16n8k16: a is rows g, g + 8, g, g + 8 of pairs t, t, t + 4, t + 4, b pairs t, t + 4 of token
// g, sum (g; 2t, 2t + 1), (g + 8; 2t, 2t + 1) for g = lane / 4, t = lane % 4.
template <class T>
__device__ __forceinline__ void multiply_tiles(
    float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (T::kStorage == Storage::kFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// (word & mask) | bits, one instruction: the compiler on its own makes two of it.
__device__ __forceinline__ uint32_t mask_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
  return result;
}

// An address in shared memory. 0 is nobody's: they begin at shared_memory().
using Shared = uint32_t;

// The dynamic shared memory of the block. The register is made opaque, because the compiler would
// rather compute this address anew before every access.
__device__ __forceinline__ Shared shared_memory() {
  extern __shared__ __align__(128) char bytes[];
  auto address = static_cast<Shared>(__cvta_generic_to_shared(bytes));
  asm volatile("" : "+r"(address));
  return address;
}

__device__ __forceinline__ uint4 load_16(Shared from) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w) : "r"(from));
  return value;
}
__device__ __forceinline__ float load_float(Shared from) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(from));
  return value;
}
__device__ __forceinline__ uint16_t load_2(Shared from) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(from));
  return value;
}
__device__ __forceinline__ uint32_t load_1(Shared from) {
  uint32_t value;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(from));
  return value;
}
__device__ __forceinline__ void store_16(Shared to, uint4 value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void store_float(Shared to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

// threadIdx.x, read again wherever it is used: no register holds it or what follows from it.
__device__ __forceinline__ int read_thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// Lines that are read once: first to leave the L2.
__device__ __forceinline__ uint64_t read_once_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// 16 bytes of weights to shared memory, past the L1.
__device__ __forceinline__ void copy_once(Shared to, const void* from, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "l"(policy)
               : "memory");
}

// 16 bytes to shared memory, of which `bytes` are read and the others zero.
__device__ __forceinline__ void copy_16(Shared to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(from), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void copy_8(Shared to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from)
               : "memory");
}

// End a group of this thread's copies; wait until at most `Pending` groups are unfinished.
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int Pending>
__device__ __forceinline__ void await_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// The compiler moves no load across this: registers hold one block's activations, not a stage's.
__device__ __forceinline__ void keep_order() { __syncwarp(); }

// A barrier of `threads` threads, whole warps; name 0 is __syncthreads's.
template <int Name>
__device__ __forceinline__ void barrier(int threads) {
  asm volatile("bar.sync %0, %1;" ::"n"(Name), "r"(threads) : "memory");
}

// Let a kernel that was launched `early` begin; wait for the kernels before this one.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launch with one argument. `early`: the kernel calls await_previous itself, and its blocks may be
// placed while the kernel before it still runs (compute capability 9.0 and later).
template <class Argument>
cudaError_t launch(
    void (*kernel)(Argument), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
    const Argument& argument, bool early = false) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, argument);
}

}  // namespace bitsweep::cuda

#endif
