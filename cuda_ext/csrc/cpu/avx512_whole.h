// Whole numbers of AVX-512 for fixed_template.h: all words of a block in a vector. With VNNI, where
// the source file is compiled for it, one instruction multiplies pairs and adds; the sums are equal.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace bitsweep {
namespace {

struct Whole {
  using I = __m512i;
  using F = __m512;
  static constexpr int kWide = 16;
  static constexpr int kTogether = 4;

  static I zero() { return _mm512_setzero_si512(); }
  static I load(const void* at) { return _mm512_loadu_si512(at); }
  static void store(void* at, I a) { _mm512_storeu_si512(at, a); }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I halves(int a) { return _mm512_set1_epi16(static_cast<short>(a)); }
  static I halves_and(I a, I b) { return _mm512_and_si512(a, b); }
  static I halves_or(I a, I b) { return _mm512_or_si512(a, b); }
  template <int n>
  static I halves_shift(I a) { return _mm512_srli_epi16(a, n); }
  static I words_shift(I a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static I add_pairs(I sum, I a, I b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
  }
  static I nearest(F a) { return _mm512_cvtps_epi32(a); }

  static F floats(I a) { return _mm512_cvtepi32_ps(a); }
  static F set(float a) { return _mm512_set1_ps(a); }
  static F every(const float* at) { return _mm512_set1_ps(*at); }
  static F load_floats(const float* at) { return _mm512_loadu_ps(at); }
  static void store_floats(float* at, F a) { _mm512_storeu_ps(at, a); }
  static F add_floats(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }

  // Of v = 65536 hi + lo, lo signed: halves of even and odd numbers side by side.
  static I high_halves(I even, I odd) {
    const I half = _mm512_set1_epi32(0x8000);
    const I up = _mm512_add_epi32(even, half), odd_up = _mm512_add_epi32(odd, half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(up, 16), odd_up);
  }
  static I low_halves(I even, I odd) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
  }

  static I larger(I most, const float* at) {
    return _mm512_max_epi32(most, _mm512_and_si512(load(at), _mm512_set1_epi32(0x7fffffff)));
  }
  static int32_t largest(I a) { return _mm512_reduce_max_epi32(a); }

  // Sums of the lanes of 8 vectors.
  static __m256 sums_of(const float* at) {
    const auto row = [&](int r) {
      return _mm256_add_ps(_mm256_load_ps(at + r * 16), _mm256_load_ps(at + r * 16 + 8));
    };
    const __m256 low = _mm256_hadd_ps(_mm256_hadd_ps(row(0), row(1)), _mm256_hadd_ps(row(2), row(3)));
    const __m256 high =
        _mm256_hadd_ps(_mm256_hadd_ps(row(4), row(5)), _mm256_hadd_ps(row(6), row(7)));
    return _mm256_add_ps(
        _mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
};

}  // namespace
}  // namespace bitsweep
