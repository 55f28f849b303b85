// Tiles to the weight [outputs, inputs]: one warp a tile and chunk, each word read once.
#include "intrinsics.cuh"
#include "kernels.h"

namespace bitsweep::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Arguments {
  Weight weight;
  void* out;
  int64_t chunks;
  bool aligned;  // 8 values of a row begin on 16 bytes
};

// Eight neighbours of a row, as many as there are.
template <class T>
__device__ __forceinline__ void store_eight(
    const Arguments& p, int64_t row, int64_t k, const float (&values)[8]) {
  auto* to = static_cast<uint16_t*>(p.out) + row * p.weight.inputs + k;
  uint4 pairs;
  pairs.x = round_pair<T>(values[0], values[1]);
  pairs.y = round_pair<T>(values[2], values[3]);
  pairs.z = round_pair<T>(values[4], values[5]);
  pairs.w = round_pair<T>(values[6], values[7]);
  if (p.aligned) {
    *reinterpret_cast<uint4*>(to) = pairs;
    return;
  }
  const uint32_t words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
  for (int e = 0; e < 8; e++)
    if (k + e < p.weight.inputs) to[e] = static_cast<uint16_t>(words[e / 2] >> (16 * (e % 2)));
}

template <>
__device__ __forceinline__ void store_eight<float>(
    const Arguments& p, int64_t row, int64_t k, const float (&values)[8]) {
  float* to = static_cast<float*>(p.out) + row * p.weight.inputs + k;
  if (p.aligned) {
    reinterpret_cast<float4*>(to)[0] = {values[0], values[1], values[2], values[3]};
    reinterpret_cast<float4*>(to)[1] = {values[4], values[5], values[6], values[7]};
    return;
  }
#pragma unroll
  for (int e = 0; e < 8; e++)
    if (k + e < p.weight.inputs) to[e] = values[e];
}

// One lane's four words of each unit hold inputs 8t .. 8t + 7 of every block of its row.
template <class T, int Bits>
__global__ void __launch_bounds__(kThreads) write_values(const __grid_constant__ Arguments p) {
  const Weight& w = p.weight;
  constexpr int kUnits = chunk_units(Bits);
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, quarter = lane % 4;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t tile = item / p.chunks, chunk = item % p.chunks;
  const int64_t output = tile * kTileRows + row;
  if (output >= w.outputs) return;

  uint32_t words[4][kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    uint4 four = {0, 0, 0, 0};
    const int64_t unit = chunk * kUnits + u;
    if (unit < w.units)
      four = reinterpret_cast<const uint4*>(w.tiles)[(tile * w.units + unit) * 32 + lane];
    words[0][u] = four.x, words[1][u] = four.y, words[2][u] = four.z, words[3][u] = four.w;
  }
#pragma unroll
  for (int i = 0; i < chunk_blocks(Bits); i++) {
    const int64_t block = chunk * chunk_blocks(Bits) + i, k = block * kBlock + 8 * quarter;
    if (k >= w.inputs) continue;
    const int64_t at = (tile * w.groups + block / w.group_blocks) * kTileRows + row;
    const float scale = load_as_float(w.scales, w.scale_storage, at);
    const float zero = w.zeros ? static_cast<float>(w.zeros[at]) : 0.0f;
    const float negative = w.negative ? load_as_float(w.negative, w.scale_storage, at) : 0.0f;
    float values[8];
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const uint32_t code = code_at(words[e / 2], 1, Bits, i, e % 2);
      values[e] = w.zeros ? uniform_value(static_cast<float>(code), zero, scale)
                          : ternary_value(code, negative, scale);
    }
    store_eight<T>(p, output, k, values);
  }
}

template <int Bits>
cudaError_t write_all(const Arguments& p, Storage storage, cudaStream_t stream) {
  const int64_t blocks = (tiles_for(p.weight.outputs) * p.chunks + kWarps - 1) / kWarps;
  switch (storage) {
    case Storage::kFloat16:
      return launch(&write_values<Half, Bits>, blocks, kThreads, 0, stream, p);
    case Storage::kBFloat16:
      return launch(&write_values<BFloat16, Bits>, blocks, kThreads, 0, stream, p);
    default: return launch(&write_values<float, Bits>, blocks, kThreads, 0, stream, p);
  }
}

}  // namespace

cudaError_t dequantize(const Weight& weight, void* out, Storage storage, cudaStream_t stream) {
  if (reinterpret_cast<uintptr_t>(weight.tiles) % 16) return cudaErrorMisalignedAddress;
  const int blocks = chunk_blocks(weight.bits);
  const Arguments p{
      weight, out, (weight.blocks + blocks - 1) / blocks,
      weight.inputs % 8 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0};
  switch (weight.bits) {
    case 2: return write_all<2>(p, storage, stream);
    case 3: return write_all<3>(p, storage, stream);
    case 4: return write_all<4>(p, storage, stream);
    case 8: return write_all<8>(p, storage, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace bitsweep::cuda
