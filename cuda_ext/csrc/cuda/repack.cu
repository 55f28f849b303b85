// GPTQ's words [ceil(inputs * bits / 32), outputs] to tiles: one warp a tile and chunk, each lane the
// words that it would multiply with. Eight neighbouring outputs are one sector of a row of words.
#include "intrinsics.cuh"
#include "kernels.h"

namespace bitsweep::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Arguments {
  const uint32_t* qweight;
  uint32_t* tiles;
  int64_t inputs, outputs, units, chunks;
};

// Eight codes 8t .. 8t + 7 of a block of an output, lowest first; 0 past the row and the last output.
template <int Bits>
__device__ __forceinline__ uint64_t eight_codes(
    const Arguments& p, int64_t block, int quarter, int64_t output) {
  const int64_t left = p.inputs - block * kBlock - 8 * quarter;
  if (left <= 0 || output >= p.outputs) return 0;
  const int64_t bit = block * kBlock * Bits + 8 * quarter * Bits;
  const int64_t word = bit / 32, words = (p.inputs * Bits + 31) / 32;
  const int low = static_cast<int>(bit % 32);
  uint64_t codes = p.qweight[word * p.outputs + output];
  if (low + 8 * Bits > 32 && word + 1 < words)
    codes |= static_cast<uint64_t>(p.qweight[(word + 1) * p.outputs + output]) << 32;
  codes >>= low;
  const int bits = left < 8 ? static_cast<int>(left) * Bits : 8 * Bits;
  return bits == 64 ? codes : codes & ((uint64_t{1} << bits) - 1);
}

template <int Bits>
__global__ void __launch_bounds__(kThreads) write_tiles(const __grid_constant__ Arguments p) {
  constexpr int kUnits = chunk_units(Bits);
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, quarter = lane % 4;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int64_t tile = item / p.chunks, chunk = item % p.chunks;
  if (tile >= tiles_for(p.outputs)) return;
  uint32_t words[4][kUnits] = {};
#pragma unroll
  for (int i = 0; i < chunk_blocks(Bits); i++) {
    const uint64_t codes = eight_codes<Bits>(
        p, chunk * chunk_blocks(Bits) + i, quarter, tile * kTileRows + row);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const auto code = static_cast<uint32_t>(codes >> (e * Bits)) & ((1u << Bits) - 1u);
      put_code(words[e / 2], 1, Bits, i, e % 2, code);
    }
  }
#pragma unroll
  for (int u = 0; u < kUnits; u++) {
    const int64_t unit = chunk * kUnits + u;
    if (unit < p.units)
      reinterpret_cast<uint4*>(p.tiles)[(tile * p.units + unit) * 32 + lane] = {
          words[0][u], words[1][u], words[2][u], words[3][u]};
  }
}

}  // namespace

cudaError_t repack(
    const uint32_t* qweight, int bits, int64_t inputs, int64_t outputs, uint32_t* tiles,
    cudaStream_t stream) {
  if (reinterpret_cast<uintptr_t>(tiles) % 16) return cudaErrorMisalignedAddress;
  const int64_t blocks = chunk_blocks(bits);
  const Arguments p{
      qweight, tiles, inputs, outputs, units_for(bits, inputs),
      (blocks_for(inputs) + blocks - 1) / blocks};
  const int64_t grid = (tiles_for(outputs) * p.chunks + kWarps - 1) / kWarps;
  switch (bits) {
    case 2: return launch(&write_tiles<2>, grid, kThreads, 0, stream, p);
    case 3: return launch(&write_tiles<3>, grid, kThreads, 0, stream, p);
    case 4: return launch(&write_tiles<4>, grid, kThreads, 0, stream, p);
    case 8: return launch(&write_tiles<8>, grid, kThreads, 0, stream, p);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace bitsweep::cuda
