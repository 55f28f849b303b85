// The packed product: tokens x weight, straight from tiles. docs/kernels.md says why it is this way.
//
// A warp owns 32 rows (4 tiles) and a share of the inputs (stages.cuh). Codes become operands in
// registers and are the left operand of mma.m16n8k16, two tiles to a product; tokens are its 8
// columns. Sums of a segment, blocks of one group, meet their scale in float. All orders of summation
// are fixed by the plan.
#pragma once

#include <algorithm>
#include <type_traits>

#include "codes.cuh"
#include "stages.cuh"

namespace bitsweep::cuda {

// Registers of a warp: sums of the segment at hand and in all, for each pair of tiles.
template <class C>
struct Sums {
  float segment[C::kPairs][C::Tokens][4], total[C::kPairs][C::Tokens][4];
  uint32_t top[C::Bits == 3 ? kWarpTiles : 1];  // three bits: the codes of block 15 so far
};

template <class Group>
__device__ __forceinline__ void set_zero(Group& group) {
#pragma unroll
  for (auto& pair : group)
#pragma unroll
    for (auto& token : pair)
#pragma unroll
      for (float& value : token) value = 0.0f;
}

// The scales of this lane's row of each tile, of segment `at` of the unit; `scales` is where those
// of the first tile and segment lie.
template <class C>
__device__ __forceinline__ void read_scales(
    float (&values)[kWarpTiles], Shared scales, int at, int row, Storage storage) {
  if (storage == Storage::kFloat32) {
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++)
      values[j] = load_float(scales + ((j * C::kSegments + at) * 8 + row) * 4);
    return;
  }
  uint16_t bits[kWarpTiles];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++)
    bits[j] = load_2(scales + ((j * C::kSegments + at) * 8 + row) * 2);
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++)
    values[j] = storage == Storage::kFloat16 ? widen_half(bits[j]) : bfloat16_to_float(bits[j]);
}

// total += scale * segment.
template <class C, Plane P>
__device__ __forceinline__ void apply_scales(
    Sums<C>& sums, const float (&scales)[kWarpTiles]) {
#pragma unroll
  for (int pair = 0; pair < C::kPairs; pair++) {
#pragma unroll
    for (int n = 0; n < C::Tokens; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const float scale = scales[2 * pair + c / 2];
        sums.total[pair][n][c] = fmaf(
            P == Plane::kNegative ? -scale : scale, sums.segment[pair][n][c],
            sums.total[pair][n][c]);
      }
  }
}

// Two tiles of a block as the left operands of its two products: inputs 8t .. 8t + 3 and 8t + 4 ..
// 8t + 7 of row g of both.
template <class C, Plane P>
__device__ __forceinline__ void make_operands(
    uint32_t (&a)[2][4], const Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4],
    const uint32_t (&offset)[kWarpTiles], int pair, int i) {
  using Operand = Codes<typename C::T, C::Bits, P>;
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int j = 2 * pair + h;
      a[q / 2][q % 2 * 2 + h] = straddles(C::Bits, i)
          ? Operand::pair(sums.top[j % (C::Bits == 3 ? kWarpTiles : 1)], q, offset[j])
          : Operand::pair(words[j][q], i, offset[j]);
    }
}

// The products of one plane of blocks [begin, end) of a chunk, which are of one segment. The order
// of loops keeps few registers: with few tokens those of a block are held and operands made two
// tiles at a time, with more tokens the operands are held.
template <class C, Plane P>
__device__ __forceinline__ void multiply_blocks(
    Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4], Shared x, Shared offsets, int at,
    int begin, int end, int row) {
  using T = typename C::T;
  constexpr int stride = 8 * C::kStride;
  uint32_t offset[kWarpTiles];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++)
    offset[j] = Codes<T, C::Bits, P>::offset(
        C::Ternary ? 0u : load_1(offsets + (j * C::kSegments + at) * 8 + row));
#pragma unroll
  for (int i = begin; i < end; i++) {
    const Shared from = x + i * 64;
    if (C::kOrdered) keep_order();
    if constexpr (C::Tokens <= 2) {
      uint4 b[C::Tokens];
#pragma unroll
      for (int n = 0; n < C::Tokens; n++) b[n] = load_16(from + n * stride);
#pragma unroll
      for (int pair = 0; pair < C::kPairs; pair++) {
        uint32_t a[2][4];
        make_operands<C, P>(a, sums, words, offset, pair, i);
#pragma unroll
        for (int n = 0; n < C::Tokens; n++) {
          multiply_tiles<T>(sums.segment[pair][n], a[0], b[n].x, b[n].y);
          multiply_tiles<T>(sums.segment[pair][n], a[1], b[n].z, b[n].w);
        }
      }
    } else {
      uint32_t a[C::kPairs][2][4];
#pragma unroll
      for (int pair = 0; pair < C::kPairs; pair++)
        make_operands<C, P>(a[pair], sums, words, offset, pair, i);
#pragma unroll
      for (int n = 0; n < C::Tokens; n++) {
        const uint4 b = load_16(from + n * stride);
#pragma unroll
        for (int pair = 0; pair < C::kPairs; pair++) {
          multiply_tiles<T>(sums.segment[pair][n], a[pair][0], b.x, b.y);
          multiply_tiles<T>(sums.segment[pair][n], a[pair][1], b.z, b.w);
        }
      }
    }
  }
}

