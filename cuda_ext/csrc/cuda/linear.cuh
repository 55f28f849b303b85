// The packed product: tokens x weight, straight from tiles. docs/kernels.md says why it is this way.
//
// A warp owns 32 rows (4 tiles) and goes through units of 16 words a row: a ring of stages in shared
// memory, filled by cp.async, holds its words, scales and zero-points and the activations that it
// shares with the warps beside it. Codes become operands in registers and are the left operand of
// mma.m16n8k16, two tiles to a product; tokens are its 8 columns. Sums of a segment meet their scale
// in float. All orders of summation are fixed by the plan.
#pragma once

#include <algorithm>
#include <type_traits>

#include "codes.cuh"
#include "plan.h"

namespace bitsweep::cuda {

struct LinearArguments {
  Weight weight;
  Plan plan;
  // Of the weight, in 32 bits: plan_linear has seen that they fit.
  int inputs, blocks, units, groups, last_tile;
  int scale_pieces;      // 16 bytes each, of the eight scales of a tile and group: log2 of 1 or 2
  uint32_t group_magic;  // ceil(2^31 / group_blocks); 0 when the row is one group
  const uint16_t* x;
  bool x_aligned;  // every row of x begins on 16 bytes
  const void* bias;
  Storage bias_storage;
  uint16_t* y;
  float* partials;  // [2 * blocks, batch, rows], when the plan splits
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

// Where this thread stands: its lane, and the parts of its warp and of its group of warps in the
// first stage in shared memory; those of other stages lie stage_bytes further on. A stage is the
// words, scales and zero-points of each warp, then the activations of each group. What
// follows from the thread's number is computed where it is needed: registers are scarcer.
struct Place {
  Shared weights, x;

  __device__ explicit Place(const Plan& plan) {
    weights = shared_memory() + thread() / 32 * plan.warp_bytes;
    x = shared_memory() + kWarps * plan.warp_bytes + k_group(plan) * plan.x_bytes;
  }
  __device__ int thread() const { return read_thread_index(); }
  __device__ int lane() const { return thread() % 32; }
  __device__ int row() const { return lane() / 4; }
  __device__ int quarter() const { return lane() % 4; }
  __device__ int row_warp(const Plan& plan) const { return thread() / 32 % plan.row_warps; }
  __device__ int k_group(const Plan& plan) const { return thread() / 32 / plan.row_warps; }
};

// A stage of the block's share of the work, in the order in which stages are used: the first tile
// of this warp's rows, the chunk of its group, and the unit of the chunk.
struct Cursor {
  int left;  // steps from here to the end of the share
  int tile, chunk, unit;

  __device__ Cursor(const Plan& plan, const Place& place) : unit(0) {
    const int block = static_cast<int>(blockIdx.x), begin = share_begin(plan, block);
    left = share_begin(plan, block + 1) - begin;
    tile = (begin / plan.k_steps * plan.row_warps + place.row_warp(plan)) * kWarpTiles;
    chunk = begin % plan.k_steps * plan.k_groups + place.k_group(plan);
  }

  // To the next stage.
  template <class C>
  __device__ __forceinline__ void advance(const Plan& plan) {
    if (++unit < C::kUnits) return;
    unit = 0;
    left--;
    chunk += plan.k_groups;
    if (chunk < plan.k_steps * plan.k_groups) return;
    chunk -= plan.k_steps * plan.k_groups;
    tile += plan.row_warps * kWarpTiles;
  }

  // Groups that have no chunk in a last step rest.
  template <class C>
  __device__ __forceinline__ bool busy(const LinearArguments& p) const {
    return chunk * chunk_blocks(C::Bits) < p.blocks;
  }
};

__device__ __forceinline__ int group_of(const LinearArguments& p, int block) {
  const uint64_t product = static_cast<uint64_t>(static_cast<uint32_t>(block)) * p.group_magic;
  return min(static_cast<int>(product >> 31), p.groups - 1);
}

// Fetch words, scales and zero-points of a unit of a chunk for the rows of this warp. Rows past the
// last tile read it again: their results are not stored.
template <class C>
__device__ __forceinline__ void fetch_weights(
    const LinearArguments& p, const Place& place, const Cursor& at, uint32_t stage) {
  const Shared part = place.weights + stage;
  const int unit = at.chunk * C::kUnits + at.unit, lane = place.lane();
  const uint4* tiles = reinterpret_cast<const uint4*>(p.weight.tiles);
  if (C::kUnits == 1 || unit < p.units) {
    const uint64_t policy = read_once_policy();
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++) {
      const uint32_t tile = min(at.tile + j, p.last_tile);
      const uint32_t from = (tile * p.units + unit) * 32u + lane;
      copy_once(part + j * 512 + lane * 16, tiles + from, policy);
    }
  } else {
    // An unfinished 3-bit chunk: its activations are zero, and so must be its words.
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++) copy_16(part + j * 512 + lane * 16, tiles, 0);
  }

