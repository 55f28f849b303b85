// Products from the codes, written once over an instruction set (see kernel_template.h).
//
// Every output is one chain of fused products in a fixed order over the inputs, whatever the batch,
// the tile or the number of threads: results are bit-identical from run to run.
//
// Isa, besides what kernel_template.h asks: kAccumulators, the sums that registers have room for.
#pragma once

#include "kernel_template.h"

namespace bitsweep {
namespace {

// Units of a tile (512 bytes each) that are fetched ahead of their use.
constexpr int64_t kPrefetchUnits = 12;

// M rows of x times R rows of a tile, from `row` on; groups are multiples of Step blocks.
template <int Bits, int Step, int M, int R>
void multiply(const Product& product, int64_t tile, int row, int64_t m0) {
  using F = typename Isa::F;
  constexpr int blocks = chunk_blocks(Bits);
  const Weight& weight = product.weight;
  const int64_t x_stride = product.x_stride;
  const float* x = product.x + m0 * x_stride;
  const uint32_t* chunk = weight.tiles + tile * weight.units * kUnitWords + row * kLanes;
  Grid<Bits, R> grid(weight, tile, row);
  F sum[M][R], total[M][R];
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) sum[m][r] = total[m][r] = Isa::zero();

  // Sums are put aside now and then: the error of a short chain is small, and so is that of a few.
  auto fold = [&]() __attribute__((always_inline)) {
    for (int m = 0; m < M; m++) {
      for (int r = 0; r < R; r++) {
        total[m][r] = Isa::add(total[m][r], sum[m][r]);
        sum[m][r] = Isa::zero();
      }
    }
  };

  auto accumulate = [&](const F(&value)[R], const float* at) __attribute__((always_inline)) {
    for (int m = 0; m < M; m++) {
      const F input = Isa::load(at + m * x_stride);
      for (int r = 0; r < R; r++) sum[m][r] = Isa::fma(value[r], input, sum[m][r]);
    }
  };

  for (int64_t b = 0; b < weight.blocks; b += blocks) {
    if (b % kFoldBlocks == 0) fold();
    // Rows that come in a later pass are fetched by the first, whole units in order: memory is
    // read as one stream. The address may lie past the end; a prefetch does not mind.
    if (row == 0) {
      const uint32_t* ahead = chunk + kPrefetchUnits * kUnitWords;
      for (int line = 0; line < chunk_units(Bits) * kTileRows; line++)
        __builtin_prefetch(ahead + line * kLanes);
    }
    const int64_t count = weight.blocks - b;
    each_of<blocks>([&](auto index) __attribute__((always_inline)) {
      constexpr int B = decltype(index)::value;
      if (B >= count) return;  // the last chunk of a row may be unfinished
      if constexpr (B % Step == 0) grid.advance(Step);
      each_of<2>([&](auto half) __attribute__((always_inline)) {
        constexpr int odd = decltype(half)::value;
        F value[R];
        for (int r = 0; r < R; r++)
          value[r] = values<Bits, B, odd>(chunk + r * kLanes, grid.table[r]);
        accumulate(value, x + B * kBlock + odd * kLanes);
      });
    });
    x += blocks * kBlock;
    chunk += chunk_units(Bits) * kUnitWords;
  }

  for (int r = 0; r < R; r++) {
    const int64_t n = tile * kTileRows + row + r;
    if (n >= weight.outputs) break;
    for (int m = 0; m < M; m++)
      put_output(product, m0 + m, n, Isa::sum(Isa::add(total[m][r], sum[m][r])));
  }
}

template <int Bits, int Step, int M>
void multiply_tile(const Product& product, int64_t tile, int64_t m0) {
  // As many rows as the registers have room for sums: each x that is loaded serves them all.
  constexpr int room = Isa::kAccumulators / M;
  constexpr int R = room >= 8 ? 8 : room >= 4 ? 4 : room >= 2 ? 2 : 1;
  for (int row = 0; row < kTileRows; row += R) multiply<Bits, Step, M, R>(product, tile, row, m0);
}

template <int Bits, int Step>
void linear_tiles(const Product& product, int64_t first, int64_t end) {
  // A few tiles stay in the second-level cache while the rows of x pass by, four at a time.
  constexpr int64_t together = 8;
  for (int64_t begin = first; begin < end; begin += together) {
    const int64_t stop = begin + together < end ? begin + together : end;
    for (int64_t m0 = 0; m0 < product.batch;) {
      const int64_t left = product.batch - m0;
      const int rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int64_t tile = begin; tile < stop; tile++) {
        if (rows == 4) multiply_tile<Bits, Step, 4>(product, tile, m0);
        else if (rows == 2) multiply_tile<Bits, Step, 2>(product, tile, m0);
        else multiply_tile<Bits, Step, 1>(product, tile, m0);
      }
      m0 += rows;
    }
  }
}

template <int Bits>
void linear_of(const Product& product, int64_t first, int64_t end) {
  constexpr int largest = chunk_blocks(Bits) < 4 ? chunk_blocks(Bits) : 4;
  const int64_t blocks = product.weight.group_blocks;
  if (blocks % largest == 0) return linear_tiles<Bits, largest>(product, first, end);
  if (blocks % 2 == 0) return linear_tiles<Bits, 2>(product, first, end);
  return linear_tiles<Bits, 1>(product, first, end);
}

void linear(const Product& product, int64_t first, int64_t end) {
  switch (product.weight.bits) {
    case 2: return linear_of<2>(product, first, end);
    case 3: return linear_of<3>(product, first, end);
    case 4: return linear_of<4>(product, first, end);
    default: return linear_of<8>(product, first, end);
  }
}

}  // namespace
}  // namespace bitsweep
