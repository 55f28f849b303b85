// Sums of units for fixed_template.h, which includes this, from the words of a tile as they lie: a
// lane has a word of one row, and the lanes of 8 rows are merged at the end of every unit.
//
// Isa is Whole; besides, it has: kTogether (rows whose sums registers have room for, 2 or 4),
// merge_words (lanes of 32 bits of two rows to those of half as many).
#pragma once

namespace bitsweep {
namespace {

// Codes of block B of a chunk, times 2^bit_in_place: of the kWide words at `chunk`.
template <int Bits, int B>
BITSWEEP_INLINE Ints codes_at(const uint32_t* chunk) {
  if constexpr (straddles(Bits, B)) {
    return Whole::top_bits(
        Whole::load(chunk), Whole::load(chunk + kUnitWords), Whole::load(chunk + 2 * kUnitWords));
  } else {
    return codes_in<Bits, B>(Whole::load(chunk + unit_of(Bits, B) * kUnitWords));
  }
}

// Sums of codes * v of blocks [B0, B0 + U) of a chunk: hi of a tile's rows, then lo.
template <int Bits, int U, int B0, class Isa>
BITSWEEP_INLINE void unit_sums(const uint32_t* chunk, const int32_t* x, Ints (&sums)[kHalves]) {
  constexpr int R = Isa::kTogether;
  Ints four[2][2];  // plane; rows 0 to 3 and 4 to 7
  each_of<2>([&](auto half) __attribute__((always_inline)) {
    constexpr int first = decltype(half)::value * 4;
    Ints two[2][2];
    each_of<4 / R>([&](auto rows) __attribute__((always_inline)) {
      constexpr int row = decltype(rows)::value * R;
      Ints high[R], low[R];
      each_of<kParts>([&](auto p) __attribute__((always_inline)) {
        constexpr int part = decltype(p)::value;
        each_of<U>([&](auto index) __attribute__((always_inline)) {
          constexpr int i = decltype(index)::value;
          const int32_t* at = x + i * block_words(U) + part * 2 * kWide;
          const Ints x_high = Isa::load(at), x_low = Isa::load(at + kWide);
          for (int r = 0; r < R; r++) {
            const Ints code =
                codes_at<Bits, B0 + i>(chunk + (first + row + r) * kLanes + part * kWide);
            const bool begins = part == 0 && i == 0;
            high[r] = begins ? Isa::pairs(code, x_high) : Isa::add_pairs(high[r], code, x_high);
            low[r] = begins ? Isa::pairs(code, x_low) : Isa::add_pairs(low[r], code, x_low);
            // Else GCC adds in another order, for which it has too few registers.
            asm("" : "+v"(high[r]), "+v"(low[r]));
          }
        });
      });
      each_of<R / 2>([&](auto index) __attribute__((always_inline)) {
        constexpr int r = 2 * decltype(index)::value;
        two[0][(row + r) / 2] = Isa::merge_words(high[r], high[r + 1]);
        two[1][(row + r) / 2] = Isa::merge_words(low[r], low[r + 1]);
      });
    });
    four[0][first / 4] = Isa::merge_pairs(two[0][0], two[0][1]);
    four[1][first / 4] = Isa::merge_pairs(two[1][0], two[1][1]);
  });
  Isa::merge_quarters(four, sums);
}

// Sums of units of one tile, from its words as they lie.
template <int Bits, class Isa>
struct PlainTile {
  FilledChunk<Bits> filled;
  const uint32_t *chunk, *words;

  PlainTile(const Weight& weight, int64_t tile)
      : chunk(weight.tiles + tile * weight.units * kUnitWords) {}

  BITSWEEP_INLINE void begin(int64_t count, int64_t U) { words = filled.of(chunk, count, U); }

  template <int U, int B0>
  BITSWEEP_INLINE void sums(const int32_t* x, Ints (&out)[kHalves]) {
    constexpr int unit = new_unit<Bits, U, B0>();
    if constexpr (unit >= 0) fetch_ahead(chunk + unit * kUnitWords);
    unit_sums<Bits, U, B0, Isa>(words, x, out);
  }

  BITSWEEP_INLINE void end() { chunk += chunk_units(Bits) * kUnitWords; }
};

}  // namespace
}  // namespace bitsweep
