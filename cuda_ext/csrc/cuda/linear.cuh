// The packed product: tokens x weight, straight from tiles. docs/kernels.md says why it is this way.
//
// A warp owns 32 rows (4 tiles) and goes through units of 16 words a row: a ring of stages in shared
// memory, filled by cp.async, holds its words, scales and zero-points and the activations that it
// shares with the warps beside it. Codes become operands in registers and are the left operand of
// mma.m16n8k16, two tiles to a product; tokens are its 8 columns. Sums of a segment meet their scale
// in float. All orders of summation are fixed by the plan.
#pragma once

#include "codes.cuh"
#include "plan.h"

namespace bitsweep::cuda {

struct LinearArguments {
  Weight weight;
  Plan plan;
  const uint16_t* x;
  bool x_aligned;  // every row of x begins on 16 bytes
  const void* bias;
  Storage bias_storage;
  uint16_t* y;
  float* partials;       // [2 * blocks, batch, rows], when the plan splits
  uint32_t group_magic;  // ceil(2^31 / group_blocks); 0 when the row is one group
};

template <class T_, int Bits_, bool Ternary_, int Segment_, int Tokens_>
struct Config {
  using T = T_;
  static constexpr int Bits = Bits_, Segment = Segment_, Tokens = Tokens_ / 8;
  static constexpr bool Ternary = Ternary_;
  static constexpr int kUnits = chunk_units(Bits);
  static constexpr int kSegments = max_unit_segments(Bits, Segment);
  static constexpr int kPairs = kWarpTiles / 2;
};

// Where this thread stands: its warp's rows and its group of warps.
struct Place {
  int lane, row_warp, k_group;

  __device__ explicit Place(const Plan& plan)
      : lane(static_cast<int>(threadIdx.x) % 32),
        row_warp(static_cast<int>(threadIdx.x) / 32 % plan.row_warps),
        k_group(static_cast<int>(threadIdx.x) / 32 / plan.row_warps) {}
  __device__ int row() const { return lane / 4; }
  __device__ int quarter() const { return lane % 4; }
};

// One stage of the block's ring: the part of each warp, then the activations of each group.
__device__ __forceinline__ char* warp_part(const Plan& plan, int slot) {
  return shared_memory() + slot * plan.stage_bytes +
      static_cast<int>(threadIdx.x) / 32 * plan.warp_bytes;
}
__device__ __forceinline__ char* x_part(const Plan& plan, int slot, int k_group) {
  return shared_memory() + slot * plan.stage_bytes + kWarps * plan.warp_bytes +
      k_group * plan.x_bytes;
}

__device__ __forceinline__ int scale_bytes(Storage storage) {
  return storage == Storage::kFloat32 ? 4 : 2;
}

// The next stage to be fetched, in the order in which stages are used.
struct Cursor {
  int step, row_block, k_step, unit;

  template <class C>
  __device__ __forceinline__ void advance(const Plan& plan) {
    if (++unit < C::kUnits) return;
    unit = 0;
    step++;
    if (++k_step < plan.k_steps) return;
    k_step = 0;
    row_block++;
  }
};

__device__ __forceinline__ int group_of(const LinearArguments& p, int block) {
  int group = static_cast<int>((static_cast<uint64_t>(block) * p.group_magic) >> 31);
  return group < p.weight.groups ? group : static_cast<int>(p.weight.groups) - 1;
}

// Fetch words, scales and zero-points of unit `unit` of a chunk for the rows of this warp. Rows past
// the last tile read it again: their results are not stored.
template <class C>
__device__ __forceinline__ void fetch_weights(
    const LinearArguments& p, const Place& place, const Cursor& at, int chunk, int slot) {
  char* part = warp_part(p.plan, slot);
  const int tile0 = (at.row_block * p.plan.row_warps + place.row_warp) * kWarpTiles;
  const int last = static_cast<int>(tiles_for(p.weight.outputs)) - 1;
  const int unit = chunk * C::kUnits + at.unit;
  const uint4* tiles = reinterpret_cast<const uint4*>(p.weight.tiles);
  if (unit < p.weight.units) {
    const uint64_t policy = read_once_policy();
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++) {
      const int tile = tile0 + j < last ? tile0 + j : last;
      const uint32_t from = (static_cast<uint32_t>(tile) * static_cast<uint32_t>(p.weight.units) +
                             static_cast<uint32_t>(unit)) * 32u + place.lane;
      copy_once(part + j * 512 + place.lane * 16, tiles + from, policy);
    }
  } else {
    // An unfinished 3-bit chunk: its activations are zero, and so must be its words.
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++) copy_16(part + j * 512 + place.lane * 16, tiles, 0);
  }

  const int segment0 = first_block(C::Bits, at.unit) / C::Segment;
  const int block0 = chunk * chunk_blocks(C::Bits);
  char* scales = part + kWarpTiles * 512;
  const int width = 8 * scale_bytes(p.weight.scale_storage), pieces = width / 16;
  char* offsets = scales + kWarpTiles * C::kSegments * width;
