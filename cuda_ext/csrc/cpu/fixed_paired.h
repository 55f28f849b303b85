// Sums of units for fixed_template.h, which includes this, from words of two rows in turn: the words
// take the first step of merging lanes, once for all blocks that they hold, and not the sums of
// every unit. The fewer the bits, the more blocks share it. x lies as often (fixed_template.h).
//
// Isa is Whole; besides, it has: lower and upper (of every four words of two rows the first two, or
// the other two, row by row).
#pragma once

namespace bitsweep {
namespace {

constexpr int kPairs = kTileRows / 2;  // of rows

template <int Bits, class Isa>
struct PairedTile {
  using Words = Ints[2][kPairs];  // lower, upper
  Words words;  // of the last unit that was taken
  FilledChunk<Bits> filled;
  const uint32_t *chunk, *held;  // held: the chunk with all words that x asks for

  PairedTile(const Weight& weight, int64_t tile)
      : chunk(weight.tiles + tile * weight.units * kUnitWords) {}

  BITSWEEP_INLINE void begin(int64_t count, int64_t U) { held = filled.of(chunk, count, U); }

  // Words of block B, of a row: those of its unit, or its codes where they straddle.
  template <int B>
  BITSWEEP_INLINE Ints words_of(int row) const {
    const uint32_t* at = held + row * kLanes;
    if constexpr (straddles(Bits, B))
      return Isa::top_bits(
          Isa::load(at), Isa::load(at + kUnitWords), Isa::load(at + 2 * kUnitWords));
    else
      return Isa::load(at + unit_of(Bits, B) * kUnitWords);
  }

  template <int B>
  BITSWEEP_INLINE void take_new() {
    constexpr int unit = unit_of(Bits, B);
    if constexpr (B == 0 || straddles(Bits, B) || unit_of(Bits, B - 1) != unit) {
      if constexpr (!straddles(Bits, B)) fetch_ahead(chunk + unit * kUnitWords);
      each_of<kPairs>([&](auto pair) __attribute__((always_inline)) {
        const Ints one = words_of<B>(2 * pair), other = words_of<B>(2 * pair + 1);
        words[0][pair] = Isa::lower(one, other);
        words[1][pair] = Isa::upper(one, other);
      });
    }
  }

  // Codes of block B of the chunk, times 2^bit_in_place.
  template <int B>
  BITSWEEP_INLINE Ints codes(int upper, int pair) const {
    const Ints word = words[upper][pair];
    if constexpr (straddles(Bits, B)) return word;
    else return codes_in<Bits, B>(word);
  }

  template <int U, int B0>
  BITSWEEP_INLINE void sums(const int32_t* x, Ints (&out)[kHalves]) {
    Ints two[2][kPairs];  // plane; pairs of rows
    each_of<U>([&](auto i) __attribute__((always_inline)) {
      constexpr int B = B0 + decltype(i)::value;
      take_new<B>();
      const int32_t* at = x + i * block_words(U);
      each_of<2>([&](auto upper) __attribute__((always_inline)) {
        constexpr bool begins = B == B0 && decltype(upper)::value == 0;
        Ints x_high = Isa::load(at + upper * kWide), x_low = Isa::load(at + (2 + upper) * kWide);
        asm("" : "+v"(x_high), "+v"(x_low));  // else some are loaded for every product
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

  BITSWEEP_INLINE void end() { chunk += chunk_units(Bits) * kUnitWords; }
};

}  // namespace
}  // namespace bitsweep
