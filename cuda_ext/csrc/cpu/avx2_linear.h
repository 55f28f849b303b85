// Products of AVX2: one pass over a tile's words, all 8 rows together.
//
// Sums of the 8 rows stay in the first-level cache (at most 8 KiB) between two steps, so memory is
// read as one stream and no register holds what is not in use: a step is up to 4 blocks, and
// within it a row has its sums, its grid and its words in registers. The order of a sum
// is that of linear_template.h, product by product: 16 chains over the inputs, put aside every
// kFoldBlocks blocks.
#pragma once

#include "avx2_levels.h"

namespace bitsweep {
namespace {

// M rows of x times a tile; G blocks that are neighbours share a group. Sums: [row][m][16 lanes].
template <int Bits, int G, int M, bool Exact>
struct TileProduct {
  static constexpr int kSpan = largest_step(Bits);
  static constexpr int kCount = kTileRows * M * kLanes;
  static constexpr Way kWay = way_of(Bits, M, Exact);
  using Grid = Levels<Bits, kSpan / G, kWay, Exact>;
  using Row = RowLevels<Bits, kWay, Exact>;
  alignas(64) float sum[kCount] = {};
  alignas(64) float total[kCount] = {};

  void fold() {
    for (int i = 0; i < kCount; i += 8) {
      _mm256_store_ps(total + i, _mm256_add_ps(_mm256_load_ps(total + i), _mm256_load_ps(sum + i)));
      _mm256_store_ps(sum + i, _mm256_setzero_ps());
    }
  }

  // Blocks [B0, B0 + S) of a chunk for all rows; x is at the chunk's first block. R rows and H
  // halves of a vector advance together, so that R * H * M sums are under way.
  template <int B0, int S, int R, int H>
  BITSWEEP_INLINE void step(
      const uint32_t* chunk, const Grid& grid, const float* x, int64_t stride) {
    for (int row = 0; row < kTileRows; row += R) {
      for (int half = 0; half < kLanes; half += 8 * H) {
        float* at = sum + row * M * kLanes + half;
        const uint32_t* words = chunk + row * kLanes + half;
        __m256 part[R][H][M];
        for (int r = 0; r < R; r++)
          for (int h = 0; h < H; h++)
            for (int m = 0; m < M; m++)
              part[r][h][m] = _mm256_load_ps(at + (r * M + m) * kLanes + 8 * h);
        each_of<S / G>([&](auto group) __attribute__((always_inline)) {
          const auto& slot = grid.slot[decltype(group)::value];
          const Row first(slot, row), last(slot, row + R - 1);  // R is 1 or 2
          each_of<2 * G>([&](auto index) __attribute__((always_inline)) {
            constexpr int B = B0 + decltype(group)::value * G + decltype(index)::value / 2;
            constexpr int odd = decltype(index)::value % 2;
            const float* from = x + B * kBlock + odd * kLanes + half;
            for (int r = 0; r < R; r++) {
              for (int h = 0; h < H; h++) {
                const __m256 value =
                    (r == 0 ? first : last).template values<B, odd>(words + r * kLanes + 8 * h);
                for (int m = 0; m < M; m++)
                  part[r][h][m] = _mm256_fmadd_ps(
                      value, _mm256_load_ps(from + m * stride + 8 * h), part[r][h][m]);
              }
            }
          });
        });
        for (int r = 0; r < R; r++)
          for (int h = 0; h < H; h++)
            for (int m = 0; m < M; m++)
              _mm256_store_ps(at + (r * M + m) * kLanes + 8 * h, part[r][h][m]);
      }
    }
  }

  // One block of an unfinished last chunk.
  void block(
      int64_t b, const uint32_t* chunk, const Grid& grid, const float* x, int64_t stride) {
    const uint32_t* words = chunk + unit_of(Bits, b) * kUnitWords;
    for (int i = 0; i < 2 * kTileRows; i++) {  // halves of the rows
      const Row row(grid.slot[0], i / 2);
      const int half = i % 2 * 8;
      float* at = sum + i / 2 * M * kLanes + half;
      for (int odd = 0; odd < 2; odd++) {
        const __m256 value =
            row.shifted(words + i / 2 * kLanes + half, shift_of(Bits, b) + 16 * odd);
        const float* from = x + b * kBlock + odd * kLanes + half;
        for (int m = 0; m < M; m++)
          _mm256_store_ps(
              at + m * kLanes,
              _mm256_fmadd_ps(
                  value, _mm256_load_ps(from + m * stride), _mm256_load_ps(at + m * kLanes)));
      }
    }
  }

