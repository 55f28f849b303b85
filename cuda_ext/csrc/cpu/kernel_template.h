// Values from codes, written once over an instruction set. A source file defines, in an anonymous
// namespace, `struct Isa` and includes this header; the anonymous namespace keeps the linker from
// taking code compiled for one instruction set as the code of another.
//
// Isa: F, I (16 floats, 16 words); zero, load, add, fma, sum, store_interleaved, load_words, shift<n>,
// shift(n), straddled<odd>, scales8, Table<bits> with uniform, ternary and lookup.
#pragma once

#include "kernels.h"
#include "unrolled.h"

namespace bitsweep {
namespace {

// The value tables of R rows for one group after the other.
template <int Bits, int R>
struct Grid {
  using Table = typename Isa::template Table<Bits>;
  Table table[R];
  const Weight& weight;
  int64_t index;  // of the next group of this tile
  int64_t left;   // blocks until the next group begins
  int row;

  BITSWEEP_INLINE Grid(const Weight& weight, int64_t tile, int row)
      : weight(weight), index(tile * weight.groups * kTileRows), left(0), row(row) {}

  // Blocks counted in steps of `count`, which divides the blocks of a group.
  BITSWEEP_INLINE void advance(int64_t count) {
    if (left == 0) {
      next();
      left = weight.group_blocks;
    }
    left -= count;
  }

  BITSWEEP_INLINE void next() {
    float scale[kTileRows], other[kTileRows];
    Isa::scales8(weight.scales, weight.scale_storage, index, scale);
    bool levels = false;
    if constexpr (Bits == 2) {
      levels = weight.negative != nullptr;
      if (levels) {
        Isa::scales8(weight.negative, weight.scale_storage, index, other);
        for (int r = 0; r < R; r++) table[r] = Table::ternary(other[row + r], scale[row + r]);
      }
    }
    if (!levels) {
      Isa::zeros8(weight.zeros + index, other);
      for (int r = 0; r < R; r++) table[r] = Table::uniform(other[row + r], scale[row + r]);
    }
    index += kTileRows;
  }
};

// 16 values of block B of a chunk: its even inputs, or its odd ones.
template <int Bits, int B, int Odd>
BITSWEEP_INLINE typename Isa::F values(
    const uint32_t* chunk, const typename Isa::template Table<Bits>& table) {
  if constexpr (straddles(Bits, B)) {
    return table.lookup(Isa::template straddled<Odd>(
        Isa::load_words(chunk),
        Isa::load_words(chunk + kUnitWords),
        Isa::load_words(chunk + 2 * kUnitWords)));
  } else {
    auto words = Isa::load_words(chunk + unit_of(Bits, B) * kUnitWords);
    return table.lookup(Isa::template shift<shift_of(Bits, B) + 16 * Odd>(words));
  }
}

// The same with the block known only when it runs.
template <int Bits>
BITSWEEP_INLINE typename Isa::F values_at(
    const uint32_t* chunk, const typename Isa::template Table<Bits>& table, int b, int odd) {
  if (straddles(Bits, b))
    return odd ? values<Bits, Bits == 3 ? 15 : 0, 1>(chunk, table)
               : values<Bits, Bits == 3 ? 15 : 0, 0>(chunk, table);
  const auto words = Isa::load_words(chunk + unit_of(Bits, b) * kUnitWords);
  return table.lookup(Isa::shift(words, shift_of(Bits, b) + 16 * odd));
}

template <int Bits>
void dequantize_row(
    const Weight& weight, int64_t tile, int row, void* out, Storage storage) {
  const int64_t n = tile * kTileRows + row;
  const uint32_t* chunk = weight.tiles + tile * weight.units * kUnitWords + row * kLanes;
  Grid<Bits, 1> grid(weight, tile, row);
  float block[kBlock];
  for (int64_t b = 0; b < weight.blocks; b += chunk_blocks(Bits)) {
    for (int i = 0; i < chunk_blocks(Bits) && b + i < weight.blocks; i++) {
      grid.advance(1);
      const auto even = values_at<Bits>(chunk, grid.table[0], i, 0);
      const auto odd = values_at<Bits>(chunk, grid.table[0], i, 1);
      const int64_t first = (b + i) * kBlock, at = n * weight.inputs + first;
      const int64_t count = weight.inputs - first < kBlock ? weight.inputs - first : kBlock;
      if (storage == Storage::kFloat32 && count == kBlock) {
        Isa::store_interleaved(static_cast<float*>(out) + at, even, odd);
        continue;
      }
      Isa::store_interleaved(block, even, odd);
      for (int64_t k = 0; k < count; k++) store_float(out, storage, at + k, block[k]);
    }
    chunk += chunk_units(Bits) * kUnitWords;
  }
}

void dequantize(
    const Weight& weight, void* out, Storage storage, int64_t first, int64_t end) {
  for (int64_t tile = first; tile < end; tile++) {
    for (int row = 0; row < kTileRows && tile * kTileRows + row < weight.outputs; row++) {
      switch (weight.bits) {
        case 2: dequantize_row<2>(weight, tile, row, out, storage); break;
        case 3: dequantize_row<3>(weight, tile, row, out, storage); break;
        case 4: dequantize_row<4>(weight, tile, row, out, storage); break;
        default: dequantize_row<8>(weight, tile, row, out, storage); break;
      }
    }
  }
}

}  // namespace
}  // namespace bitsweep
