// Products of one row of x by sums of whole numbers, written once over an instruction set. A source
// file defines, in an anonymous namespace, `struct Whole` and includes this header.
//
// x becomes fixed-point once a call (`fix`): in a unit, which is up to 4 blocks of one group, x is
// v * 2^(e - 31), where 2^e lies just above the unit's largest |x|, and v is cut into two planes of
// 16 bits, v = 65536 hi + lo with lo signed. One `and` leaves two codes in the halves of every word,
// which are multiplied by both planes and added in pairs. So the sum of a unit is exact, and no order
// of rows, lanes or threads can change it.
//
// A code is multiplied where it lies, at most 6 bits up, by v / 2^bit; those that lie higher share a
// shift of the word. v has 30 bits at least and so 24 at bit 6: a float of the unit's largest binade
// keeps all of its own.
//
// Bounds: |hi| <= 2^15 / 2^bit and |lo| <= 2^15, and a unit adds 128 products: below 128 * 7 * 2^6 *
// 2^15 < 2^31 for lo (3 bits, the largest code * 2^bit), and 128 * 15 * 2^15 < 2^26 for hi; with 8
// bits 64 * 255 * 2^15 < 2^29 for both, which have no code above bit 0.
//
// The sums of a unit are one number a row for hi and one for lo: the lanes of 8 rows are merged in a
// tree, which takes adders and shuffles where the end of each row by itself would take multipliers,
// which the products need. All of the tree comes at the end of a unit (fixed_plain.h); or, of short
// units with AVX-512, the words take its first step before the products (fixed_paired.h). Both give
// the same bits.
// The zero-point leaves the sums next: (sum of code * v) - zero * (sum of v). What is rounded is both
// sums of a unit where they exceed 2^24, that difference once, its product with both scales, and the
// sums of units, put aside every kFoldBlocks blocks.
//
// Whole: I, F (vectors of kWide words and floats); zero, load, store, add, halves (one number in all),
// halves_and, halves_shift<n>, top_bits (of the halves of three vectors, low to high, from bit kTopsAt
// on: 0 or 6), words_shift (left), pairs (sums of two products of halves), add_pairs (sum + pairs),
// floats, nearest, set, every (a float in memory for all lanes), load_floats, store_floats,
// add_floats, mul, fma, fnma, high_halves and low_halves (of even and odd numbers), larger (of
// |floats|), largest, sum (of all lanes), both (8 floats of hi and 8 of lo); merge_pairs (lanes of 64
// bits of two pairs of rows to those of half as many), merge_quarters; and what one of the two headers
// asks.
#pragma once

#include <cstring>

#include "avx2_scales.h"
#include "kernels.h"
#include "unrolled.h"

