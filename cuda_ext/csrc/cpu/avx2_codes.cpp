// Codes with AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

#include "codes.h"

namespace bitsweep {
namespace {

struct Isa {
  static constexpr int kVector = 32, kWidth = 8;

  static __m256 floats(const uint8_t* codes) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(eight));
  }
  static void decode(const uint8_t* codes, float zero, float scale, float* out) {
    const __m256 steps = _mm256_sub_ps(floats(codes), _mm256_set1_ps(zero));
    _mm256_storeu_ps(out, _mm256_mul_ps(steps, _mm256_set1_ps(scale)));
  }
};

}  // namespace
}  // namespace bitsweep

#include "codes_template.h"

namespace bitsweep {
const CodeKernels avx2_codes = {unpack, pack, decode};
}  // namespace bitsweep
#endif
