// Sums of units for fixed_template.h, which includes this, from words that are turned first: a row
// to a lane, so that a product adds to the sums of its row and the lanes of a unit need no merging.
// It costs a few shuffles for all blocks of a word: the fewer its bits, the more blocks share them.
//
// The lanes of x are two words, which a load repeats without an arithmetic operation, and
// kTilesTogether tiles share it.
//
// Whole: spread (words of x, as many as a turned vector has of a row), turn (a unit of a tile, to
// kTurned vectors), merge (lanes of hi and of lo, to the order of FixedGrid).
#pragma once

namespace bitsweep {
namespace {

constexpr int kTurned = kUnitWords / kWide;  // vectors of a unit of a tile
constexpr int kAcross = kWide / kTileRows;   // words of a row in each

// Whether it pays, for units of U blocks: measured, docs/kernels.md. Not with AVX2, whose products
// take so many operations that merging is a small part.
constexpr bool turns(int bits, int U) { return kParts == 1 && U <= (bits == 8 ? 1 : 2); }

// Units of every tile that are fetched ahead of their use.
constexpr int64_t kAheadUnits = 4;

// Isa is Whole, of which only some instruction sets have what this asks.
template <int Bits, class Isa>
struct TurnedTiles {
  static constexpr int kTiles = kTilesTogether;
  using Words = Ints[chunk_units(Bits)][kTurned];
  Words turned[kTiles];
  const uint32_t* chunk;
  const int64_t stride;  // words of a tile
  const int64_t ahead;   // words that are fetched ahead in a tile
  int64_t held;          // units from this chunk on

  TurnedTiles(const Weight& weight, int64_t tile)
      : chunk(weight.tiles + tile * weight.units * kUnitWords),
        stride(weight.units * kUnitWords),
        ahead((weight.units < kAheadUnits ? weight.units : kAheadUnits) * kUnitWords),
        held(weight.units) {}

  BITSWEEP_INLINE void begin(int64_t, int64_t) {}

  // Codes of block B of the chunk, times 2^bit_in_place, in one of the turned vectors.
  template <int B>
  static BITSWEEP_INLINE Ints codes(const Words& words, int j) {
    if constexpr (straddles(Bits, B)) {
      return Whole::top_bits(words[0][j], words[1][j], words[2][j]);
    } else {
      return codes_in<Bits, B>(words[unit_of(Bits, B)][j]);
    }
  }

  template <int unit>
  BITSWEEP_INLINE void take() {
    if (unit < held) {
      // Tiles are short: behind the end of one lies what this strip reads already.
      const bool within = (held - unit) * kUnitWords > ahead;
      const int64_t step = within ? ahead : ahead + (kTiles - 1) * stride;
      for (int t = 0; t < kTiles; t++) {
        const uint32_t* from = chunk + t * stride + unit * kUnitWords;
        fetch_ahead(from + step);
        Isa::turn(from, turned[t][unit]);
      }
    } else {  // x is filled up with blocks whose words are left out of the tile
      for (int t = 0; t < kTiles; t++) std::memset(turned[t][unit], 0, sizeof turned[t][unit]);
    }
  }

  template <int U, int B0>
  BITSWEEP_INLINE void sums(const int32_t* x, Ints (&out)[kTiles][kHalves]) {
    constexpr int unit = new_unit<Bits, U, B0>();
    if constexpr (unit >= 0) take<unit>();
    Ints high[kTiles], low[kTiles];
    each_of<kTiles>([&](auto t) __attribute__((always_inline)) {
      high[t] = low[t] = Whole::zero();
    });
    // Else GCC keeps what it shifts for the next unit, for which it has too few registers.
    asm volatile("" : : "r"(turned) : "memory");
#pragma GCC unroll 1
    for (int j = 0; j < kTurned; j++) {
      each_of<U>([&](auto i) __attribute__((always_inline)) {
        const int32_t* at = x + i * kBlockWords + j * kAcross;
        const Ints x_high = Isa::spread(at), x_low = Isa::spread(at + kWide);
        each_of<kTiles>([&](auto t) __attribute__((always_inline)) {
          const Ints code = codes<B0 + i>(turned[t], j);
          high[t] = Whole::add_pairs(high[t], code, x_high);
          low[t] = Whole::add_pairs(low[t], code, x_low);
          asm("" : "+v"(high[t]), "+v"(low[t]));  // as in unit_sums
        });
      });
    }
    each_of<kTiles>([&](auto t) __attribute__((always_inline)) {
      Isa::merge(high[t], low[t], out[t]);
    });
  }

  BITSWEEP_INLINE void end() {
    chunk += chunk_units(Bits) * kUnitWords;
    held -= chunk_units(Bits);
  }
};

}  // namespace
}  // namespace bitsweep
