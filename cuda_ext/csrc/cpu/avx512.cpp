// AVX-512 (F, BW, DQ, VL): a code is looked up in a register of 16 values of its group, so that
// unpacking is one shift and one permutation for 16 weights at 2, 3 and 4 bits.
#if defined(__x86_64__)
#include <immintrin.h>

#include "../shared/dequantize.h"
#include "fixed.h"

namespace bitsweep {
namespace {

struct Isa {
  using F = __m512;
  using I = __m512i;
  static constexpr int kAccumulators = 16;

  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* at) { return _mm512_loadu_ps(at); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static I load_words(const uint32_t* at) { return _mm512_loadu_si512(at); }
  template <int n>
  static I shift(I a) {
    if constexpr (n == 0) return a;
    else return _mm512_srli_epi32(a, n);
  }
  static I shift(I a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }

  // Bits 15 + 16 Odd of three words as the low three bits; the bits above them are arbitrary.
  template <int Odd>
  static I straddled(I low, I middle, I high) {
    constexpr int bit = 15 + 16 * Odd;
    constexpr int select = 0xca;  // first operand ? second : third, bit by bit
    I two = _mm512_ternarylogic_epi32(
        _mm512_set1_epi32(1), shift<bit>(low), shift<bit - 1>(middle), select);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(3), two, shift<bit - 2>(high), select);
  }

  static void store_interleaved(float* out, F even, F odd) {
    const I first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const I second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    _mm512_storeu_ps(out, _mm512_permutex2var_ps(even, first, odd));
    _mm512_storeu_ps(out + 16, _mm512_permutex2var_ps(even, second, odd));
  }

  static void scales8(const void* data, Storage storage, int64_t at, float* out) {
    __m256 value;
    if (storage == Storage::kFloat32) {
      value = _mm256_loadu_ps(static_cast<const float*>(data) + at);
    } else {
      const auto* bits = static_cast<const uint16_t*>(data) + at;
      const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bits));
      value = storage == Storage::kFloat16
          ? _mm256_cvtph_ps(eight)
          : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
    }
    _mm256_storeu_ps(out, value);
  }
  static void zeros8(const uint8_t* at, float* out) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight)));
  }

  // Up to 4 bits: the value of every code, repeated to 16 entries. The permutation reads only the
  // low four bits of a lane, so codes of fewer bits need no mask.
  template <int Bits>
  struct Table {
    F value;

    static Table uniform(float zero, float scale) {
      constexpr int top = (1 << Bits) - 1;
      const F code = _mm512_setr_ps(
          0 & top, 1 & top, 2 & top, 3 & top, 4 & top, 5 & top, 6 & top, 7 & top, 8 & top, 9 & top,
          10 & top, 11 & top, 12 & top, 13 & top, 14 & top, 15 & top);
      return {_mm512_mul_ps(_mm512_set1_ps(scale), _mm512_sub_ps(code, _mm512_set1_ps(zero)))};
    }
    static Table ternary(float negative, float positive) {
      F value = _mm512_maskz_mov_ps(0x4444, _mm512_set1_ps(positive));
      return {_mm512_mask_mov_ps(value, 0x1111, _mm512_set1_ps(-negative))};
    }
    F lookup(I code) const { return _mm512_permutexvar_ps(code, value); }
  };
};

template <>
struct Isa::Table<8> {
  F zero, scale;

  static Table uniform(float zero, float scale) {
    return {_mm512_set1_ps(zero), _mm512_set1_ps(scale)};
  }
  F lookup(I code) const {
    const F value = _mm512_cvtepi32_ps(_mm512_and_si512(code, _mm512_set1_epi32(255)));
    return _mm512_mul_ps(scale, _mm512_sub_ps(value, zero));
  }
};

// Rows of the column loop.
struct Lanes {
  using V = __m512;
  static constexpr int kWidth = 16, kSlab = 64, kTogether = 4;