namespace bitsweep {
namespace {

using Ints = Whole::I;
using Reals = Whole::F;
constexpr int kWide = Whole::kWide;
constexpr int kParts = kLanes / kWide;          // vectors of a block's words
constexpr int kHalves = 2 * kTileRows / kWide;  // vectors of a hi and a lo of every row of a tile

// Blocks of a unit at most; with 8 bits a chunk has no more.
constexpr int largest_unit(int bits) { return bits == 8 ? 2 : 4; }

// Ternary codes have two scales, hence two sums: the look-up of floats takes fewer operations.
bool has_fixed(const Weight& weight) { return weight.negative == nullptr; }

// Blocks of a unit; they divide a group's, or the row is one group.
int unit_blocks(const Weight& weight) {
  const int largest = largest_unit(weight.bits);
  if (weight.groups == 1 || weight.group_blocks % largest == 0) return largest;
  return weight.group_blocks % 2 == 0 ? 2 : 1;
}

// x of a unit: of every block and part of its lanes hi, then lo, two numbers a word in the order of
// the inputs, each twice for words in pairs of rows; then the sums of hi and of lo as floats, once
// for each row of a tile. Behind all units lie their scales.
constexpr bool is_paired(int64_t blocks) { return kParts == 1 && blocks <= 2; }
constexpr int64_t block_words(int64_t blocks) { return (is_paired(blocks) ? 4 : 2) * kLanes; }
constexpr int64_t kSumWords = 2 * kTileRows;
constexpr int64_t unit_words(int64_t blocks) { return blocks * block_words(blocks) + kSumWords; }

// Before the units: two factors of every output.
struct FixedHead {
  alignas(64) float factor[2];
};
constexpr int64_t kHeadWords = sizeof(FixedHead) / sizeof(int32_t);

int64_t units_of_row(const Weight& weight) {
  const int64_t blocks = unit_blocks(weight);
  return (weight.blocks + blocks - 1) / blocks;
}

int64_t fixed_words(const Weight& weight) {
  if (!has_fixed(weight)) return 0;
  return kHeadWords + units_of_row(weight) * (unit_words(unit_blocks(weight)) + 1);
}

// The bit at which the even code of block i of a chunk is multiplied: where it lies if that costs
// x no precision, else where a shift of the word puts it. With 3 bits the three words of a chunk may
// be shifted by 9, 8 and 7, which puts the bits of the code that straddles them side by side.
constexpr int kShift2 = 8, kShift3 = 9;
constexpr int shift_before(int bits, int i) {
  if (straddles(bits, i)) return 0;
  const int bit = shift_of(bits, i);
  if (bits == 3) return bit < kShift3 ? 0 : kShift3 - (Whole::kTopsAt == 0 ? 0 : unit_of(bits, i));
  return bits == 8 ? bit : bit >= 8 ? kShift2 : 0;
}
constexpr int bit_in_place(int bits, int i) {
  return straddles(bits, i) ? Whole::kTopsAt : shift_of(bits, i) - shift_before(bits, i);
}

float power(int exponent) {  // 2^exponent, of normal numbers
  return bits_to_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// Least e so that |x| * 2^(31 - e) leaves room for a carry from lo to hi, of the bits of |x|.
int exponent_above(int32_t bits) {
  const float roomy = bits_to_float(static_cast<uint32_t>(bits)) * (1.0f + 0x1p-14f);
  const int field = static_cast<int>(float_to_bits(roomy) >> 23);
  return field == 0 ? -126 : field - 126;
}

int32_t largest_bits(const float* x, int64_t count) {
  Ints most = Whole::zero();
  for (int64_t k = 0; k < count; k += kWide) most = Whole::larger(most, x + k);
  return Whole::largest(most);
}

// A plane of a block for words of two rows in turn: as often as they, lower and upper.
template <class Isa = Whole>
void store_twice(int32_t* to, Ints a) {
  if constexpr (kParts == 1) {
    Isa::store(to, Isa::lower(a, a));
    Isa::store(to + kWide, Isa::upper(a, a));
  }
}

// x [blocks * 32] in the order of the lanes to fixed-point; false if a number is not finite.
bool fix(const Weight& weight, const float* x, int32_t* out) {
  constexpr int kInfinite = 0x7f800000, kLift = 100, kSpread = 64;
  const int unit = unit_blocks(weight);
  const int64_t units = units_of_row(weight), words = unit_words(unit);
  auto* head = reinterpret_cast<FixedHead*>(out);
  int32_t* at = out + kHeadWords;
  auto* scale = reinterpret_cast<float*>(at + units * words);
  const auto count_of = [&](int64_t u) {
    const int64_t left = weight.blocks - u * unit;
    return static_cast<int>(left < unit ? left : unit);
  };
  int32_t most = 0;
  for (int64_t u = 0; u < units; u++) {
    const int32_t bits = largest_bits(x + u * unit * kBlock, count_of(u) * kBlock);
    std::memcpy(scale + u, &bits, sizeof bits);
    most = bits > most ? bits : most;
  }
  if (most >= kInfinite) return false;
  // Rows of very small numbers are lifted, so that every factor below is a normal number.
  const int lift = exponent_above(most) < -20 ? kLift : 0;
  const float lifted = power(lift);
  const int top = exponent_above(float_to_bits(bits_to_float(most) * lifted));
  const int exponent = top - 15 - lift;
  head->factor[0] = power(exponent / 2);
  head->factor[1] = power(exponent - exponent / 2);

  const Reals lifting = Whole::set(lifted);
  for (int64_t u = 0; u < units; u++, at += words) {
    const float largest = bits_to_float(float_to_bits(scale[u])) * lifted;
    const int own = exponent_above(float_to_bits(largest));
    const int e = own < top - kSpread ? top - kSpread : own;
    scale[u] = power(e - top - 16);
    Ints sum_high = Whole::zero(), sum_low = sum_high;
    for (int i = 0; i < unit; i++) {
      int32_t* to = at + i * block_words(unit);
      if (i >= count_of(u)) {
        std::memset(to, 0, block_words(unit) * sizeof(int32_t));
        continue;
      }
      const int64_t block = u * unit + i;
      const int bit = bit_in_place(weight.bits, static_cast<int>(block % chunk_blocks(weight.bits)));
      const Reals factor = Whole::set(power(31 - e - bit));
      const auto number = [&](const float* from) __attribute__((always_inline)) {
        return Whole::nearest(Whole::mul(Whole::mul(Whole::load_floats(from), lifting), factor));
      };
      for (int part = 0; part < kParts; part++, to += 2 * kWide) {
        const float* from = x + block * kBlock + part * kWide;
        const Ints even = number(from), odd = number(from + kLanes);
        const Ints high = Whole::high_halves(even, odd), low = Whole::low_halves(even, odd);
        if (is_paired(unit)) {
          store_twice(to, high);
          store_twice(to + 2 * kWide, low);
        } else {
          Whole::store(to, high);
          Whole::store(to + kWide, low);
        }
        const Ints ones = Whole::halves(1);
        sum_high = Whole::add(sum_high, Whole::words_shift(Whole::pairs(high, ones), bit));
        sum_low = Whole::add(sum_low, Whole::words_shift(Whole::pairs(low, ones), bit));
      }
    }
    auto* sums = reinterpret_cast<float*>(at + unit * block_words(unit));
    _mm256_store_ps(sums, _mm256_set1_ps(static_cast<float>(Whole::sum(sum_high))));
    _mm256_store_ps(sums + kTileRows, _mm256_set1_ps(static_cast<float>(Whole::sum(sum_low))));
  }
  return true;
}

// Codes of block B of a chunk, which does not straddle, times 2^bit_in_place: of words of its unit.
template <int Bits, int B>
BITSWEEP_INLINE Ints codes_in(Ints word) {
  constexpr int shift = shift_before(Bits, B), bit = bit_in_place(Bits, B);
  if constexpr (shift > 0) word = Whole::template halves_shift<shift>(word);
  if constexpr (shift + bit + Bits == 16 && bit == 0) return word;
  return Whole::halves_and(word, Whole::halves(((1 << Bits) - 1) << bit));
}

// Scales and zero-points of a tile's rows, one group after the other: of hi, then of lo.
struct FixedGrid {
  Reals scale[kHalves], zero[kHalves];
  const Weight& weight;
  int64_t group, left = 0;  // the next group, and blocks until it begins

  BITSWEEP_INLINE FixedGrid(const Weight& weight, int64_t tile)
      : weight(weight), group(tile * weight.groups * kTileRows) {}

  BITSWEEP_INLINE void advance(int64_t blocks) {
    if (left <= 0) {
      const __m256 low = tile_scales(weight.scales, weight.scale_storage, group);
      const __m256 off = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weight.zeros + group))));
      Whole::both(_mm256_mul_ps(low, _mm256_set1_ps(65536.0f)), low, scale);
      Whole::both(off, off, zero);
      group += kTileRows;
      left = weight.group_blocks;
    }
    left -= blocks;
  }
};

