// From codes to values with AVX2.
//
// A code becomes its value, scale * (code - zero) rounded once, in one of three ways:
//   table   shift, look-up among 4 floats within a quarter of the register, or among 8
//   places  mask, conversion of code * 2^bit, one fused product with a scale that takes the power
//           of two off: fewest operations, but a load more, which several rows of x do not leave
//   bytes   a byte shuffle (4 bits: of nibbles that were parted), conversion, one fused product
// The fused product is exact where scales have 16 bits; float32 ones take a difference and a
// product.
#pragma once

#include "kernels.h"
#include "unrolled.h"

namespace bitsweep {
namespace {

// Blocks of a step.
constexpr int largest_step(int bits) { return bits == 8 ? 2 : 4; }

enum class Way { kTable, kPlaces, kBytes };

// For M rows of x; Exact: scales have 16 bits, so that scale * code and scale * zero are exact in
// float32.
constexpr Way way_of(int bits, int m, bool exact) {
  if (bits == 2) return Way::kTable;
  if (exact && m == 1 && bits < 8) return Way::kPlaces;
  return bits == 3 ? Way::kTable : Way::kBytes;
}

// Places of a code in a word, each with its own scale; the sign bit is left out.
constexpr int places(int bits) { return bits == 3 ? 10 : 7; }
constexpr int bit_of(int bits, int place) {
  return bits == 3 ? 3 * (place % 5) + 16 * (place / 5) : bits * place;
}
constexpr int place_of(int bits, int bit) {
  return bits == 3 ? bit % 16 / 3 + bit / 16 * 5 : bit / bits;
}

// What turns the codes of 8 rows into values, for as many groups as a step has.
template <int Bits, int Slots, Way way, bool Exact>
struct Levels {
  static constexpr int kEntries = Bits == 2 ? 4 : 8;
  struct Slot {
    // Tables of the rows, or the rows' scales: of every place, or once.
    alignas(32) float level
        [kTileRows * (way == Way::kTable ? kEntries : way == Way::kPlaces ? places(Bits) : 1)];
    alignas(32) float zero[kTileRows];  // Exact: -scale * zero
  };
  Slot slot[Slots];
  const Weight& weight;
  int64_t index;     // of the next group of this tile
  int64_t left = 0;  // blocks until the next group begins

  Levels(const Weight& weight, int64_t tile)
      : weight(weight), index(tile * weight.groups * kTileRows) {}

  // The next `count` blocks, which are of one group, are those of a slot.
  BITSWEEP_INLINE void advance(int at, int64_t count) {
    if (left == 0) {
      next(slot[at]);
      left = weight.group_blocks;
    } else if (at > 0) {
      slot[at] = slot[at - 1];
    }
    left -= count;
  }

  // Between two steps: a group that goes on is that of the first slot.
  BITSWEEP_INLINE void keep_last() {
    if (Slots > 1 && left > 0) slot[0] = slot[Slots - 1];
  }

