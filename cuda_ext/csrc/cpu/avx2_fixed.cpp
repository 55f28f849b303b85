// Products of one row of x by sums of whole numbers, with AVX2.
//
// x becomes fixed-point once a call (`fix`): in a unit, which is up to 4 blocks of one group, x is
// v * 2^(e - 31), where 2^e lies just above the unit's largest |x|, and v is cut into two planes of
// 16 bits, v = 65536 hi + lo with lo signed. One `and` leaves 16 codes in the halves of 8 words, and
// two `vpmaddwd` multiply them by both planes and add pairs. So the sum of a unit is exact, and no
// order of rows, lanes or threads can change it.
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
#if defined(__x86_64__)
#include "avx2_fixed.h"

#include <immintrin.h>

#include <cstring>

#include "avx2_scales.h"
#include "unrolled.h"

namespace bitsweep {
namespace {

// Blocks of a unit at most; with 8 bits a chunk has no more.
constexpr int largest_unit(int bits) { return bits == 8 ? 2 : 4; }

BITSWEEP_INLINE __m256i words_at(const uint32_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// Ternary codes have two scales, hence two sums: the look-up of floats takes fewer operations.
bool has_fixed(const Weight& weight) { return weight.negative == nullptr; }

// Blocks of a unit; they divide a group's, or the row is one group.
int unit_blocks(const Weight& weight) {
  const int largest = largest_unit(weight.bits);
  if (weight.groups == 1 || weight.group_blocks % largest == 0) return largest;
  return weight.group_blocks % 2 == 0 ? 2 : 1;
}

// x of a unit: of every block and half of its lanes 16 hi and 16 lo, in the order of the inputs;
// then the sums of each lane. Behind all units lie their scales.
constexpr int64_t kHalfWords = 8;                        // 16 numbers of a plane
constexpr int64_t kBlockWords = 4 * kHalfWords;          // hi, lo of either half
constexpr int64_t unit_words(int64_t blocks) { return blocks * kBlockWords + 2 * kHalfWords; }

// Before the units: two factors of every output.
struct FixedHead {
  alignas(32) float factor[2];
};
static_assert(sizeof(FixedHead) == 32);
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
  const __m256i sign = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  for (int64_t k = 0; k < count; k += 8) {
    const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + k));
    most = _mm256_max_epi32(most, _mm256_and_si256(some, sign));
  }
  alignas(32) int32_t lane[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), most);
  int32_t found = 0;
  for (int i = 0; i < 8; i++) found = lane[i] > found ? lane[i] : found;
  return found;
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

  const __m256i half = _mm256_set1_epi32(0x8000);
  for (int64_t u = 0; u < units; u++, at += words) {
    const float largest = bits_to_float(float_to_bits(scale[u])) * lifted;
    const int own = exponent_above(float_to_bits(largest));
    const int e = own < top - kSpread ? top - kSpread : own;
    scale[u] = power(e - top - 16);
    __m256i sum_high = _mm256_setzero_si256(), sum_low = sum_high;
    for (int i = 0; i < unit; i++) {
      __m256i* to = reinterpret_cast<__m256i*>(at + i * kBlockWords);
      if (i >= count_of(u)) {
        for (int part = 0; part < 4; part++) _mm256_storeu_si256(to + part, _mm256_setzero_si256());
        continue;
      }
      const int64_t block = u * unit + i;
      const int bit = bit_in_place(weight.bits, static_cast<int>(block % chunk_blocks(weight.bits)));
      const __m256 lifting = _mm256_set1_ps(lifted), factor = _mm256_set1_ps(power(31 - e - bit));
      const __m128i place = _mm_cvtsi32_si128(bit);
      for (int h = 0; h < 2; h++) {
        const float* from = x + block * kBlock + 8 * h;
        const __m256 even_x = _mm256_mul_ps(_mm256_loadu_ps(from), lifting);
        const __m256 odd_x = _mm256_mul_ps(_mm256_loadu_ps(from + kLanes), lifting);
        const __m256i even = _mm256_cvtps_epi32(_mm256_mul_ps(even_x, factor));
        const __m256i odd = _mm256_cvtps_epi32(_mm256_mul_ps(odd_x, factor));
        const __m256i even_up = _mm256_add_epi32(even, half), odd_up = _mm256_add_epi32(odd, half);
        const __m256i high =
            _mm256_blend_epi16(_mm256_srli_epi32(even_up, 16), odd_up, 0xaa);
        const __m256i low = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
        _mm256_storeu_si256(to + 2 * h, high);
        _mm256_storeu_si256(to + 2 * h + 1, low);
        const __m256i ones = _mm256_set1_epi16(1);
        sum_high = _mm256_add_epi32(
            sum_high, _mm256_sll_epi32(_mm256_madd_epi16(high, ones), place));
        sum_low =
            _mm256_add_epi32(sum_low, _mm256_sll_epi32(_mm256_madd_epi16(low, ones), place));
      }
    }
    __m256i* sums = reinterpret_cast<__m256i*>(at + unit * kBlockWords);
    _mm256_storeu_si256(sums, sum_high);
    _mm256_storeu_si256(sums + 1, sum_low);
  }
  return true;
}

