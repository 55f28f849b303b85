// Runs the CUDA kernels on the CPU: in place of the instructions of csrc/cuda/intrinsics.cuh.
//
// Every thread of a block is a fiber; it runs until it must wait for others. Instructions of a whole
// warp need all 32 lanes at the same place. Asynchronous copies spoil their target when they are
// issued and arrive when they are waited for; shared memory begins spoilt (all bits set: NaN, codes
// of ones), ends at a page that cannot be touched, and so does every buffer of the tests. In which
// order threads run is the test's choice. Reads and writes of shared memory by threads that no barrier
// orders are races, whatever the order. What is wrong ends the launch with an error that says so.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>

#include "../../../cuda_ext/csrc/shared/dequantize.h"
#include "cuda_runtime_api.h"

namespace bitsweep::emulator {

struct DeviceShape {
  int multiprocessors, block_shared, shared;
};

// Make a device of this shape the current one; threads run forwards (0), backwards (1), or in a
// random order that begins with this seed.
void use_device(const DeviceShape& shape, uint64_t order);

// Shared memory begins here; anything below is a mistake.
constexpr uint32_t kSharedBase = 1024;

const std::string& last_error();
int64_t launches();  // since use_device

cudaError_t run(
    int64_t blocks, int threads, size_t shared_bytes, const std::function<void()>& thread);

// The thread that runs now.
Index thread_index();
Index block_index();
// Where `size` bytes at an address of shared memory lie, for a read or a write of this thread.
char* shared_bytes(uint32_t address, int size, bool write);
void copy(uint32_t to, const void* from, int size, int bytes);
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
using std::max;
using std::min;

using Shared = uint32_t;
inline Shared shared_memory() { return emulator::kSharedBase; }

template <class Value>
Value load(Shared from) {
  Value value;
  std::memcpy(&value, emulator::shared_bytes(from, sizeof value, false), sizeof value);
  return value;
}
template <class Value>
void store(Shared to, Value value) {
  std::memcpy(emulator::shared_bytes(to, sizeof value, true), &value, sizeof value);
}
inline uint4 load_16(Shared from) { return load<uint4>(from); }
inline float load_float(Shared from) { return load<float>(from); }
inline uint16_t load_2(Shared from) { return load<uint16_t>(from); }
inline uint32_t load_1(Shared from) { return load<uint8_t>(from); }
inline void store_16(Shared to, uint4 value) { store(to, value); }
inline void store_float(Shared to, float value) { store(to, value); }

inline uint32_t mask_or(uint32_t word, uint32_t mask, uint32_t bits) { return (word & mask) | bits; }
inline int read_thread_index() { return static_cast<int>(emulator::thread_index().x); }

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
inline void copy_once(Shared to, const void* from, uint64_t) { emulator::copy(to, from, 16, 16); }
inline void copy_16(Shared to, const void* from, int bytes = 16) {
  emulator::copy(to, from, 16, bytes);
}
inline void copy_8(Shared to, const void* from) { emulator::copy(to, from, 8, 8); }

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
