// Plain C++ for any machine: one loop over the blocks, with the arithmetic of the shared headers.
// Sixteen partial sums a row, added up in a fixed order, so that results do not depend on threads.
#include <vector>

#include "../shared/dequantize.h"
#include "kernels.h"

namespace bitsweep {
namespace {

// The 32 values of block b of row n, in the order of the lanes: 16 even inputs, then 16 odd ones.
void block_values(const Weight& weight, int64_t n, int64_t b, float* value) {
  const int bits = weight.bits;
  const int64_t tile = n / kTileRows, row = n % kTileRows;
  const int64_t chunk = b / chunk_blocks(bits);
  const int i = static_cast<int>(b % chunk_blocks(bits));
  const uint32_t* words = weight.tiles +
      (tile * weight.units + chunk * chunk_units(bits)) * kUnitWords + row * kLanes;
  const int64_t grid = (tile * weight.groups + b / weight.group_blocks) * kTileRows + row;
  const float scale = load_as_float(weight.scales, weight.scale_storage, grid);
  const bool ternary = weight.negative != nullptr;
  const float other = ternary ? load_as_float(weight.negative, weight.scale_storage, grid)
                              : static_cast<float>(weight.zeros[grid]);
  for (int odd = 0; odd < 2; odd++) {
    for (int lane = 0; lane < kLanes; lane++) {
      const uint32_t code = code_at(words + lane, kUnitWords, bits, i, odd);
      value[odd * kLanes + lane] = ternary
          ? ternary_value(code, other, scale)
          : uniform_value(static_cast<float>(static_cast<int32_t>(code)), other, scale);
    }
  }
}

void linear(const Product& product, int64_t first, int64_t end) {
  const Weight& weight = product.weight;
  std::vector<float> sums(product.batch * kLanes), totals(product.batch * kLanes);
  const int64_t last = end * kTileRows < weight.outputs ? end * kTileRows : weight.outputs;
  for (int64_t n = first * kTileRows; n < last; n++) {
    for (size_t i = 0; i < sums.size(); i++) sums[i] = totals[i] = 0;
    for (int64_t b = 0; b < weight.blocks; b++) {
      if (b % kFoldBlocks == 0) {
        for (size_t i = 0; i < sums.size(); i++) {
          totals[i] += sums[i];
          sums[i] = 0;
        }
      }
      float value[kBlock];
      block_values(weight, n, b, value);
      for (int64_t m = 0; m < product.batch; m++) {
        const float* x = product.x + m * product.x_stride + b * kBlock;
        float* sum = sums.data() + m * kLanes;
        for (int l = 0; l < kLanes; l++) sum[l] += value[l] * x[l];
        for (int l = 0; l < kLanes; l++) sum[l] += value[kLanes + l] * x[kLanes + l];
      }
    }
    for (int64_t m = 0; m < product.batch; m++) {
      float* sum = sums.data() + m * kLanes;
      for (int l = 0; l < kLanes; l++) sum[l] += totals[m * kLanes + l];
      for (int half = kLanes / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sum[l] += sum[l + half];
      put_output(product, m, n, sum[0]);
    }
  }
}

void dequantize(
    const Weight& weight, void* out, Storage storage, int64_t first, int64_t end) {
  const int64_t last = end * kTileRows < weight.outputs ? end * kTileRows : weight.outputs;
  for (int64_t n = first * kTileRows; n < last; n++) {
    for (int64_t b = 0; b < weight.blocks; b++) {
      float value[kBlock];
      block_values(weight, n, b, value);
      for (int64_t k = b * kBlock; k < weight.inputs && k < (b + 1) * kBlock; k++) {
        const float kept = value[(k % 2) * kLanes + k % kBlock / 2];
        store_float(out, storage, n * weight.inputs + k, kept);
      }
    }
  }
}

// One float at a time, with the arithmetic that the CUDA kernel shares.
struct Lanes {
  using V = float;
  static constexpr int kWidth = 1, kSlab = 16, kTogether = 4;

  static V load(const float* at) { return *at; }
  static void store(float* at, V a) { *at = a; }
  static V set(float a) { return a; }
  static V error(V w, V value, V diagonal) { return loop_error(w, value, diagonal); }
  static V fnma(V a, V b, V c) { return exact_fma(-a, b, c); }
  static void store_codes(uint8_t* at, V code) { *at = static_cast<uint8_t>(code); }
  static void uniform(V w, V scale, V zero, V max_code, V& code, V& value) {
    const Rounded rounded = round_uniform(w, scale, zero, max_code);
    code = rounded.code;
    value = rounded.value;
  }
  static void ternary(V w, V positive, V negative, V& code, V& value) {
    const Rounded rounded = round_ternary(w, positive, negative);
    code = rounded.code;
    value = rounded.value;
  }
};

// Queries of causal attention: 16 bytes, which compilers have on every machine.
struct Wide {
  using F = float __attribute__((vector_size(16)));
  using D = double __attribute__((vector_size(16)));
  using Bits = uint32_t __attribute__((vector_size(16)));
  static constexpr int kWidth = 4, kVectors = 2, kRows = 6;

  static F set(float a) { return F{a, a, a, a}; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static D fma(D a, D b, D c) { return a * b + c; }
  static F of_halves(const uint16_t* at) {
    return F{half_to_float(at[0]), half_to_float(at[1]), half_to_float(at[2]), half_to_float(at[3])};
  }
  static void transpose(F (&row)[4]) {
    for (int i = 1; i < 4; i++) {
      for (int j = 0; j < i; j++) {
        const float kept = row[i][j];
        row[i][j] = row[j][i];
        row[j][i] = kept;
      }
    }
  }
};

}  // namespace
}  // namespace bitsweep

#include "attention_template.h"
#include "gram_template.h"
#include "hadamard_template.h"
#include "step_template.h"
#include "column_loop_template.h"

namespace bitsweep {
Kernels portable_kernels() {
  return {linear, dequantize, column_loop, Lanes::kSlab, attend, kStrip, step_kernels(), gram_kernels(), hadamard_kernels()};
}
}  // namespace bitsweep
