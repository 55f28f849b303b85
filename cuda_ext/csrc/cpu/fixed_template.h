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
// Bounds: |hi| <= 2^15 / 2^bit and |lo| <= 2^15, and a lane of 32 bits adds 2 products at each of at
// most 8 visits a unit: below 8 * 2 * 15 * 2^15 < 2^23 for hi and 2^6 times that for lo, and 2^26 for
// both with 8 bits, which have 4 visits and no code above bit 0.
//
// The zero-point leaves the sum while it is whole: (sum of code * v) - zero * (sum of v). What is
// rounded is that difference once (twice where it exceeds 2^24), its product with both scales, and
// the sum of units, put aside every kFoldBlocks blocks.
//
// Whole: I, F (vectors of kWide words and floats), kTogether (rows whose sums registers have room
// for); zero, load, store, add, halves_and, halves_or, halves_shift<n>, words_shift (left),
// add_pairs (sum + pairs of products of halves), floats, nearest, set, every (one float for all
// lanes), mul, fma, fnma, high_halves and low_halves (of even and odd
// numbers), larger (of |floats|), largest, sums_of (of 8 vectors).
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
constexpr int kParts = kLanes / kWide;  // vectors of a block's words

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
// the inputs; then the sums of each lane as floats. Behind all units lie their scales.
constexpr int64_t kBlockWords = 2 * kLanes;
constexpr int64_t unit_words(int64_t blocks) { return blocks * kBlockWords + 2 * kWide; }

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
// x no precision, else where a shift of the word puts it.
constexpr int kShift2 = 8, kShift3 = 9;
constexpr int shift_before(int bits, int i) {
  if (straddles(bits, i)) return 0;
  const int bit = shift_of(bits, i);
  return bits == 8 ? bit : bits == 3 ? (bit >= kShift3 ? kShift3 : 0) : (bit >= 8 ? kShift2 : 0);
}
constexpr int bit_in_place(int bits, int i) {
  return straddles(bits, i) ? 0 : shift_of(bits, i) - shift_before(bits, i);
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
      int32_t* to = at + i * kBlockWords;
      if (i >= count_of(u)) {
        std::memset(to, 0, kBlockWords * sizeof(int32_t));
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
        Whole::store(to, high);
        Whole::store(to + kWide, low);
        const Ints ones = Whole::halves(1), none = Whole::zero();
        sum_high = Whole::add(sum_high, Whole::words_shift(Whole::add_pairs(none, high, ones), bit));
        sum_low = Whole::add(sum_low, Whole::words_shift(Whole::add_pairs(none, low, ones), bit));
      }
    }
    auto* sums = reinterpret_cast<float*>(at + unit * kBlockWords);
    Whole::store_floats(sums, Whole::floats(sum_high));
    Whole::store_floats(sums + kWide, Whole::floats(sum_low));
  }
  return true;
}

// Codes of block B of a chunk, times 2^bit_in_place: of the kWide words at `chunk`.
template <int Bits, int B>
BITSWEEP_INLINE Ints codes_at(const uint32_t* chunk) {
  if constexpr (straddles(Bits, B)) {
    const Ints low = Whole::template halves_shift<15>(Whole::load(chunk));
    const Ints middle = Whole::halves_and(
        Whole::template halves_shift<14>(Whole::load(chunk + kUnitWords)), Whole::halves(2));
    const Ints high = Whole::halves_and(
        Whole::template halves_shift<13>(Whole::load(chunk + 2 * kUnitWords)), Whole::halves(4));
    return Whole::halves_or(Whole::halves_or(low, middle), high);
  } else {
    constexpr int shift = shift_before(Bits, B), bit = bit_in_place(Bits, B);
    Ints word = Whole::load(chunk + unit_of(Bits, B) * kUnitWords);
    if constexpr (shift > 0) word = Whole::template halves_shift<shift>(word);
    if constexpr (shift + bit + Bits == 16 && bit == 0) return word;
    return Whole::halves_and(word, Whole::halves(((1 << Bits) - 1) << bit));
  }
}

// Scales and zero-points of a tile's 8 rows, one group after the other.
struct FixedGrid {
  alignas(32) float group_scale[kTileRows];
  alignas(32) float scale[kTileRows];  // times that of a unit of x
  alignas(32) float zero[kTileRows];
  const Weight& weight;
  int64_t group, left = 0;  // the next group, and blocks until it begins

  BITSWEEP_INLINE FixedGrid(const Weight& weight, int64_t tile)
      : weight(weight), group(tile * weight.groups * kTileRows) {}

  BITSWEEP_INLINE void advance(int64_t blocks, float unit_scale) {
    if (left <= 0) {
      _mm256_store_ps(group_scale, tile_scales(weight.scales, weight.scale_storage, group));
      const __m256i zeros = _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weight.zeros + group)));
      _mm256_store_ps(zero, _mm256_cvtepi32_ps(zeros));
      group += kTileRows;
      left = weight.group_blocks;
    }
    left -= blocks;
    _mm256_store_ps(scale, _mm256_mul_ps(_mm256_load_ps(group_scale), _mm256_set1_ps(unit_scale)));
    asm("" : "+m"(scale), "+m"(zero));  // else GCC takes lanes out of registers, by shuffles
  }
};