// The unit of a chunk whose words blocks [B0, B0 + U) are the first to use; -1: none.
template <int Bits, int U, int B0>
constexpr int new_unit() {
  constexpr int last = B0 + U - 1, unit = unit_of(Bits, straddles(Bits, last) ? last - 1 : last);
  return B0 == 0 || unit_of(Bits, B0 - 1) != unit ? unit : -1;
}

// Words of a tile that are fetched ahead of their use: 4 KiB. The address may lie past the end of the
// weight; a prefetch does not mind.
constexpr int64_t kAheadWords = 1024;
BITSWEEP_INLINE void fetch_ahead(const uint32_t* unit) {
  for (int row = 0; row < kTileRows; row++)
    __builtin_prefetch(unit + kAheadWords + row * kLanes);
}

// The words of a chunk. With 3 bits the last unit of x may be filled up with blocks whose words are
// left out of the tile: that chunk is copied and filled up, too.
template <int Bits>
struct FilledChunk {
  alignas(64) uint32_t whole[Bits == 3 ? 3 * kUnitWords : 1];

  // With `count` blocks left, of which U make a unit of x.
  BITSWEEP_INLINE const uint32_t* of(const uint32_t* chunk, int64_t count, int64_t U) {
    if constexpr (Bits == 3) {
      const int64_t filled = (count + U - 1) / U * U, held = units_for(Bits, count * kBlock);
      if (count < chunk_blocks(Bits) && units_for(Bits, filled * kBlock) > held) {
        std::memset(whole, 0, sizeof whole);
        std::memcpy(whole, chunk, held * kUnitWords * sizeof(uint32_t));
        return whole;
      }
    }
    return chunk;
  }
};

}  // namespace
}  // namespace bitsweep

#include "fixed_plain.h"
#include "fixed_paired.h"

