// Whole numbers of AVX-512 for fixed_template.h: all words of a block in a vector. Where the source
// file is compiled for it, VNNI multiplies pairs and adds in one instruction, and VBMI2 moves a bit
// from one vector to another; the numbers are equal.
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
  template <int n>
  static I halves_shift(I a) { return _mm512_srli_epi16(a, n); }
  static constexpr int kTopsAt = 0;
  static I top_bits(I low, I middle, I high) {
#if defined(__AVX512VBMI2__)
    const I two = _mm512_shldi_epi16(halves_shift<15>(high), middle, 1);
    return _mm512_shldi_epi16(two, low, 1);
#else
    constexpr int fill = 0xf8;  // first | (second & third), bit by bit
    const I two = _mm512_ternarylogic_epi32(
        halves_shift<15>(low), halves_shift<14>(middle), halves(2), fill);
    return _mm512_ternarylogic_epi32(two, halves_shift<13>(high), halves(4), fill);
#endif
  }
  static I words_shift(I a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static I pairs(I a, I b) { return _mm512_madd_epi16(a, b); }
  static I add_pairs(I sum, I a, I b) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return add(sum, pairs(a, b));
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

  static int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }

  static void both(__m256 high, __m256 low, F (&out)[1]) {
    out[0] = _mm512_insertf32x8(_mm512_castps256_ps512(high), low, 1);
  }
  static I merge_words(I a, I b) { return add(lower(a, b), upper(a, b)); }
  static I lower(I a, I b) { return _mm512_unpacklo_epi32(a, b); }
  static I upper(I a, I b) { return _mm512_unpackhi_epi32(a, b); }
  static I merge_pairs(I a, I b) {
    return add(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  static void merge_quarters(const I (&four)[2][2], I (&out)[1]) {
    I eight[2];
    for (int plane = 0; plane < 2; plane++) {
      const I a = four[plane][0], b = four[plane][1];
      eight[plane] = add(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
    }
    out[0] = add(
        _mm512_shuffle_i32x4(eight[0], eight[1], 0x88),
        _mm512_shuffle_i32x4(eight[0], eight[1], 0xdd));
  }
};

}  // namespace
}  // namespace bitsweep
