// Scales of the 8 rows of a tile as floats, with AVX2 and F16C.
#pragma once

#include <immintrin.h>

#include "../shared/dequantize.h"

namespace bitsweep {
namespace {

inline __m256 tile_scales(const void* data, Storage storage, int64_t at) {
  if (storage == Storage::kFloat32) return _mm256_loadu_ps(static_cast<const float*>(data) + at);
  const auto* bits = static_cast<const uint16_t*>(data) + at;
  const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bits));
  if (storage == Storage::kFloat16) return _mm256_cvtph_ps(eight);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

}  // namespace
}  // namespace bitsweep
