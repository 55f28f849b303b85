// The kernel layout: where the code of output row n and input k lies. Host and device code.
//
// The 32 inputs of a block b are two vectors of 16: the even ones (k = 32 b + 2 lane) and the odd
// ones (k = 32 b + 2 lane + 1). One "unit" is 16 words of 32 bits, 64 bytes, lane by lane; in a
// word, the even code of a block lies in the low half and its odd neighbour 16 bits above it, so
// that a GPU lifts both into a pair of halves with one mask, and a CPU with one shift a vector.
//
//   bits  blocks in a chunk  units in a chunk   even code of block i of the chunk
//   2     8                  1                  unit 0, bits 2i ..
//   4     4                  1                  unit 0, bits 4i ..
//   8     2                  1                  unit 0, bits 8i ..
//   3     16                 3                  unit i / 5, bits 3 (i mod 5) ..; block 15 takes
//                                               bit 15 of each of the three units
//
// Units of 8 rows lie beside each other: word (tile, unit, row, lane) of a tensor
// [ceil(out / 8), units, 8, 16]. A lane of a CUDA warp that loads 16 bytes (lanes 4t .. 4t + 3 of
// row n) holds inputs 8t .. 8t + 7 of every block: the operands of two m16n8k16 products.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define BITSWEEP_HD __host__ __device__ __forceinline__
#else
#define BITSWEEP_HD inline __attribute__((always_inline))
#endif

namespace bitsweep {

constexpr int kLanes = 16;
constexpr int kTileRows = 8;
constexpr int kBlock = 32;
constexpr int kUnitWords = kTileRows * kLanes;  // words of one unit of all rows of a tile

// Blocks of 32 inputs in a chunk, and units (64 bytes a row) that hold them.
BITSWEEP_HD constexpr int chunk_blocks(int bits) { return bits == 3 ? 16 : 16 / bits; }
BITSWEEP_HD constexpr int chunk_units(int bits) { return bits == 3 ? 3 : 1; }

BITSWEEP_HD constexpr int64_t blocks_for(int64_t inputs) { return (inputs + kBlock - 1) / kBlock; }

// Units of one row; the units of an unfinished last chunk that hold no code are left out.
BITSWEEP_HD constexpr int64_t units_for(int bits, int64_t inputs) {
  int64_t blocks = blocks_for(inputs);
  int64_t whole = blocks / chunk_blocks(bits), rest = blocks % chunk_blocks(bits);
  int64_t tail = bits == 3 ? (rest + 4) / 5 : (rest > 0 ? 1 : 0);
  return whole * chunk_units(bits) + (tail > chunk_units(bits) ? chunk_units(bits) : tail);
}

BITSWEEP_HD constexpr int64_t tiles_for(int64_t outputs) {
  return (outputs + kTileRows - 1) / kTileRows;
}

// Unit within the chunk, and lowest bit, of the even code of block i of a chunk; the odd code is
// 16 bits higher. Not for block 15 of 3 bits, whose three bits are the tops of three units.
BITSWEEP_HD constexpr int unit_of(int bits, int i) { return bits == 3 ? i / 5 : 0; }
BITSWEEP_HD constexpr int shift_of(int bits, int i) { return bits == 3 ? 3 * (i % 5) : bits * i; }
BITSWEEP_HD constexpr bool straddles(int bits, int i) { return bits == 3 && i == 15; }

// The code of one lane (odd: 0 or 1) of block i of a chunk; units are `stride` words apart.
BITSWEEP_HD uint32_t code_at(
    const uint32_t* chunk, int64_t stride, int bits, int i, int odd) {
  if (straddles(bits, i)) {
    int bit = 15 + 16 * odd;
    return ((chunk[0] >> bit) & 1u) | (((chunk[stride] >> bit) & 1u) << 1) |
        (((chunk[2 * stride] >> bit) & 1u) << 2);
  }
  uint32_t word = chunk[unit_of(bits, i) * stride];
  return (word >> (shift_of(bits, i) + 16 * odd)) & ((1u << bits) - 1u);
}

// Write one code into words that hold zero bits at its place.
BITSWEEP_HD void put_code(
    uint32_t* chunk, int64_t stride, int bits, int i, int odd, uint32_t code) {
  if (straddles(bits, i)) {
    int bit = 15 + 16 * odd;
    chunk[0] |= (code & 1u) << bit;
    chunk[stride] |= ((code >> 1) & 1u) << bit;
    chunk[2 * stride] |= ((code >> 2) & 1u) << bit;
    return;
  }
  chunk[unit_of(bits, i) * stride] |= code << (shift_of(bits, i) + 16 * odd);
}

// Code k of a GPTQ column: `stride` words apart, a little-endian stream of bits.
BITSWEEP_HD uint32_t stream_code(const uint32_t* column, int64_t stride, int bits, int64_t k) {
  int64_t bit = k * bits;
  int64_t word = bit >> 5;
  int low = static_cast<int>(bit & 31);
  uint32_t code = column[word * stride] >> low;
  if (low + bits > 32) code |= column[(word + 1) * stride] << (32 - low);
  return code & ((1u << bits) - 1u);
}

}  // namespace bitsweep
