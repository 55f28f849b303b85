// AVX2 with FMA and F16C: 16 lanes are two registers of 8. Codes of 2 and 3 bits are looked up in a
// register of 8 values; 4 and 8 bits take arithmetic.
#if defined(__x86_64__)
#include <immintrin.h>

#include "avx2_scales.h"
#include "fixed.h"

namespace bitsweep {
namespace {

struct Isa {
  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F load(const float* at) { return {_mm256_loadu_ps(at), _mm256_loadu_ps(at + 8)}; }
  static F add(F a, F b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  static float sum(F a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }
  static I load_words(const uint32_t* at) {
    const auto* words = reinterpret_cast<const __m256i*>(at);
    return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
  }
  template <int n>
  static I shift(I a) {
    if constexpr (n == 0) return a;
    else return {_mm256_srli_epi32(a.low, n), _mm256_srli_epi32(a.high, n)};
  }
  static I shift(I a, int n) {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_srl_epi32(a.low, count), _mm256_srl_epi32(a.high, count)};
  }

  // Bits 15 + 16 Odd of three words as the low three bits; the bits above them are arbitrary.
  template <int Odd>
  static __m256i straddled(__m256i low, __m256i middle, __m256i high) {
    constexpr int bit = 15 + 16 * Odd;
    const __m256i one = _mm256_and_si256(_mm256_srli_epi32(low, bit), _mm256_set1_epi32(1));
    const __m256i two = _mm256_and_si256(_mm256_srli_epi32(middle, bit - 1), _mm256_set1_epi32(2));
    const __m256i four = _mm256_and_si256(_mm256_srli_epi32(high, bit - 2), _mm256_set1_epi32(4));
    return _mm256_or_si256(_mm256_or_si256(one, two), four);
  }
  template <int Odd>
  static I straddled(I low, I middle, I high) {
    return {
        straddled<Odd>(low.low, middle.low, high.low),
        straddled<Odd>(low.high, middle.high, high.high)};
  }

  static void store_interleaved(float* out, F even, F odd) {
    store_interleaved(out, even.low, odd.low);
    store_interleaved(out + 16, even.high, odd.high);
  }
  static void store_interleaved(float* out, __m256 even, __m256 odd) {
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(out, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(out + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }

  static void scales8(const void* data, Storage storage, int64_t at, float* out) {
    _mm256_storeu_ps(out, tile_scales(data, storage, at));
  }
  static void zeros8(const uint8_t* at, float* out) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight)));
  }

  // 4 and 8 bits: scale * (code - zero).
  template <int Bits>
  struct Table {
    __m256 zero, scale;

    static Table uniform(float zero, float scale) {
      return {_mm256_set1_ps(zero), _mm256_set1_ps(scale)};
    }
    F lookup(I code) const { return {lookup(code.low), lookup(code.high)}; }
    __m256 lookup(__m256i code) const {
      const __m256i kept = _mm256_and_si256(code, _mm256_set1_epi32((1 << Bits) - 1));
      return _mm256_mul_ps(scale, _mm256_sub_ps(_mm256_cvtepi32_ps(kept), zero));
    }
  };

  // 2 and 3 bits: the permutation reads only the low three bits of a lane.
  template <int Bits>
  struct Values {
    __m256 value;

    static Values uniform(float zero, float scale) {
      constexpr int top = (1 << Bits) - 1;
      const __m256 code = _mm256_setr_ps(
          0 & top, 1 & top, 2 & top, 3 & top, 4 & top, 5 & top, 6 & top, 7 & top);
      return {_mm256_mul_ps(_mm256_set1_ps(scale), _mm256_sub_ps(code, _mm256_set1_ps(zero)))};
    }
    static Values ternary(float negative, float positive) {
      return {_mm256_setr_ps(-negative, 0, positive, 0, -negative, 0, positive, 0)};
    }
    F lookup(I code) const {
      return {_mm256_permutevar8x32_ps(value, code.low), _mm256_permutevar8x32_ps(value, code.high)};
    }
  };
};