#pragma unroll 1
  for (int i = place.lane; i < kWarpTiles * C::kSegments * pieces; i += 32) {
    const int item = i / pieces, j = item / C::kSegments, s = item % C::kSegments;
    const int tile = tile0 + j < last ? tile0 + j : last;
    const int group = group_of(p, block0 + (segment0 + s) * C::Segment);
    const int64_t from =
        (static_cast<int64_t>(tile) * p.weight.groups + group) * width + i % pieces * 16;
    copy_16(scales + i * 16, static_cast<const char*>(p.weight.scales) + from);
    if (C::Ternary) copy_16(offsets + i * 16, static_cast<const char*>(p.weight.negative) + from);
    if (!C::Ternary && i % pieces == 0)
      copy_8(offsets + item * 8,
             p.weight.zeros + (static_cast<int64_t>(tile) * p.weight.groups + group) * 8);
  }
}

// Fetch the inputs of a unit of a chunk, shared by the warps of a group; past the row they are zero.
template <class C>
__device__ __forceinline__ void fetch_x(
    const LinearArguments& p, const Place& place, int unit, int chunk, int slot) {
  char* part = x_part(p.plan, slot, place.k_group);
  const int first = first_block(C::Bits, unit);
  const int pieces = 4 * (end_block(C::Bits, unit) - first);
  const int inputs = static_cast<int>(p.weight.inputs);
  const int k0 = (chunk * chunk_blocks(C::Bits) + first) * kBlock;
#pragma unroll 1
  for (int i = place.row_warp * 32 + place.lane; i < p.plan.batch * pieces;
       i += p.plan.row_warps * 32) {
    const int token = i / pieces, piece = i % pieces, k = k0 + piece * 8;
    const int left = inputs - k < 8 ? (inputs - k < 0 ? 0 : inputs - k) : 8;
    const uint16_t* from = p.x + static_cast<int64_t>(token) * inputs + (left > 0 ? k : 0);
    char* to = part + token * token_stride(C::Bits) + piece * 16;
    if (p.x_aligned) {
      copy_16(to, from, left * 2);
    } else {
      uint16_t values[8];
#pragma unroll
      for (int e = 0; e < 8; e++) values[e] = e < left ? from[e] : uint16_t{0};
      uint4 packed;
      packed.x = values[0] | static_cast<uint32_t>(values[1]) << 16;
      packed.y = values[2] | static_cast<uint32_t>(values[3]) << 16;
      packed.z = values[4] | static_cast<uint32_t>(values[5]) << 16;
      packed.w = values[6] | static_cast<uint32_t>(values[7]) << 16;
      *reinterpret_cast<uint4*>(to) = packed;
    }
  }
}

template <class C>
__device__ __forceinline__ void fetch(
    const LinearArguments& p, const Place& place, Cursor& at, int end, int slot) {
  if (at.step < end) {
    const int chunk = at.k_step * (kWarps / p.plan.row_warps) + place.k_group;
    if (chunk * chunk_blocks(C::Bits) < p.weight.blocks) {
      fetch_weights<C>(p, place, at, chunk, slot);
      fetch_x<C>(p, place, at.unit, chunk, slot);
    }
    at.advance<C>(p.plan);
  }
  close_copies();
}

// Wait for the oldest stage of the ring, for this thread and then for its group of warps. After
// this, the slot of the stage before it is free.
__device__ __forceinline__ void await_stage(const Plan& plan, const Place& place) {
  if (plan.depth == 4) await_copies<2>();
  else if (plan.depth == 3) await_copies<1>();
  else await_copies<0>();
  if (plan.row_warps == 1) __syncwarp();
  else if (place.k_group == 0) barrier<1>(plan.row_warps * 32);
  else barrier<2>(plan.row_warps * 32);
}

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