  // The first `count` blocks of a chunk.
  void chunk(
      const uint32_t* words, Grid& grid, const float* x, int64_t stride, int64_t count) {
    // Enough sums under way to hide what a product takes (4), few enough for the registers.
    constexpr int R = M == 1 ? 2 : 1, H = M == 8 ? 1 : 2;
    each_of<chunk_blocks(Bits) / kSpan>([&](auto index) __attribute__((always_inline)) {
      constexpr int B0 = decltype(index)::value * kSpan;
      if (B0 >= count) return;
      if (B0 + kSpan <= count) {
        grid.keep_last();
        for (int slot = 0; slot < kSpan / G; slot++) grid.advance(slot, G);
        step<B0, kSpan, R, H>(words, grid, x, stride);
        return;
      }
      grid.keep_last();
      int64_t done = B0;
      if constexpr (M == 1) {  // one row of x is not to pay for short rows of the weight
        each_of<kSpan / G - 1>([&](auto group) __attribute__((always_inline)) {
          constexpr int B = B0 + decltype(group)::value * G;
          if (B + G > count) return;
          grid.advance(0, G);
          step<B, G, R, H>(words, grid, x, stride);
          done = B + G;
        });
      }
      for (; done < count; done++) {
        grid.advance(0, 1);
        block(done, words, grid, x, stride);
      }
    });
  }
};

// Bytes of a tile that are fetched ahead of their use.
constexpr int64_t kAheadBytes = 2048;

template <int Bits, int G, int M, bool Exact>
void multiply_tile(const Product& product, int64_t tile, int64_t m0) {
  constexpr int blocks = chunk_blocks(Bits);
  const Weight& weight = product.weight;
  const int64_t stride = product.x_stride;
  const float* x = product.x + m0 * stride;
  const uint32_t* chunk = weight.tiles + tile * weight.units * kUnitWords;
  using Work = TileProduct<Bits, G, M, Exact>;
  typename Work::Grid grid(weight, tile);
  Work work;
  for (int64_t b = 0; b < weight.blocks; b += blocks) {
    if (b % kFoldBlocks == 0 && b > 0) work.fold();
    // The address may lie past the end; a prefetch does not mind.
    const uint32_t* ahead = chunk + kAheadBytes / sizeof(uint32_t);
    for (int line = 0; line < chunk_units(Bits) * kTileRows; line++)
      __builtin_prefetch(ahead + line * kLanes);
    work.chunk(chunk, grid, x, stride, weight.blocks - b);
    x += blocks * kBlock;
    chunk += chunk_units(Bits) * kUnitWords;
  }
  work.fold();
  for (int r = 0; r < kTileRows; r++) {
    const int64_t n = tile * kTileRows + r;
    if (n >= weight.outputs) break;
    for (int m = 0; m < M; m++)
      put_output(product, m0 + m, n, Isa::sum(Isa::load(work.total + (r * M + m) * kLanes)));
  }
}

template <int Bits, int G, bool Exact = true>
void linear_tiles(const Product& product, int64_t first, int64_t end) {
  // A few tiles stay in the second-level cache while the rows of x pass by.
  constexpr int64_t together = 8;
  for (int64_t begin = first; begin < end; begin += together) {
    const int64_t stop = begin + together < end ? begin + together : end;
    for (int64_t m0 = 0; m0 < product.batch;) {
      const int64_t left = product.batch - m0;
      const int rows = left >= 8 ? 8 : left >= 4 ? 4 : 1;
      for (int64_t tile = begin; tile < stop; tile++) {
        if (rows == 8) multiply_tile<Bits, G, 8, Exact>(product, tile, m0);
        else if (rows == 4) multiply_tile<Bits, G, 4, Exact>(product, tile, m0);
        else multiply_tile<Bits, G, 1, Exact>(product, tile, m0);
      }
      m0 += rows;
    }
  }
}

// G divides the blocks of a group.
template <int Bits>
void linear_of(const Product& product, int64_t first, int64_t end) {
  constexpr int largest = largest_step(Bits);
  const Weight& weight = product.weight;
  const int64_t blocks = weight.group_blocks;
  if (Bits > 2 && weight.scale_storage == Storage::kFloat32)  // rare: one instance does
    return linear_tiles<Bits, 1, false>(product, first, end);
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