  const int block0 =
      at.chunk * chunk_blocks(C::Bits) + first_block(C::Bits, at.unit) / C::Segment * C::Segment;
  const int pieces = kWarpTiles * C::kSegments << p.scale_pieces;
  auto fetch_piece = [&](int i) {
    const int item = i >> p.scale_pieces, s = item % C::kSegments;
    const uint32_t tile = min(at.tile + item / C::kSegments, p.last_tile);
    const uint32_t cell = tile * p.groups + group_of(p, block0 + s * C::Segment);
    const uint32_t piece = (cell << p.scale_pieces) + (i & p.scale_pieces);
    copy_16(part + kWarpTiles * 512 + i * 16, static_cast<const uint4*>(p.weight.scales) + piece);
    if (C::Ternary)
      copy_16(
          part + p.plan.offsets_at + i * 16,
          static_cast<const uint4*>(p.weight.negative) + piece);
    else if (!(i & p.scale_pieces))
      copy_8(
          part + p.plan.offsets_at + item * 8,
          reinterpret_cast<const uint2*>(p.weight.zeros) + cell);
  };
  if constexpr (2 * kWarpTiles * C::kSegments <= 32) {
    if (lane < pieces) fetch_piece(lane);
  } else {
#pragma unroll 1
    for (int i = lane; i < pieces; i += 32) fetch_piece(i);
  }
}

// Eight inputs of x that do not begin on 16 bytes, `left` of them there.
__device__ __forceinline__ uint4 gather_x(const uint16_t* from, int left) {
  uint32_t values[8];
#pragma unroll
  for (int e = 0; e < 8; e++) values[e] = e < left ? from[e] : 0u;
  return {
      values[0] | values[1] << 16, values[2] | values[3] << 16, values[4] | values[5] << 16,
      values[6] | values[7] << 16};
}

// Fetch the inputs of a unit of a chunk, shared by the warps of a group; past the row they are zero.
template <class C>
__device__ __forceinline__ void fetch_x(
    const LinearArguments& p, const Place& place, const Cursor& at, uint32_t stage) {
  constexpr int most = 4 * max_unit_blocks(C::Bits);
  const int first = first_block(C::Bits, at.unit);
  const int pieces = 4 * (end_block(C::Bits, at.unit) - first);
  const int threads = p.plan.row_warps * 32;  // a power of two
  const int k0 = (at.chunk * chunk_blocks(C::Bits) + first) * kBlock;
#pragma unroll 1
  for (int i = place.thread() & (threads - 1); i < p.plan.batch * most; i += threads) {
    const int token = i / most, piece = i % most, k = k0 + piece * 8, left = p.inputs - k;
    const uint16_t* from = p.x + static_cast<uint32_t>(token * p.inputs + k);
    const Shared to = place.x + stage + token * token_stride(C::Bits) + piece * 16;
    if (C::kUnits > 1 && piece >= pieces) continue;
    if (p.x_aligned) copy_16(to, from, left > 0 ? 16 : 0);
    else store_16(to, gather_x(from, left));
  }
}