__device__ __forceinline__ float read_scale(const char* scales, int index, Storage storage) {
  if (storage == Storage::kFloat32) return reinterpret_cast<const float*>(scales)[index];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(scales)[index];
  return storage == Storage::kFloat16 ? widen_half(bits) : bfloat16_to_float(bits);
}

// total += scale * segment. `at` is the segment within the unit.
template <class C, Plane P>
__device__ __forceinline__ void apply_scales(
    Sums<C>& sums, const char* scales, const char* offsets, int at, int row, Storage storage) {
#pragma unroll
  for (int pair = 0; pair < C::kPairs; pair++) {
    float scale[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int index = ((2 * pair + h) * C::kSegments + at) * 8 + row;
      scale[h] = P == Plane::kNegative ? -read_scale(offsets, index, storage)
                                       : read_scale(scales, index, storage);
    }
#pragma unroll
    for (int n = 0; n < C::Tokens; n++)
#pragma unroll
      for (int c = 0; c < 4; c++)
        sums.total[pair][n][c] =
            fmaf(scale[c / 2], sums.segment[pair][n][c], sums.total[pair][n][c]);
  }
}

// The products of one plane of blocks [begin, end) of a chunk, which are of one segment.
template <class C, Plane P, int Unit>
__device__ __forceinline__ void multiply_blocks(
    Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4], const char* x, const char* offsets,
    int at, int begin, int end, int row) {
  using Operand = Codes<typename C::T, C::Bits, P>;
  uint32_t offset[kWarpTiles];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++)
    offset[j] = Operand::offset(
        C::Ternary ? 0u
                   : reinterpret_cast<const uint8_t*>(offsets)[(j * C::kSegments + at) * 8 + row]);
#pragma unroll
  for (int i = begin; i < end; i++) {
    if (C::Ternary || C::Tokens == 8) keep_order();
    uint32_t a[C::kPairs][2][4];
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++) {
#pragma unroll
      for (int q = 0; q < 4; q++)
        a[j / 2][q / 2][q % 2 * 2 + j % 2] = straddles(C::Bits, i)
            ? Operand::pair(sums.top[j % (C::Bits == 3 ? kWarpTiles : 1)], q, offset[j])
            : Operand::pair(words[j][q], i, offset[j]);
    }
#pragma unroll
    for (int n = 0; n < C::Tokens; n++) {
      const uint4 b = *reinterpret_cast<const uint4*>(
          x + n * 8 * token_stride(C::Bits) + (i - first_block(C::Bits, Unit)) * 64);
#pragma unroll
      for (int pair = 0; pair < C::kPairs; pair++) {
        multiply_tiles<typename C::T>(sums.segment[pair][n], a[pair][0], b.x, b.y);
        multiply_tiles<typename C::T>(sums.segment[pair][n], a[pair][1], b.z, b.w);
      }
    }
  }
}

template <class C, Plane P, int Unit>
__device__ __forceinline__ void multiply_segment(
    Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4], const char* x, const char* scales,
    const char* offsets, int segment, int row, Storage storage) {
  constexpr int first = first_block(C::Bits, Unit), last = end_block(C::Bits, Unit);
  const int at = segment - first / C::Segment;
  const int begin = segment * C::Segment > first ? segment * C::Segment : first;
  const int end = (segment + 1) * C::Segment < last ? (segment + 1) * C::Segment : last;
  if (begin % C::Segment == 0) set_zero(sums.segment);
  multiply_blocks<C, P, Unit>(sums, words, x, offsets, at, begin, end, row);
  if (end % C::Segment == 0) apply_scales<C, P>(sums, scales, offsets, at, row, storage);
}

