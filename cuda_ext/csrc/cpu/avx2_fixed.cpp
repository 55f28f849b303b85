// One row of x by sums of whole numbers with AVX2: half of a block's words in a vector.
#if defined(__x86_64__)
#include <immintrin.h>

#include "fixed.h"

namespace bitsweep {
namespace {

struct Whole {
  using I = __m256i;
  using F = __m256;
  static constexpr int kWide = 8;
  static constexpr int kTogether = 2;  // their four sums and their masks stay in registers

  static I zero() { return _mm256_setzero_si256(); }
  static I load(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
  static void store(void* at, I a) { _mm256_storeu_si256(static_cast<__m256i*>(at), a); }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I halves(int a) { return _mm256_set1_epi16(static_cast<short>(a)); }
  static I halves_and(I a, I b) { return _mm256_and_si256(a, b); }
  template <int n>
  static I halves_shift(I a) { return _mm256_srli_epi16(a, n); }
  static constexpr int kTopsAt = 6;  // shifts that the other codes of these words take, too
  static I top_bits(I low, I middle, I high) {
    const I first = halves_and(halves_shift<9>(low), halves(0x40));
    const I second = halves_and(halves_shift<8>(middle), halves(0x80));
    const I third = halves_and(halves_shift<7>(high), halves(0x100));
    return _mm256_or_si256(_mm256_or_si256(first, second), third);
  }
  static I words_shift(I a, int n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static I pairs(I a, I b) { return _mm256_madd_epi16(a, b); }
  static I add_pairs(I sum, I a, I b) { return add(sum, pairs(a, b)); }
  static I nearest(F a) { return _mm256_cvtps_epi32(a); }

  static F floats(I a) { return _mm256_cvtepi32_ps(a); }
  static F set(float a) { return _mm256_set1_ps(a); }
  static F every(const float* at) { return _mm256_broadcast_ss(at); }
  static F load_floats(const float* at) { return _mm256_loadu_ps(at); }
  static void store_floats(float* at, F a) { _mm256_storeu_ps(at, a); }
  static F add_floats(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }

  // Of v = 65536 hi + lo, lo signed: halves of even and odd numbers side by side.
  static I high_halves(I even, I odd) {
    const I half = _mm256_set1_epi32(0x8000);
    const I up = _mm256_add_epi32(even, half), odd_up = _mm256_add_epi32(odd, half);
    return _mm256_blend_epi16(_mm256_srli_epi32(up, 16), odd_up, 0xaa);
  }
  static I low_halves(I even, I odd) {
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  }

  static I larger(I most, const float* at) {
    const I some = _mm256_and_si256(load(at), _mm256_set1_epi32(0x7fffffff));
    return _mm256_max_epi32(most, some);
  }
  static int32_t largest(I a) {
    alignas(32) int32_t lane[8];
    _mm256_store_si256(reinterpret_cast<I*>(lane), a);
    int32_t found = 0;
    for (int i = 0; i < 8; i++) found = lane[i] > found ? lane[i] : found;
    return found;
  }

  static int32_t sum(I a) {
    alignas(32) int32_t lane[8];
    _mm256_store_si256(reinterpret_cast<I*>(lane), a);
    int32_t found = 0;
    for (int i = 0; i < 8; i++) found += lane[i];
    return found;
  }

  static void both(F high, F low, F (&out)[2]) {
    out[0] = high;
    out[1] = low;
  }
  static I merge_words(I a, I b) {
    return add(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  }
  static I merge_pairs(I a, I b) {
    return add(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  }
  static void merge_quarters(const I (&four)[2][2], I (&out)[2]) {
    for (int plane = 0; plane < 2; plane++) {
      const I a = four[plane][0], b = four[plane][1];
      out[plane] =
          add(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    }
  }
};

}  // namespace
}  // namespace bitsweep

#include "fixed_template.h"

namespace bitsweep {
const FixedPoint avx2_fixed_point = {fixed_words, same_fixed, fix, fixed_linear};
}  // namespace bitsweep
#endif