  static V load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, V a) { _mm512_storeu_ps(at, a); }
  static V set(float a) { return _mm512_set1_ps(a); }
  static V error(V w, V value, V diagonal) {
    return _mm512_div_ps(_mm512_sub_ps(w, value), diagonal);
  }
  static V fnma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
  static void store_codes(uint8_t* at, V code) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(code));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), bytes);
  }
  static void uniform(V w, V scale, V zero, V max_code, V& code, V& value) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const V steps = _mm512_roundscale_ps(_mm512_div_ps(w, scale), nearest);
    // Of NaN and 0 the second operand is taken.
    code = _mm512_max_ps(_mm512_add_ps(steps, zero), _mm512_setzero_ps());
    code = _mm512_min_ps(code, max_code);
    value = _mm512_mul_ps(_mm512_sub_ps(code, zero), scale);
  }
  static void ternary(V w, V positive, V negative, V& code, V& value) {
    const __mmask16 above =
        _mm512_cmp_ps_mask(w, _mm512_mul_ps(positive, set(0.5f)), _CMP_GT_OQ);
    const __mmask16 below =
        _mm512_cmp_ps_mask(w, _mm512_mul_ps(negative, set(-0.5f)), _CMP_LT_OQ);
    code = _mm512_mask_mov_ps(_mm512_mask_mov_ps(set(1.0f), above, set(2.0f)), below, set(0.0f));
    value = _mm512_maskz_mov_ps(above, positive);
    value = _mm512_mask_sub_ps(value, below, set(0.0f), negative);
  }
};

// Queries of causal attention.
struct Wide {
  using F = __m512;
  using D = __m512d;
  using Bits = uint32_t __attribute__((vector_size(64)));
  static constexpr int kWidth = 16, kVectors = 4, kRows = 6;

  static F set(float a) { return _mm512_set1_ps(a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static D fma(D a, D b, D c) { return _mm512_fmadd_pd(a, b, c); }
  static F of_halves(const uint16_t* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  static F low(F a, F b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static F high(F a, F b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static void transpose(F (&row)[16]) {
    constexpr int even = 0x88, odd = 0xdd;  // of two vectors' quarters
    F pair[16];
    for (int i = 0; i < 16; i += 2) {
      pair[i] = _mm512_unpacklo_ps(row[i], row[i + 1]);
      pair[i + 1] = _mm512_unpackhi_ps(row[i], row[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      row[i] = low(pair[i], pair[i + 2]);
      row[i + 1] = high(pair[i], pair[i + 2]);
      row[i + 2] = low(pair[i + 1], pair[i + 3]);
      row[i + 3] = high(pair[i + 1], pair[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // every quarter is transposed; now quarters change places
      const F a = _mm512_shuffle_f32x4(row[i], row[i + 4], even);
      const F b = _mm512_shuffle_f32x4(row[i], row[i + 4], odd);
      const F c = _mm512_shuffle_f32x4(row[i + 8], row[i + 12], even);
      const F d = _mm512_shuffle_f32x4(row[i + 8], row[i + 12], odd);
      row[i] = _mm512_shuffle_f32x4(a, c, even);
      row[i + 4] = _mm512_shuffle_f32x4(b, d, even);
      row[i + 8] = _mm512_shuffle_f32x4(a, c, odd);
      row[i + 12] = _mm512_shuffle_f32x4(b, d, odd);
    }
  }
};

}  // namespace
}  // namespace bitsweep

#include "attention_template.h"
#include "gram_template.h"
#include "hadamard_template.h"
#include "kernel_template.h"
#include "linear_template.h"
#include "step_template.h"
#include "column_loop_template.h"

namespace bitsweep {
namespace {
Kernels with(const FixedPoint& fixed) {
  return {
      linear, dequantize, column_loop, Lanes::kSlab, attend, kStrip, step_kernels(), gram_kernels(),
      hadamard_kernels(),
      &fixed};
}
}  // namespace

Kernels avx512_kernels() { return with(avx512_fixed_point); }
Kernels avx512vnni_kernels() { return with(avx512vnni_fixed_point); }
}  // namespace bitsweep
#endif