// The products of one stage.
template <class C, int Unit>
__device__ __forceinline__ void multiply_unit(
    const LinearArguments& p, const Place& place, int slot, Sums<C>& sums) {
  const char* part = warp_part(p.plan, slot);
  uint32_t words[kWarpTiles][4];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++) {
    const uint4 four = *reinterpret_cast<const uint4*>(part + j * 512 + place.lane * 16);
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
  // Up to 8 tokens, those that are not there repeat the last one; rows of more tokens have their
  // own places, and what lies in the columns of no token is not stored.
  const int token =
      C::Tokens > 1 || place.row() < p.plan.batch ? place.row() : p.plan.batch - 1;
  const char* x = x_part(p.plan, slot, place.k_group) + token * token_stride(C::Bits) +
      place.quarter() * 16;
  const Storage storage = p.weight.scale_storage;
  const char* scales = part + kWarpTiles * 512;
  const char* offsets = scales + kWarpTiles * C::kSegments * 8 * scale_bytes(storage);

  constexpr int first = first_block(C::Bits, Unit) / C::Segment;
  constexpr int last = (end_block(C::Bits, Unit) - 1) / C::Segment;
  if constexpr (C::Ternary) {
#pragma unroll
    for (int s = first; s <= last; s++)
      multiply_segment<C, Plane::kPositive, Unit>(
          sums, words, x, scales, offsets, s, place.row(), storage);
#pragma unroll
    for (auto& tile : words)
#pragma unroll
      for (uint32_t& word : tile) word = clear_codes(word);
#pragma unroll
    for (int s = first; s <= last; s++)
      multiply_segment<C, Plane::kNegative, Unit>(
          sums, words, x, scales, offsets, s, place.row(), storage);
  } else {
#pragma unroll
    for (int s = first; s <= last; s++)
      multiply_segment<C, Plane::kCode, Unit>(
          sums, words, x, scales, offsets, s, place.row(), storage);
  }
}

// Where finished sums of a row block go: y, or a slot of partial sums when others add to them.
struct Sink {
  bool whole;
  int row0;
  float* partials;
};

__device__ __forceinline__ Sink sink_of(const LinearArguments& p, int row_block) {
  const Plan& plan = p.plan;
  const int block = static_cast<int>(blockIdx.x);
  const int begin = share_begin(plan, block), end = share_begin(plan, block + 1);
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
    const LinearArguments& p, const Place& place, const Sink& sink, Sums<C>& sums) {
  using T = typename C::T;
  float* shared =
      reinterpret_cast<float*>(shared_memory() + p.plan.depth * p.plan.stage_bytes);
  const int rows = p.plan.rows;
  if (C::Tokens == 1) __syncthreads();  // the sums before these have been read
#pragma unroll
  for (int pair = 0; pair < C::kPairs; pair++)
#pragma unroll
    for (int n = 0; n < C::Tokens; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int token = n * 8 + place.quarter() * 2 + c % 2;
        const int row = place.row_warp * kWarpRows + pair * 16 + c / 2 * 8 + place.row();
        const float sum = sums.total[pair][n][c];
        if (C::Tokens == 1) shared[(place.k_group * 8 + token) * rows + row] = sum;
        else emit<T>(p, sink, token, row, sum);
      }
  if (C::Tokens > 1) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < p.plan.batch * rows; i += kThreads) {
    float sum = shared[i];
    for (int g = 1; g < kWarps / p.plan.row_warps; g++) sum += shared[g * 8 * rows + i];
    emit<T>(p, sink, i / rows, i % rows, sum);
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads, resident_blocks(8 * C::Tokens))
    multiply(const __grid_constant__ LinearArguments p) {
  const Plan& plan = p.plan;
  const Place place(plan);
  int step = share_begin(plan, blockIdx.x);
  const int end = share_begin(plan, blockIdx.x + 1);
  int k_step = step % plan.k_steps;
  Cursor next{step, step / plan.k_steps, k_step, 0};
  for (int slot = 0; slot < plan.depth - 1; slot++) fetch<C>(p, place, next, end, slot);

  Sums<C> sums;
  set_zero(sums.total);
  int slot = 0;
  auto stage = [&](auto multiply_stage) {
    await_stage(plan, place);
    fetch<C>(p, place, next, end, slot == 0 ? plan.depth - 1 : slot - 1);
    if ((k_step * (kWarps / plan.row_warps) + place.k_group) * chunk_blocks(C::Bits) <
        p.weight.blocks)
      multiply_stage();
    slot = slot + 1 == plan.depth ? 0 : slot + 1;
  };
  for (; step < end; step++) {
    stage([&] { multiply_unit<C, 0>(p, place, slot, sums); });
    if constexpr (C::kUnits == 3) {
      stage([&] { multiply_unit<C, 1>(p, place, slot, sums); });
      stage([&] { multiply_unit<C, 2>(p, place, slot, sums); });
    }
    if (++k_step < plan.k_steps && step + 1 < end) continue;
    if (step + 1 == end) let_next_begin();
    finish<C>(p, place, sink_of(p, step / plan.k_steps), sums);
    set_zero(sums.total);
    k_step = 0;
  }
}

}  // namespace bitsweep::cuda
