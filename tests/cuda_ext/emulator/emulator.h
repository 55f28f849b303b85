// Runs the CUDA kernels on the CPU: in place of the instructions of csrc/cuda/intrinsics.cuh.
//
// Every thread of a block is a fiber; it runs until it must wait for others. Instructions of a whole
// warp need all 32 lanes at the same place. Asynchronous copies spoil their target when they are
// issued and arrive when they are waited for; shared memory begins spoilt (all bits set: NaN, codes
// of ones), ends at a page that cannot be touched, and so does every buffer of the tests. In which
// order threads run is the test's choice. What is wrong ends the launch with an error that says so.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "../../../cuda_ext/csrc/shared/dequantize.h"
#include "cuda_runtime_api.h"

namespace bitsweep::emulator {

struct DeviceShape {
  int multiprocessors, block_shared, shared, major;
};

// Make a device of this shape the current one; threads run forwards (0), backwards (1), or in a
// random order that begins with this seed.
void use_device(const DeviceShape& shape, uint64_t order);

const std::string& last_error();
int64_t launches();  // since use_device

cudaError_t run(
    int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& thread);

// The thread that runs now.
Index thread_index();
Index block_index();
char* shared_memory();
void copy(void* to, const void* from, int size, int bytes);
void close_copies();
void await_copies(int pending);
void wait_for_warp(const void* site);
void wait_for_block(int name, int threads);
void multiply_tiles(
    const void* site, bool bfloat16, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
    uint32_t b1);

}  // namespace bitsweep::emulator

#define threadIdx (bitsweep::emulator::thread_index())
#define blockIdx (bitsweep::emulator::block_index())

// Where the program stands: lanes that meet in an instruction must have come to the same one.
#define BITSWEEP_SITE __builtin_return_address(0)

namespace bitsweep::cuda {

using emulator::close_copies;
using emulator::shared_memory;

template <class T>
float widen(uint16_t bits) {
  return T::kStorage == Storage::kFloat16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

template <class T>
uint16_t narrow(float value) {
  return T::kStorage == Storage::kFloat16 ? float_to_half(value) : float_to_bfloat16(value);
}

template <class T>
uint32_t round_pair(float low, float high) {
  return narrow<T>(low) | static_cast<uint32_t>(narrow<T>(high)) << 16;
}

// The sum of two halves or bfloat16 is exact in float, or is rounded twice to the same result.
template <class T>
uint32_t add_pairs(uint32_t a, uint32_t b) {
  auto low = [](uint32_t pair) { return widen<T>(static_cast<uint16_t>(pair)); };
  auto high = [](uint32_t pair) { return widen<T>(static_cast<uint16_t>(pair >> 16)); };
  return round_pair<T>(low(a) + low(b), high(a) + high(b));
}

inline float widen_half(uint16_t bits) { return half_to_float(bits); }

template <class T>
__attribute__((noinline)) void multiply_tiles(
    float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_tiles(
      BITSWEEP_SITE, T::kStorage == Storage::kBFloat16, sum, a, b0, b1);
}

inline uint64_t read_once_policy() { return 0; }
inline void copy_once(void* to, const void* from, uint64_t) { emulator::copy(to, from, 16, 16); }
inline void copy_16(void* to, const void* from, int bytes = 16) {
  emulator::copy(to, from, 16, bytes);
}
inline void copy_8(void* to, const void* from) { emulator::copy(to, from, 8, 8); }

template <int Pending>
void await_copies() {
  emulator::await_copies(Pending);
}

inline void keep_order() {}
inline void let_next_begin() {}
inline void await_previous() {}

__attribute__((noinline)) inline void __syncwarp() { emulator::wait_for_warp(BITSWEEP_SITE); }
inline void __syncthreads() { emulator::wait_for_block(0, 0); }
template <int Name>
void barrier(int threads) {
  emulator::wait_for_block(Name, threads);
}

template <class Argument>
cudaError_t launch(
    void (*kernel)(Argument), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t,
    const Argument& argument, bool = false) {
  return emulator::run(blocks, threads, shared_bytes, [&] { kernel(argument); });
}

}  // namespace bitsweep::cuda
