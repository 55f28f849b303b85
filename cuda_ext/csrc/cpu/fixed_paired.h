// Sums of units for fixed_template.h, which includes this, from words of two rows in turn: the words
// take the first step of merging lanes, once for all blocks that they hold, and not the sums of
// every unit. The fewer the bits, the more blocks share it.
//
// Isa is Whole; besides, it has: lower and upper (of every four words of two rows the first two, or
// the other two, row by row), twice<upper> (the same of one row in memory with itself).
#pragma once

namespace bitsweep {
namespace {

constexpr int kPairs = kTileRows / 2;  // of rows

template <int Bits, class Isa>
struct PairedTile {
  using Words = Ints[2][kPairs];  // lower, upper
  Words words;                    // of the last unit that was taken
  Words kept[2];                  // 3 bits: of the two units before the third of a chunk
  const uint32_t* chunk;
  int64_t held;  // units of the tile from this chunk on

  PairedTile(const Weight& weight, int64_t tile)
      : chunk(weight.tiles + tile * weight.units * kUnitWords), held(weight.units) {}

  BITSWEEP_INLINE void begin(int64_t, int64_t) {}

  template <int unit>
  BITSWEEP_INLINE void take() {
    const uint32_t* from = chunk + unit * kUnitWords;
    fetch_ahead(from);
    each_of<kPairs>([&](auto pair) __attribute__((always_inline)) {
      const Ints one = Isa::load(from + 2 * pair * kLanes);
      const Ints other = Isa::load(from + (2 * pair + 1) * kLanes);
      words[0][pair] = Isa::lower(one, other);
      words[1][pair] = Isa::upper(one, other);
    });
  }

  template <int B>
  BITSWEEP_INLINE void take_new() {
    constexpr int unit = unit_of(Bits, B);
    if constexpr (!straddles(Bits, B) && (B == 0 || unit_of(Bits, B - 1) != unit)) {
      if (unit < held) {
        take<unit>();
      } else {  // x is filled up with blocks whose words are left out of the tile
        each_of<kPairs>([&](auto pair) __attribute__((always_inline)) {
          words[0][pair] = words[1][pair] = Isa::zero();
        });
      }
      if constexpr (Bits == 3 && unit < 2) {
        std::memcpy(kept[unit], words, sizeof words);
        // Else GCC keeps them in registers, of which it has too few.
        asm volatile("" : "+m"(kept[unit]));
      }
    }
  }

  // Codes of block B of the chunk, times 2^bit_in_place.
  template <int B>
  BITSWEEP_INLINE Ints codes(int upper, int pair) const {
    const Ints word = words[upper][pair];
    if constexpr (straddles(Bits, B))
      return Isa::top_bits(kept[0][upper][pair], kept[1][upper][pair], word);
    else
      return codes_in<Bits, B>(word);
  }

  template <int U, int B0>
  BITSWEEP_INLINE void sums(const int32_t* x, Ints (&out)[kHalves]) {
    Ints two[2][kPairs];  // plane; pairs of rows
    each_of<U>([&](auto i) __attribute__((always_inline)) {
      constexpr int B = B0 + decltype(i)::value;
      take_new<B>();
      const int32_t* at = x + i * kBlockWords;
      each_of<2>([&](auto upper) __attribute__((always_inline)) {
        constexpr bool begins = B == B0 && decltype(upper)::value == 0;
        const Ints x_high = Isa::template twice<decltype(upper)::value>(at);
        const Ints x_low = Isa::template twice<decltype(upper)::value>(at + kWide);
        each_of<kPairs>([&](auto pair) __attribute__((always_inline)) {
          const Ints code = codes<B>(upper, pair);
          Ints &high = two[0][pair], &low = two[1][pair];
          high = begins ? Isa::pairs(code, x_high) : Isa::add_pairs(high, code, x_high);
          low = begins ? Isa::pairs(code, x_low) : Isa::add_pairs(low, code, x_low);
          asm("" : "+v"(high), "+v"(low));  // as in unit_sums
        });
      });
    });
    Ints four[2][2];  // plane; rows 0 to 3 and 4 to 7
    each_of<2>([&](auto plane) __attribute__((always_inline)) {
      four[plane][0] = Isa::merge_pairs(two[plane][0], two[plane][1]);
      four[plane][1] = Isa::merge_pairs(two[plane][2], two[plane][3]);
    });
    Isa::merge_quarters(four, out);
  }

  BITSWEEP_INLINE void end() {
    chunk += chunk_units(Bits) * kUnitWords;
    held -= chunk_units(Bits);
  }
};

}  // namespace
}  // namespace bitsweep