// 16 codes of block B of a chunk, times 2^bit_in_place: of the words at `chunk`, 8 lanes.
template <int Bits, int B>
BITSWEEP_INLINE __m256i codes_at(const uint32_t* chunk) {
  if constexpr (straddles(Bits, B)) {
    const __m256i low = _mm256_srli_epi16(words_at(chunk), 15);
    const __m256i middle = _mm256_and_si256(
        _mm256_srli_epi16(words_at(chunk + kUnitWords), 14), _mm256_set1_epi16(2));
    const __m256i high = _mm256_and_si256(
        _mm256_srli_epi16(words_at(chunk + 2 * kUnitWords), 13), _mm256_set1_epi16(4));
    return _mm256_or_si256(_mm256_or_si256(low, middle), high);
  } else {
    constexpr int shift = shift_before(Bits, B), bit = bit_in_place(Bits, B);
    __m256i word = words_at(chunk + unit_of(Bits, B) * kUnitWords);
    if constexpr (shift > 0) word = _mm256_srli_epi16(word, shift);
    if constexpr (shift + bit + Bits == 16 && bit == 0) return word;
    return _mm256_and_si256(word, _mm256_set1_epi16(((1 << Bits) - 1) << bit));
  }
}

// The sums of a tile's 8 rows; units of U blocks.
template <int Bits, int U>
struct FixedTile {
  alignas(64) float sum[kTileRows * 8] = {};
  alignas(64) float total[kTileRows * 8] = {};
  alignas(32) float scale[kTileRows];  // of the group
  alignas(32) float both[kTileRows];   // times the unit's
  alignas(32) float zero[kTileRows];
  alignas(32) int32_t whole_zero[kTileRows];

  void fold() {
    for (int i = 0; i < kTileRows * 8; i += 8) {
      _mm256_store_ps(total + i, _mm256_add_ps(_mm256_load_ps(total + i), _mm256_load_ps(sum + i)));
      _mm256_store_ps(sum + i, _mm256_setzero_ps());
    }
  }