  void next(Slot& to) {
    alignas(32) float scale[kTileRows];
    Isa::scales8(weight.scales, weight.scale_storage, index, scale);
    if constexpr (Bits == 2) {
      if (weight.negative != nullptr) {
        Isa::scales8(weight.negative, weight.scale_storage, index, to.zero);
        for (int r = 0; r < kTileRows; r++) {
          float* level = to.level + r * kEntries;
          level[0] = -to.zero[r];
          level[1] = level[3] = 0.0f;
          level[2] = scale[r];
        }
        index += kTileRows;
        return;
      }
    }
    Isa::zeros8(weight.zeros + index, to.zero);
    index += kTileRows;
    if constexpr (way == Way::kTable) {
      for (int r = 0; r < kTileRows; r++)
        for (int code = 0; code < kEntries; code++)
          to.level[r * kEntries + code] = scale[r] * (static_cast<float>(code) - to.zero[r]);
      return;
    }
    if constexpr (way == Way::kPlaces) {
      each_of<places(Bits)>([&](auto place) __attribute__((always_inline)) {
        constexpr int at = decltype(place)::value;
        constexpr float factor = 1.0f / static_cast<float>(1u << bit_of(Bits, at));
        for (int r = 0; r < kTileRows; r++) to.level[at * kTileRows + r] = scale[r] * factor;
      });
    } else {
      for (int r = 0; r < kTileRows; r++) to.level[r] = scale[r];
    }
    if (Exact)
      for (int r = 0; r < kTileRows; r++) to.zero[r] = -(scale[r] * to.zero[r]);
  }
};

// A step's words of one row, 8 of its 16 lanes.
BITSWEEP_INLINE __m256i words_at(const uint32_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// What turns the codes of one row into values.
template <int Bits, Way way, bool Exact>
struct RowLevels {
  const float* level;
  __m256 table;  // bytes: the scale
  __m256 zero;

  template <class Slot>
  BITSWEEP_INLINE RowLevels(const Slot& slot, int row) {
    if constexpr (Bits == 2) {
      table = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(slot.level + row * 4));
    } else if constexpr (way == Way::kTable) {
      table = _mm256_load_ps(slot.level + row * 8);
    } else {
      level = slot.level + row;
      if constexpr (way == Way::kBytes) table = _mm256_broadcast_ss(level);
      zero = _mm256_broadcast_ss(slot.zero + row);
    }
  }

  // 8 values of codes whose lowest bit is bit 0; of a table the bits above do not matter.
  BITSWEEP_INLINE __m256 of_low(__m256i code) const {
    if constexpr (Bits == 2) return _mm256_permutevar_ps(table, code);
    else if constexpr (way == Way::kTable) return _mm256_permutevar8x32_ps(table, code);
    else return of_kept<0>(_mm256_and_si256(code, _mm256_set1_epi32((1 << Bits) - 1)));
  }

  // 8 values of codes that are alone in their words, at a place.
  template <int Place>
  BITSWEEP_INLINE __m256 of_kept(__m256i word) const {
    const __m256 code = _mm256_cvtepi32_ps(word);
    if constexpr (way == Way::kPlaces)
      return _mm256_fmadd_ps(code, _mm256_broadcast_ss(level + Place * kTileRows), zero);
    else if constexpr (Exact) return _mm256_fmadd_ps(code, table, zero);
    else return _mm256_mul_ps(table, _mm256_sub_ps(code, zero));
  }

  // 8 values at a bit that is known only when it runs; none that straddles words.
  BITSWEEP_INLINE __m256 shifted(const uint32_t* words, int bit) const {
    return of_low(_mm256_srl_epi32(words_at(words), _mm_cvtsi32_si128(bit)));
  }

  // 8 values of block B of a chunk.
  template <int B, int Odd>
  BITSWEEP_INLINE __m256 values(const uint32_t* chunk) const {
    if constexpr (straddles(Bits, B)) {
      return of_low(
          Isa::template straddled<Odd>(
              words_at(chunk), words_at(chunk + kUnitWords), words_at(chunk + 2 * kUnitWords)));
    } else {
      constexpr int bit = shift_of(Bits, B) + 16 * Odd;
      __m256i word = words_at(chunk + unit_of(Bits, B) * kUnitWords);
      if constexpr (way == Way::kTable) {
        return of_low(_mm256_srli_epi32(word, bit));
      } else if constexpr (way == Way::kPlaces) {
        constexpr bool top = bit + Bits == 32;  // one place lower the sign bit is clear
        constexpr int low = top ? bit - Bits : bit;
        if constexpr (top) word = _mm256_srli_epi32(word, Bits);
        constexpr int mask = static_cast<int>(((1u << Bits) - 1u) << low);
        return of_kept<place_of(Bits, low)>(_mm256_and_si256(word, _mm256_set1_epi32(mask)));
      } else {
        if constexpr (Bits == 4) {
          if constexpr (bit % 8 != 0) word = _mm256_srli_epi32(word, 4);
          word = _mm256_and_si256(word, _mm256_set1_epi32(0x0f0f0f0f));
        }
        // Byte `bit / 8` of every word, alone.
        constexpr int first = static_cast<int>(0x80808000u) + bit / 8;
        const __m256i bytes = _mm256_setr_epi32(
            first, first + 4, first + 8, first + 12, first, first + 4, first + 8, first + 12);
        return of_kept<0>(_mm256_shuffle_epi8(word, bytes));
      }
    }
  }
};

}  // namespace
}  // namespace bitsweep
