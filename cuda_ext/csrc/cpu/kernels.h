// What the kernels of every instruction set offer: the same functions over the same arguments.
#pragma once

#include <cstdint>

#include "../shared/column_loop.h"
#include "../shared/dequantize.h"
#include "../shared/weight.h"
#include "step.h"

namespace bitsweep {

// Blocks of 32 inputs after which a running sum is put aside; a multiple of every chunk.
constexpr int64_t kFoldBlocks = 64;

// A cache line more than a row holds: rows of 4 KiB, or a multiple, would else all fall into the
// same sets of the first-level cache.
constexpr int64_t x_stride_of(int64_t blocks) { return blocks * kBlock + kLanes; }

// y [batch, outputs] = x times the weight, plus bias (null without one).
struct Product {
  Weight weight;
  const float* x;    // [batch, blocks * 32]: 16 even inputs of a block, then its 16 odd ones
  int64_t x_stride;  // floats from one row of x to the next: x_stride_of
  int64_t batch;
  const int32_t* fixed;  // the one row of x in fixed-point (FixedPoint); null: x is read
  const void* bias;
  Storage bias_storage;
  void* y;
  Storage y_storage;
};

// Output n of row m of x: its sum plus the bias, rounded once to the storage of y.
BITSWEEP_HD void put_output(const Product& product, int64_t m, int64_t n, float sum) {
  const float bias =
      product.bias ? load_as_float(product.bias, product.bias_storage, n) : 0.0f;
  store_float(product.y, product.y_storage, m * product.weight.outputs + n, sum + bias);
}

// Floats from one batch entry, head or token to the next; those of a token lie side by side.
struct Strides {
  int64_t batch;
  int64_t head;
  int64_t token;
};

// out = softmax(scale * query key^T) value for every batch entry and head, where no query sees a
// key of a later token.
struct Attention {
  const float* query;
  const float* key;
  const float* value;
  float* out;
  Strides query_at, key_at, value_at, out_at;
  int64_t heads;
  int64_t sharing;  // heads of query to one of key and value
  int64_t tokens;
  int64_t width;    // floats of one token and head
  float factor;     // scale * log2(e): weights are powers of two
};

// One row of x in fixed-point, for weights that are multiplied by sums of whole numbers.
struct FixedPoint {
  // Words that x of a weight takes; 0: this weight has no such product.
  int64_t (*words)(const Weight&);
  // Whether x that was made for one weight serves the other, of as many inputs.
  bool (*same)(const Weight&, const Weight&);
  // Makes it of a row of Product::x, at 64 bytes; false if a number is not finite.
  bool (*make)(const Weight&, const float* x, int32_t* out);
  // The product with it: Product::fixed.
  void (*linear)(const Product&, int64_t first_tile, int64_t end_tile);
};

// total += the products of all pairs of columns of rows [tokens, inputs], on and above the diagonal,
// or of those of reference - rows and those of rows.
struct Gram {
  const float* rows;
  int64_t stride;  // floats from one row to the next
  const float* reference;  // rows of which `rows` are subtracted first; null: none
  int64_t reference_stride;
  int64_t tokens;
  int64_t inputs;
  float* panels;  // columns, `width` of them to a panel: [panel][token][column]
  float* left;    // as `panels`, of the left factor of every product
  float* total;
  int64_t total_stride;
  bool whole;  // what is below the diagonal is summed, too
};

struct GramKernels {
  int64_t width;
  void (*panels)(const Gram&, int64_t first_panel, int64_t end_panel);
  // Squares of the result are tasks: as many side by side, of which those on and above the diagonal
  // are summed, or all.
  int64_t (*squares_across)(int64_t inputs);
  void (*squares)(const Gram&, int64_t first_square, int64_t end_square);
};

struct Kernels {
  void (*linear)(const Product&, int64_t first_tile, int64_t end_tile);
  // Rows of the weight to out [outputs, inputs] of the storage given.
  void (*dequantize)(
      const Weight&, void* out, Storage storage, int64_t first_tile, int64_t end_tile);
  // GPTQ's inner column loop on slabs of loop_rows rows each.
  void (*column_loop)(const ColumnLoop&, int64_t first_slab, int64_t end_slab);
  int64_t loop_rows;
  // Causal attention on strips of attention_rows queries each: those of a head, head by head.
  void (*attention)(const Attention&, int64_t first_strip, int64_t end_strip);
  int64_t attention_rows;
  StepKernels step;
  GramKernels gram;
  const FixedPoint* fixed_point = nullptr;  // null: none

  void multiply(const Product& product, int64_t first_tile, int64_t end_tile) const {
    (product.fixed != nullptr ? fixed_point->linear : linear)(product, first_tile, end_tile);
  }
};

Kernels portable_kernels();
#if defined(__x86_64__)
Kernels avx2_kernels();
Kernels avx512_kernels();
Kernels avx512vnni_kernels();  // the same but for products of one row
#endif

}  // namespace bitsweep