template <class C>
__device__ __forceinline__ void fetch(
    const LinearArguments& p, const Place& place, Cursor& at, uint32_t stage) {
  if (at.left > 0) {
    if (at.busy<C>(p)) {
      fetch_weights<C>(p, place, at, stage);
      fetch_x<C>(p, place, at, stage);
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
  else if (place.thread() < plan.row_warps * 32) barrier<1>(plan.row_warps * 32);
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
template <class C, Plane P, int Unit>
__device__ __forceinline__ void multiply_blocks(
    Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4], Shared x, Shared offsets, int at,
    int begin, int end, int row) {
  using T = typename C::T;
  constexpr int stride = 8 * token_stride(C::Bits);
  uint32_t offset[kWarpTiles];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++)
    offset[j] = Codes<T, C::Bits, P>::offset(
        C::Ternary ? 0u : load_1(offsets + (j * C::kSegments + at) * 8 + row));
#pragma unroll
  for (int i = begin; i < end; i++) {
    const Shared from = x + (i - first_block(C::Bits, Unit)) * 64;
    if (C::Ternary || C::Tokens == 8) keep_order();
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

template <class C, Plane P, int Unit>
__device__ __forceinline__ void multiply_segment(
    const LinearArguments& p, Sums<C>& sums, const uint32_t (&words)[kWarpTiles][4], Shared part,
    Shared x, int segment, int row) {
  constexpr int first = first_block(C::Bits, Unit), last = end_block(C::Bits, Unit);
  const int at = segment - first / C::Segment;
  const int begin = max(segment * C::Segment, first), end = min((segment + 1) * C::Segment, last);
  if (begin % C::Segment == 0) set_zero(sums.segment);
  const Shared offsets = part + p.plan.offsets_at;
  multiply_blocks<C, P, Unit>(sums, words, x, offsets, at, begin, end, row);
  if (end % C::Segment != 0) return;
  if (C::Ternary || C::Tokens == 8) keep_order();
  float scales[kWarpTiles];
  read_scales<C>(
      scales, P == Plane::kNegative ? offsets : part + kWarpTiles * 512, at, row,
      p.weight.scale_storage);
  apply_scales<C, P>(sums, scales);
}

// The products of one stage.
template <class C, int Unit>
__device__ __forceinline__ void multiply_unit(
    const LinearArguments& p, const Place& place, uint32_t stage, Sums<C>& sums) {
  const Shared part = place.weights + stage;
  uint32_t words[kWarpTiles][4];
#pragma unroll
  for (int j = 0; j < kWarpTiles; j++) {
    const uint4 four = load_16(part + j * 512 + place.lane() * 16);
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
  const int token = C::Tokens > 1 ? place.row() : min(place.row(), p.plan.batch - 1);
  const Shared x = place.x + stage + token * token_stride(C::Bits) + place.quarter() * 16;

  constexpr int first = first_block(C::Bits, Unit) / C::Segment;
  constexpr int last = (end_block(C::Bits, Unit) - 1) / C::Segment;
  auto multiply_plane = [&](auto plane) {
#pragma unroll
    for (int s = first; s <= last; s++)
      multiply_segment<C, decltype(plane)::value, Unit>(p, sums, words, part, x, s, place.row());
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
    const LinearArguments& p, const Place& place, const Sink& sink, Sums<C>& sums) {
  using T = typename C::T;
  const Shared shared = shared_memory() + p.plan.depth * p.plan.stage_bytes;
  const int rows = p.plan.rows;
  if (C::Tokens == 1) __syncthreads();  // the sums before these have been read
#pragma unroll
  for (int pair = 0; pair < C::kPairs; pair++)
#pragma unroll
    for (int n = 0; n < C::Tokens; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int token = n * 8 + place.quarter() * 2 + c % 2;
        const int row = place.row_warp(p.plan) * kWarpRows + pair * 16 + c / 2 * 8 + place.row();
        const float sum = sums.total[pair][n][c];
        if (C::Tokens == 1) store_float(shared + ((place.k_group(p.plan) * 8 + token) * rows + row) * 4, sum);
        else emit<T>(p, sink, token, row, sum);
      }
  if (C::Tokens > 1) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < p.plan.batch * rows; i += kThreads) {
    float sum = load_float(shared + i * 4);
    for (int g = 1; g < p.plan.k_groups; g++) sum += load_float(shared + (g * 8 * rows + i) * 4);
    emit<T>(p, sink, i / rows, i % rows, sum);
  }
}

template <class C>
__global__ void __launch_bounds__(kThreads, resident_blocks(8 * C::Tokens, C::Ternary))
    multiply(const __grid_constant__ LinearArguments p) {
  const Plan& plan = p.plan;
  const Place place(plan);
  Cursor next(plan, place), here = next;
  const uint32_t last = (plan.depth - 1) * plan.stage_bytes;
  for (uint32_t stage = 0; stage < last; stage += plan.stage_bytes)
    fetch<C>(p, place, next, stage);

  Sums<C> sums;
  set_zero(sums.total);
  uint32_t stage = 0;
  auto run_stage = [&](auto multiply_stage) {
    await_stage(plan, place);
    fetch<C>(p, place, next, stage == 0 ? last : stage - plan.stage_bytes);
    if (here.busy<C>(p)) multiply_stage();
    stage = stage == last ? 0 : stage + plan.stage_bytes;
  };
  while (here.left > 0) {
    run_stage([&] { multiply_unit<C, 0>(p, place, stage, sums); });
    if constexpr (C::kUnits == 3) {
      run_stage([&] { multiply_unit<C, 1>(p, place, stage, sums); });
      run_stage([&] { multiply_unit<C, 2>(p, place, stage, sums); });
    }
    here.left--;
    here.chunk += plan.k_groups;
    const bool ends = here.chunk >= plan.k_steps * plan.k_groups;
    if (ends) here.chunk -= plan.k_steps * plan.k_groups;
    if (!ends && here.left > 0) continue;
    if (here.left == 0) let_next_begin();
    finish<C>(p, place, sink_of(p, here.left), sums);
    set_zero(sums.total);
  }
}

}  // namespace bitsweep::cuda