// What a unit multiplies with: its segments' scales and offsets, and activations. A step of 3 bits
// counts segments and blocks from its beginning, because they lie across units; others count them
// from the unit's beginning, so that one piece of code serves all units.
struct Source {
  Shared scales, offsets, x;
};

template <class C, Plane P, int Unit>
__device__ __forceinline__ void multiply_segment(
    const LinearArguments& p, Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4],
    const Source& from, int segment, int row) {
  constexpr int first = first_block(C::Bits, Unit), last = end_block(C::Bits, Unit);
  const int begin = max(segment * C::Segment, first), end = min((segment + 1) * C::Segment, last);
  if (begin % C::Segment == 0) set_zero(sums.segment);
  multiply_blocks<C, P>(sums, words, from.x, from.offsets, segment, begin, end, row);
  if (end % C::Segment != 0) return;
  if (C::kOrdered) keep_order();
  float scales[kWarpTiles];
  read_scales<C>(
      scales, P == Plane::kNegative ? from.offsets : from.scales, segment, row,
      p.weight.scale_storage);
  apply_scales<C, P>(sums, scales);
}

// The products of one unit, whose words this lane has in `slot`.
template <class C, int Unit>
__device__ __forceinline__ void multiply_unit(
    const LinearArguments& p, const Source& from, Shared slot, int row, Sums<C>& sums) {
  if (C::kOrdered) keep_order();
  uint32_t words[kWarpTiles][4];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++) {
    const uint4 four = load_16(slot + j * 512);
    words[j][0] = four.x, words[j][1] = four.y, words[j][2] = four.z, words[j][3] = four.w;
  }
  if constexpr (C::Bits == 3) {
    using Operand = Codes<typename C::T, 3>;
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++)
#pragma unroll
      for (int q = 0; q < 4; q++)
        sums.top[j] =
            (Unit == 0 && q == 0 ? 0u : sums.top[j]) | Operand::top(words[j][q], Unit, q);
  }
  constexpr int first = first_block(C::Bits, Unit) / C::Segment;
  constexpr int last = (end_block(C::Bits, Unit) - 1) / C::Segment;
  auto multiply_plane = [&](auto plane) {
#pragma unroll
    for (int s = first; s <= last; s++)
      multiply_segment<C, decltype(plane)::value, Unit>(p, sums, words, from, s, row);
  };
  if constexpr (C::Ternary) {
    multiply_plane(std::integral_constant<Plane, Plane::kPositive>{});
#pragma unroll
    for (auto& tile : words)
#pragma unroll
      for (uint32_t& word : tile) word = clear_codes(word);
    multiply_plane(std::integral_constant<Plane, Plane::kNegative>{});
  } else {
    multiply_plane(std::integral_constant<Plane, Plane::kCode>{});
  }
}

// The scales, offsets and activations of a unit of the step in `slot`.
template <class C>
__device__ __forceinline__ Source source_of(
    const LinearArguments& p, const Place& place, uint32_t slot, int unit) {
  // Up to 8 tokens, those that are not there repeat the last one; rows of more tokens have their
  // own places, and what lies in the columns of no token is not stored.
  const int row = place.row;
  const int token = C::Tokens > 1 ? row : min(row, p.plan.batch - 1);
  const int segment = C::Bits == 3 ? 0 : unit * (C::kSegments / C::kUnits);
  const int block = C::Bits == 3 ? 0 : unit * (C::kBlocks / C::kUnits);
  const int scale = p.weight.scale_storage == Storage::kFloat32 ? 32 : 16;
  const Shared grid = place.grid + slot;
  return {
      grid + segment * scale, grid + p.plan.offsets_at + segment * (C::Ternary ? scale : 8),
      place.x + slot + token * C::kStride + place.quarter * 16 + block * 64};
}

// Where finished sums of a row block go: y, or a slot of partial sums when others add to them.
struct Sink {
  bool whole;
  int row0;
  float* partials;
};