template <>
struct Isa::Table<2> : Isa::Values<2> {
  Table() = default;
  Table(Values<2> values) : Values<2>(values) {}
};
template <>
struct Isa::Table<3> : Isa::Values<3> {
  Table() = default;
  Table(Values<3> values) : Values<3>(values) {}
};

// Rows of the column loop.
struct Lanes {
  using V = __m256;
  static constexpr int kWidth = 8, kSlab = 32, kTogether = 2;

  static V load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, V a) { _mm256_storeu_ps(at, a); }
  static V set(float a) { return _mm256_set1_ps(a); }
  static V error(V w, V value, V diagonal) {
    return _mm256_div_ps(_mm256_sub_ps(w, value), diagonal);
  }
  static V fnma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
  static void store_codes(uint8_t* at, V code) {
    const __m256i words = _mm256_cvttps_epi32(code);
    const __m128i halves =
        _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), _mm_packus_epi16(halves, halves));
  }
  static void uniform(V w, V scale, V zero, V max_code, V& code, V& value) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const V steps = _mm256_round_ps(_mm256_div_ps(w, scale), nearest);
    // Of NaN and 0 the second operand is taken.
    code = _mm256_max_ps(_mm256_add_ps(steps, zero), _mm256_setzero_ps());
    code = _mm256_min_ps(code, max_code);
    value = _mm256_mul_ps(_mm256_sub_ps(code, zero), scale);
  }
  static void ternary(V w, V positive, V negative, V& code, V& value) {
    const V above = _mm256_cmp_ps(w, _mm256_mul_ps(positive, set(0.5f)), _CMP_GT_OQ);
    const V below = _mm256_cmp_ps(w, _mm256_mul_ps(negative, set(-0.5f)), _CMP_LT_OQ);
    code = _mm256_blendv_ps(_mm256_blendv_ps(set(1.0f), set(2.0f), above), set(0.0f), below);
    value = _mm256_and_ps(above, positive);
    value = _mm256_blendv_ps(value, _mm256_sub_ps(set(0.0f), negative), below);
  }
};

// Queries of causal attention.
struct Wide {
  using F = __m256;
  using D = __m256d;
  using Bits = uint32_t __attribute__((vector_size(32)));
  static constexpr int kWidth = 8, kVectors = 3, kRows = 4;

  static F set(float a) { return _mm256_set1_ps(a); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static D fma(D a, D b, D c) { return _mm256_fmadd_pd(a, b, c); }
  static F of_halves(const uint16_t* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
  static void transpose(F (&row)[8]) {
    constexpr int low = 0x44, high = 0xee;  // pairs of two vectors' halves
    for (int i = 0; i < 8; i += 4) {
      const F a = _mm256_unpacklo_ps(row[i], row[i + 1]);
      const F b = _mm256_unpackhi_ps(row[i], row[i + 1]);
      const F c = _mm256_unpacklo_ps(row[i + 2], row[i + 3]);
      const F d = _mm256_unpackhi_ps(row[i + 2], row[i + 3]);
      row[i] = _mm256_shuffle_ps(a, c, low);
      row[i + 1] = _mm256_shuffle_ps(a, c, high);
      row[i + 2] = _mm256_shuffle_ps(b, d, low);
      row[i + 3] = _mm256_shuffle_ps(b, d, high);
    }
    for (int i = 0; i < 4; i++) {  // every quarter is transposed; now quarters change places
      const F a = row[i], b = row[i + 4];
      row[i] = _mm256_permute2f128_ps(a, b, 0x20);
      row[i + 4] = _mm256_permute2f128_ps(a, b, 0x31);
    }
  }
};

}  // namespace
}  // namespace bitsweep

#include "attention_template.h"
#include "gram_template.h"
#include "hadamard_template.h"
#include "avx2_linear.h"
#include "kernel_template.h"
#include "step_template.h"
#include "column_loop_template.h"

namespace bitsweep {
Kernels avx2_kernels() {
  return {
      linear, dequantize, column_loop, Lanes::kSlab, attend, kStrip, step_kernels(), gram_kernels(),
      hadamard_kernels(),
      &avx2_fixed_point};
}
}  // namespace bitsweep
#endif
