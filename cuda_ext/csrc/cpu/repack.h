// GPTQ's words [ceil(in * bits / 32), out] to the kernel layout, tile by tile.
#pragma once

#include "../shared/layout.h"

namespace bitsweep {

// `tiles` holds zeros. A block of 32 inputs is exactly `Bits` words of a column, so the shifts are
// constants once the loops are unrolled.
template <int Bits>
void repack_tiles(
    const uint32_t* qweight, int64_t inputs, int64_t outputs, uint32_t* tiles, int64_t first,
    int64_t end) {
  constexpr uint32_t mask = (1u << Bits) - 1u;
  const int64_t words = (inputs * Bits + 31) / 32, units = units_for(Bits, inputs);
  for (int64_t tile = first; tile < end; tile++) {
    const int64_t n0 = tile * kTileRows;
    const int rows = static_cast<int>(outputs - n0 < kTileRows ? outputs - n0 : kTileRows);
    for (int64_t b = 0; b < blocks_for(inputs); b++) {
      const int i = static_cast<int>(b % chunk_blocks(Bits));
      uint32_t* chunk =
          tiles + (tile * units + b / chunk_blocks(Bits) * chunk_units(Bits)) * kUnitWords;
      const int64_t left = inputs - b * kBlock;
      uint32_t word[Bits][kTileRows] = {};
      for (int w = 0; w < Bits && b * Bits + w < words; w++)
        for (int r = 0; r < rows; r++)
          word[w][r] = qweight[(b * Bits + w) * outputs + n0 + r];
      for (int k = 0; k < kBlock && k < left; k++) {
        const int from = k * Bits / 32, low = k * Bits % 32;
        for (int r = 0; r < rows; r++) {
          uint32_t code = word[from][r] >> low;
          if (low + Bits > 32) code |= word[from + 1 < Bits ? from + 1 : from][r] << (32 - low);
          put_code(chunk + r * kLanes + k / 2, kUnitWords, Bits, i, k % 2, code & mask);
        }
      }
    }
  }
}

}  // namespace bitsweep