// The sink of the row block of the last step done, `left` steps before the end of the share.
__device__ __forceinline__ Sink sink_of(const LinearArguments& p, int left) {
  const Plan& plan = p.plan;
  const int block = static_cast<int>(blockIdx.x);
  const int begin = share_begin(plan, block), end = share_begin(plan, block + 1);
  const int row_block = (end - left - 1) / plan.k_steps;
  const int first = row_block * plan.k_steps;
  const int64_t slot = partial_slot(block, row_block == begin / plan.k_steps);
  return {
      begin <= first && first + plan.k_steps <= end, row_block * plan.rows,
      p.partials + slot * plan.batch * plan.rows};
}

template <class T>
__device__ __forceinline__ void store_output(
    const LinearArguments& p, int token, int64_t output, float sum) {
  if (p.bias != nullptr) sum += load_as_float(p.bias, p.bias_storage, output);
  p.y[static_cast<int64_t>(token) * p.weight.outputs + output] =
      static_cast<uint16_t>(round_pair<T>(sum, 0.0f));
}

template <class T>
__device__ __forceinline__ void emit(
    const LinearArguments& p, const Sink& sink, int token, int row, float sum) {
  if (token >= p.plan.batch) return;
  if (!sink.whole) sink.partials[token * p.plan.rows + row] = sum;
  else if (sink.row0 + row < p.weight.outputs) store_output<T>(p, token, sink.row0 + row, sum);
}

// Add the sums of the groups of warps, in their order, and hand them on.
template <class C>
__device__ __forceinline__ void finish(
    const LinearArguments& p, Shared base, const Sink& sink, Sums<C>& sums) {
  using T = typename C::T;
  const Place place(p.plan, base);
  const Shared shared = base + p.plan.sums_at;
  const int rows = p.plan.rows;
  if (C::Tokens == 1) __syncthreads();  // the sums before these have been read
#pragma unroll
  for (int pair = 0; pair < C::kPairs; pair++)
#pragma unroll
    for (int n = 0; n < C::Tokens; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int token = n * 8 + place.quarter * 2 + c % 2;
        const int row = place.row_warp * kWarpRows + pair * 16 + c / 2 * 8 + place.row;
        const float sum = sums.total[pair][n][c];
        if (C::Tokens == 1) store_float(shared + ((place.k_group * 8 + token) * rows + row) * 4, sum);
        else emit<T>(p, sink, token, row, sum);
      }
  if (C::Tokens > 1) return;
  __syncthreads();
  for (int i = place.thread; i < p.plan.batch * rows; i += kThreads) {
    float sum = load_float(shared + i * 4);
    for (int g = 1; g < p.plan.k_groups; g++) sum += load_float(shared + (g * 8 * rows + i) * 4);
    emit<T>(p, sink, i / rows, i % rows, sum);
  }
}

template <class C>
__global__ void __launch_bounds__(
    kThreads, resident_blocks(C::Bits, C::Ternary, C::Segment, 8 * C::Tokens))
    multiply(const __grid_constant__ LinearArguments p) {
  const Plan& plan = p.plan;
  const Shared base = shared_memory();
  Step here(plan, Place(plan, base));
  const uint32_t last = (plan.depth - 1) * kUnitBytes;  // slot of the ring
  fetch_step<C>(p, Place(plan, base), here);
  for (int unit = 0; unit < plan.depth - 1; unit++)
    fetch_words<C>(p, Place(plan, base), here, unit, unit * kUnitBytes);

  Sums<C> sums;
  set_zero(sums.total);
  uint32_t slot = 0;
  auto run_unit = [&](int unit, auto number) {
    const Place place(plan, base);
    const int ahead = unit + plan.depth - 1;  // the unit to be fetched, of this step or the next
    fetch_words<C>(
        p, place, ahead < C::kUnits ? here : here.next(plan),
        ahead < C::kUnits ? ahead : ahead - C::kUnits, slot == 0 ? last : slot - kUnitBytes);
    if (here.busy<C>(p))
      multiply_unit<C, decltype(number)::value>(
          p, source_of<C>(p, place, here.slot(plan), unit), place.words + slot, place.row, sums);
    slot = slot == last ? 0 : slot + kUnitBytes;
  };
  while (here.left > 0) {
    await_unit(plan);
    const Place place(plan, base);
    await_group(plan, place);
    fetch_step<C>(p, place, here.next(plan));
    run_unit(0, std::integral_constant<int, 0>{});
    if constexpr (C::Bits == 3) {
      await_unit(plan);
      run_unit(1, std::integral_constant<int, 1>{});
      await_unit(plan);
      run_unit(2, std::integral_constant<int, 2>{});
    } else {
#pragma unroll 1
      for (int unit = 1; unit < C::kUnits; unit++) {
        await_unit(plan);
        run_unit(unit, std::integral_constant<int, 0>{});
      }
    }
    if (!here.advance(plan) && here.left > 0) continue;
    if (here.left == 0) let_next_begin();
    finish<C>(p, base, sink_of(p, here.left), sums);
    set_zero(sums.total);
  }
}

}  // namespace bitsweep::cuda