namespace bitsweep {
namespace {

// What pays for units of U blocks: measured, docs/kernels.md.
template <int Bits, int U>
using Tile = std::conditional_t<
    is_paired(U), PairedTile<Bits, Whole>, PlainTile<Bits, Whole>>;

// The outputs of a tile, of the sums of hi and of lo; all 8 at once where that is all there is to
// do: one by one they took as long as the products of two units.
BITSWEEP_INLINE void put_rows(const Product& product, int64_t tile, const Reals (&total)[kHalves]) {
  const auto& head = *reinterpret_cast<const FixedHead*>(product.fixed);
  alignas(64) float y[2 * kTileRows];
  for (int i = 0; i < kHalves; i++) Whole::store_floats(y + i * kWide, total[i]);
  const __m256 sum = _mm256_add_ps(_mm256_load_ps(y), _mm256_load_ps(y + kTileRows));
  const __m256 found = _mm256_mul_ps(
      _mm256_mul_ps(sum, _mm256_set1_ps(head.factor[0])), _mm256_set1_ps(head.factor[1]));
  const int64_t n = tile * kTileRows, left = product.weight.outputs - n;
  if (left >= kTileRows && product.y_storage == Storage::kFloat32 && product.bias == nullptr) {
    _mm256_storeu_ps(static_cast<float*>(product.y) + n, found);
    return;
  }
  _mm256_store_ps(y, found);
  for (int r = 0; r < kTileRows && r < left; r++) put_output(product, 0, n + r, y[r]);
}

template <int Bits, int U>
void fixed_tile(const Product& product, int64_t tile) {
  constexpr int blocks = chunk_blocks(Bits);
  const Weight& weight = product.weight;
  const int32_t* x = product.fixed + kHeadWords;
  const auto* unit_scale = reinterpret_cast<const float*>(x + units_of_row(weight) * unit_words(U));
  Tile<Bits, U> words(weight, tile);
  FixedGrid grid(weight, tile);
  Reals sum[kHalves], total[kHalves];
  for (int i = 0; i < kHalves; i++) sum[i] = total[i] = Whole::set(0.0f);
  const auto fold = [&]() __attribute__((always_inline)) {
    for (int i = 0; i < kHalves; i++) {
      total[i] = Whole::add_floats(total[i], sum[i]);
      sum[i] = Whole::set(0.0f);
    }
  };
  for (int64_t b = 0; b < weight.blocks; b += blocks) {
    const int64_t count = weight.blocks - b;
    if (b % kFoldBlocks == 0) fold();
    words.begin(count, U);
    each_of<blocks / U>([&](auto index) __attribute__((always_inline)) {
      constexpr int B0 = decltype(index)::value * U;
      if (B0 >= count) return;
      grid.advance(U);
      Ints sums[kHalves];
      words.template sums<U, B0>(x, sums);
      const auto* x_sums = reinterpret_cast<const float*>(x + U * block_words(U));
      const Reals factor = Whole::every(unit_scale++);
      for (int i = 0; i < kHalves; i++) {
        const Reals x_sum = Whole::load_floats(x_sums + i * kWide);
        const Reals value = Whole::fnma(grid.zero[i], x_sum, Whole::floats(sums[i]));
        sum[i] = Whole::fma(Whole::mul(grid.scale[i], factor), value, sum[i]);
      }
      x += unit_words(U);
    });
    words.end();
  }
  fold();
  put_rows(product, tile, total);
}

template <int Bits, int U>
void fixed_tiles(const Product& product, int64_t first, int64_t end) {
  for (int64_t tile = first; tile < end; tile++) fixed_tile<Bits, U>(product, tile);
}

template <int Bits>
void fixed_of(const Product& product, int64_t first, int64_t end) {
  switch (unit_blocks(product.weight)) {
    case 1: return fixed_tiles<Bits, 1>(product, first, end);
    case 2: return fixed_tiles<Bits, 2>(product, first, end);
    default: return fixed_tiles<Bits, largest_unit(Bits)>(product, first, end);
  }
}

bool same_fixed(const Weight& one, const Weight& other) {
  return has_fixed(other) && one.bits == other.bits && unit_blocks(one) == unit_blocks(other);
}

void fixed_linear(const Product& product, int64_t first, int64_t end) {
  switch (product.weight.bits) {
    case 2: return fixed_of<2>(product, first, end);
    case 3: return fixed_of<3>(product, first, end);
    case 4: return fixed_of<4>(product, first, end);
    default: return fixed_of<8>(product, first, end);
  }
}

}  // namespace
}  // namespace bitsweep