  void group(const Weight& weight, int64_t index) {
    _mm256_store_ps(scale, tile_scales(weight.scales, weight.scale_storage, index));
    const __m256i eight = _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weight.zeros + index)));
    _mm256_store_si256(reinterpret_cast<__m256i*>(whole_zero), eight);
    _mm256_store_ps(zero, _mm256_cvtepi32_ps(eight));
  }

  // Blocks [B0, B0 + U) of a chunk for all rows, R at a time.
  template <int B0, int R>
  BITSWEEP_INLINE void unit(const uint32_t* chunk, const int32_t* x, float unit_scale) {
    _mm256_store_ps(both, _mm256_mul_ps(_mm256_load_ps(scale), _mm256_set1_ps(unit_scale)));
    const auto* from = reinterpret_cast<const __m256i*>(x);
    for (int row = 0; row < kTileRows; row += R) {
      __m256i high[R], low[R];
      for (int r = 0; r < R; r++) high[r] = low[r] = _mm256_setzero_si256();
      each_of<2>([&](auto h) __attribute__((always_inline)) {
        constexpr int half = decltype(h)::value;
        each_of<U>([&](auto index) __attribute__((always_inline)) {
          constexpr int i = decltype(index)::value;
          const __m256i x_high = _mm256_load_si256(from + 4 * i + 2 * half);
          const __m256i x_low = _mm256_load_si256(from + 4 * i + 2 * half + 1);
          for (int r = 0; r < R; r++) {
            const __m256i code = codes_at<Bits, B0 + i>(chunk + (row + r) * kLanes + 8 * half);
            high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(code, x_high));
            low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(code, x_low));
            // Else GCC adds in another order, for which it has too few registers.
            asm("" : "+x"(high[r]), "+x"(low[r]));
          }
        });
      });
      const __m256i x_sums[] = {_mm256_loadu_si256(from + 4 * U), _mm256_loadu_si256(from + 4 * U + 1)};
      for (int r = 0; r < R; r++) {
        __m256 top, rest;
        if constexpr (Bits == 8) {  // zero times a sum of x may not fit a float
          const __m256i off = _mm256_set1_epi32(whole_zero[row + r]);
          top = _mm256_cvtepi32_ps(_mm256_sub_epi32(high[r], _mm256_mullo_epi32(off, x_sums[0])));
          rest = _mm256_cvtepi32_ps(_mm256_sub_epi32(low[r], _mm256_mullo_epi32(off, x_sums[1])));
        } else {
          const __m256 off = _mm256_broadcast_ss(zero + row + r);
          top = _mm256_fnmadd_ps(off, _mm256_cvtepi32_ps(x_sums[0]), _mm256_cvtepi32_ps(high[r]));
          rest = _mm256_fnmadd_ps(off, _mm256_cvtepi32_ps(x_sums[1]), _mm256_cvtepi32_ps(low[r]));
        }
        const __m256 value = _mm256_fmadd_ps(top, _mm256_set1_ps(65536.0f), rest);
        float* at = sum + (row + r) * 8;
        _mm256_store_ps(
            at, _mm256_fmadd_ps(_mm256_broadcast_ss(both + row + r), value, _mm256_load_ps(at)));
      }
    }
  }
};

// Sums of 8 lanes each of 8 vectors.
BITSWEEP_INLINE __m256 sums_of(const float* at) {
  const auto row = [&](int r) { return _mm256_load_ps(at + r * 8); };
  const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(row(0), row(1)), _mm256_hadd_ps(row(2), row(3)));
  const __m256 high =
      _mm256_hadd_ps(_mm256_hadd_ps(row(4), row(5)), _mm256_hadd_ps(row(6), row(7)));
  return _mm256_add_ps(
      _mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}

// Bytes of a tile that are fetched ahead of their use.
constexpr int64_t kAheadBytes = 2048;

template <int Bits, int U>
void fixed_tile(const Product& product, int64_t tile) {
  constexpr int blocks = chunk_blocks(Bits);
  constexpr int together = 2;  // rows: their four sums and their masks stay in registers
  const Weight& weight = product.weight;
  const auto& head = *reinterpret_cast<const FixedHead*>(product.fixed);
  const int32_t* x = product.fixed + kHeadWords;
  const auto* unit_scale = reinterpret_cast<const float*>(x + units_of_row(weight) * unit_words(U));
  const uint32_t* chunk = weight.tiles + tile * weight.units * kUnitWords;
  int64_t group = tile * weight.groups * kTileRows, left = 0;
  FixedTile<Bits, U> work;
  alignas(32) uint32_t whole[Bits == 3 ? 3 * kUnitWords : 1];
  for (int64_t b = 0; b < weight.blocks; b += blocks) {
    if (b % kFoldBlocks == 0 && b > 0) work.fold();
    const int64_t count = weight.blocks - b;
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
      if (left <= 0) {
        work.group(weight, group);
        group += kTileRows;
        left = weight.group_blocks;
      }
      left -= U;
      work.template unit<B0, together>(words, x, *unit_scale++);
      x += unit_words(U);
    });
    chunk += chunk_units(Bits) * kUnitWords;
  }
  work.fold();
  alignas(32) float y[kTileRows];
  const __m256 part = _mm256_mul_ps(sums_of(work.total), _mm256_set1_ps(head.factor[0]));
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

}  // namespace

const FixedPoint avx2_fixed_point = {fixed_words, same_fixed, fix};

void avx2_fixed_linear(const Product& product, int64_t first, int64_t end) {
  switch (product.weight.bits) {
    case 2: return fixed_of<2>(product, first, end);
    case 3: return fixed_of<3>(product, first, end);
    case 4: return fixed_of<4>(product, first, end);
    default: return fixed_of<8>(product, first, end);
  }
}

}  // namespace bitsweep
#endif