// Adds blocks [B0, B0 + U) of a chunk to the sums of a tile's rows, Whole::kTogether at a time.
template <int Bits, int U, int B0>
BITSWEEP_INLINE void add_unit(
    const uint32_t* chunk, const int32_t* x, const float* scale, const float* zero,
    Reals (&sum)[kTileRows]) {
  constexpr int R = Whole::kTogether;
  each_of<kTileRows / R>([&](auto rows) __attribute__((always_inline)) {
    constexpr int row = decltype(rows)::value * R;
    Ints high[R], low[R];
    for (int r = 0; r < R; r++) high[r] = low[r] = Whole::zero();
    each_of<kParts>([&](auto p) __attribute__((always_inline)) {
      constexpr int part = decltype(p)::value;
      each_of<U>([&](auto index) __attribute__((always_inline)) {
        constexpr int i = decltype(index)::value;
        const int32_t* at = x + i * kBlockWords + part * 2 * kWide;
        const Ints x_high = Whole::load(at), x_low = Whole::load(at + kWide);
        for (int r = 0; r < R; r++) {
          const Ints code = codes_at<Bits, B0 + i>(chunk + (row + r) * kLanes + part * kWide);
          high[r] = Whole::add_pairs(high[r], code, x_high);
          low[r] = Whole::add_pairs(low[r], code, x_low);
          // Else GCC adds in another order, for which it has too few registers.
          asm("" : "+v"(high[r]), "+v"(low[r]));
        }
      });
    });
    const auto* x_sums = reinterpret_cast<const float*>(x + U * kBlockWords);
    const Reals x_high = Whole::load_floats(x_sums), x_low = Whole::load_floats(x_sums + kWide);
    each_of<R>([&](auto index) __attribute__((always_inline)) {
      constexpr int r = decltype(index)::value;
      const Reals off = Whole::every(zero + row + r);
      const Reals top = Whole::fnma(off, x_high, Whole::floats(high[r]));
      const Reals rest = Whole::fnma(off, x_low, Whole::floats(low[r]));
      const Reals value = Whole::fma(top, Whole::set(65536.0f), rest);
      sum[row + r] = Whole::fma(Whole::every(scale + row + r), value, sum[row + r]);
    });
  });
}

// Bytes of a tile that are fetched ahead of their use.
constexpr int64_t kAheadBytes = 4096;

template <int Bits, int U>
void fixed_tile(const Product& product, int64_t tile) {
  constexpr int blocks = chunk_blocks(Bits);
  const Weight& weight = product.weight;
  const auto& head = *reinterpret_cast<const FixedHead*>(product.fixed);
  const int32_t* x = product.fixed + kHeadWords;
  const auto* unit_scale = reinterpret_cast<const float*>(x + units_of_row(weight) * unit_words(U));
  const uint32_t* chunk = weight.tiles + tile * weight.units * kUnitWords;
  FixedGrid grid(weight, tile);
  Reals sum[kTileRows];
  each_of<kTileRows>([&](auto r) __attribute__((always_inline)) { sum[r] = Whole::set(0.0f); });
  alignas(64) float total[kTileRows * kWide];
  const auto fold = [&](bool first) __attribute__((always_inline)) {
    each_of<kTileRows>([&](auto index) __attribute__((always_inline)) {
      constexpr int r = decltype(index)::value;
      float* at = total + r * kWide;
      Whole::store_floats(at, first ? sum[r] : Whole::add_floats(Whole::load_floats(at), sum[r]));
      sum[r] = Whole::set(0.0f);
    });
  };
  alignas(64) uint32_t whole[Bits == 3 ? 3 * kUnitWords : 1];
  for (int64_t b = 0; b < weight.blocks; b += blocks) {
    const int64_t count = weight.blocks - b;
    if (b % kFoldBlocks == 0 && b > 0) fold(b == kFoldBlocks);
    const uint32_t* words = chunk;
    if constexpr (Bits == 3) {
      // The last unit of x may be filled up with blocks whose words are left out of the tile.
      const int64_t filled = (count + U - 1) / U * U;
      const int64_t held = units_for(Bits, count * kBlock);
      if (count < blocks && units_for(Bits, filled * kBlock) > held) {
        std::memset(whole, 0, sizeof whole);
        std::memcpy(whole, chunk, held * kUnitWords * sizeof(uint32_t));
        words = whole;
      }
    }
    // The address may lie past the end; a prefetch does not mind.
    const uint32_t* ahead = chunk + kAheadBytes / sizeof(uint32_t);
    for (int line = 0; line < chunk_units(Bits) * kTileRows; line++)
      __builtin_prefetch(ahead + line * kLanes);
    each_of<blocks / U>([&](auto index) __attribute__((always_inline)) {
      constexpr int B0 = decltype(index)::value * U;
      if (B0 >= count) return;
      grid.advance(U, *unit_scale++);
      add_unit<Bits, U, B0>(words, x, grid.scale, grid.zero, sum);
      x += unit_words(U);
    });
    chunk += chunk_units(Bits) * kUnitWords;
  }
  fold(weight.blocks <= kFoldBlocks);
  alignas(32) float y[kTileRows];
  const __m256 part = _mm256_mul_ps(Whole::sums_of(total), _mm256_set1_ps(head.factor[0]));
  _mm256_store_ps(y, _mm256_mul_ps(part, _mm256_set1_ps(head.factor[1])));
  for (int r = 0; r < kTileRows; r++) {
    const int64_t n = tile * kTileRows + r;
    if (n >= weight.outputs) break;
    put_output(product, 0, n, y[r]);
  }
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
