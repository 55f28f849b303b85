// How data comes to a warp of the packed product: shared memory and what is fetched into it.
//
// A warp goes through a row of its tiles in steps of up to 512 inputs, and through a step in units of
// 16 words a row. Words come by cp.async through a ring of `depth` units that each lane has for itself.
// Scales, zero-points and the activations that a group of warps shares come once a step, one step
// ahead, into one of two places: a step ends with a barrier of the group.
#pragma once

#include "intrinsics.cuh"
#include "plan.h"

namespace bitsweep::cuda {

struct LinearArguments {
  Weight weight;
  Plan plan;
  // Of the weight, in 32 bits: plan_linear has seen that they fit.
  uint32_t inputs;
  int blocks, units, groups, last_tile;
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
  static constexpr int kUnits = step_units(Bits, Ternary), kBlocks = step_blocks(Bits, Ternary);
  static constexpr int kStride = token_stride(Bits, Ternary);
  static constexpr int kSegments = kBlocks / Segment;  // of one row in a step
  static constexpr int kPairs = kWarpTiles / 2;
  // Where registers are short, blocks are worked through one at a time.
  static constexpr bool kOrdered = Ternary || Tokens == 8 || (Bits < 4 && Tokens == 2);
};

// Where a thread stands, and what is its own in shared memory: the rings of words of the warps; twice
// the scales and offsets of each warp and the activations of each group; the sums of the groups. This
// is made anew from the thread's number wherever it is needed, because registers are scarcer.
struct Place {
  int thread, lane, row, quarter, row_warp, k_group;
  Shared words, grid, x;  // of this lane, this warp and its group, in the first slot

  __device__ __forceinline__ Place(const Plan& plan, Shared base) : thread(read_thread_index()) {
    const int warp = thread / 32;
    lane = thread % 32;
    row = lane / 4;
    quarter = lane % 4;
    row_warp = warp & (plan.row_warps - 1);
    k_group = warp >> plan.row_warps_log;
    words = base + warp * plan.depth * kUnitBytes + lane * 16;
    grid = base + plan.steps_at + warp * plan.grid_bytes;
    x = base + plan.x_at + k_group * plan.x_bytes;
  }
};

// A step of this warp's share of the work.
struct Step {
  int left;  // steps from here to the end of the share
  int tile;  // the first of its rows
  int part;  // of the row: inputs part * kBlocks * 32 and on

  __device__ Step(const Plan& plan, const Place& place) {
    const int block = static_cast<int>(blockIdx.x), begin = share_begin(plan, block);
    left = share_begin(plan, block + 1) - begin;
    tile = (begin / plan.k_steps * plan.row_warps + place.row_warp) * kWarpTiles;
    part = begin % plan.k_steps * plan.k_groups + place.k_group;
  }

  // To the next step; whether that is in the next row block.
  __device__ __forceinline__ bool advance(const Plan& plan) {
    left--;
    part += plan.k_groups;
    const int parts = plan.k_steps * plan.k_groups;
    if (part < parts) return false;
    part -= parts;
    tile += plan.row_warps * kWarpTiles;
    return true;
  }

  __device__ __forceinline__ Step next(const Plan& plan) const {
    Step after = *this;
    after.advance(plan);
    return after;
  }

  // Which of the two places of steps it has.
  __device__ __forceinline__ uint32_t slot(const Plan& plan) const {
    return left % 2 == 0 ? 0 : plan.step_bytes;
  }

  // Whether there is anything to do: groups that have no part in a last step rest.
  template <class C>
  __device__ __forceinline__ bool busy(const LinearArguments& p) const {
    return left > 0 && part * C::kBlocks < p.blocks;
  }
};

__device__ __forceinline__ int group_of(const LinearArguments& p, int block) {
  const uint64_t product = static_cast<uint64_t>(static_cast<uint32_t>(block)) * p.group_magic;
  return min(static_cast<int>(product >> 31), p.groups - 1);
}

// Fetch the words of a unit for the rows of this warp. Rows past the last tile read it again: their
// results are not stored. Units past the row are not there; what their places hold meets activations
// of zero.
template <class C>
__device__ __forceinline__ void fetch_words(
    const LinearArguments& p, const Place& place, const Step& at, int unit_of_step,
    uint32_t slot) {
  const int unit = at.part * C::kUnits + unit_of_step;
  if (at.left > 0 && unit < p.units) {
    const uint64_t policy = read_once_policy();
    const uint4* tiles = reinterpret_cast<const uint4*>(p.weight.tiles);
#pragma unroll
    for (int j = 0; j < kWarpTiles; j++) {
      const uint32_t tile = min(at.tile + j, p.last_tile);
      const uint32_t from = (tile * p.units + unit) * 32u + place.lane;
      copy_once(place.words + slot + j * 512, tiles + from, policy);
    }
  }
  close_copies();
}

// Fetch the scales and zero-points of a step for the rows of this warp.
template <class C>
__device__ __forceinline__ void fetch_grid(
    const LinearArguments& p, const Place& place, const Step& at, uint32_t slot) {
  const Shared grid = place.grid + slot;
  const int pieces = kWarpTiles * C::kSegments << p.scale_pieces;
#pragma unroll 1
  for (int i = place.lane; i < pieces; i += 32) {
    const int item = i >> p.scale_pieces, s = item % C::kSegments;
    const uint32_t tile = min(at.tile + item / C::kSegments, p.last_tile);
    const uint32_t cell = tile * p.groups + group_of(p, at.part * C::kBlocks + s * C::Segment);
    const uint32_t piece = (cell << p.scale_pieces) + (i & p.scale_pieces);
    copy_16(grid + i * 16, static_cast<const uint4*>(p.weight.scales) + piece);
    const Shared offset = grid + p.plan.offsets_at;
    if (C::Ternary)
      copy_16(offset + i * 16, static_cast<const uint4*>(p.weight.negative) + piece);
    else if (!(i & p.scale_pieces))
      copy_8(offset + item * 8, reinterpret_cast<const uint2*>(p.weight.zeros) + cell);
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

// Fetch the inputs of a step, shared by the warps of a group; past the row they are zero.
template <class C>
__device__ __forceinline__ void fetch_x(
    const LinearArguments& p, const Place& place, const Step& at, uint32_t slot) {
  constexpr uint32_t pieces = 4 * C::kBlocks;
  const uint32_t threads = p.plan.row_warps * 32, count = p.plan.batch * pieces;
  const uint32_t k0 = at.part * C::kBlocks * kBlock;
#pragma unroll 1
  for (uint32_t i = place.thread & (threads - 1); i < count; i += threads) {
    const uint32_t token = i / pieces, piece = i % pieces, k = k0 + piece * 8;
    const uint16_t* from = p.x + (token * p.inputs + k);
    const Shared to = place.x + slot + token * C::kStride + piece * 16;
    if (p.x_aligned) copy_16(to, from, k < p.inputs ? 16 : 0);
    else store_16(to, gather_x(from, static_cast<int>(p.inputs - k)));
  }
}

template <class C>
__device__ __forceinline__ void fetch_step(
    const LinearArguments& p, const Place& place, const Step& at) {
  if (!at.busy<C>(p)) return;
  fetch_grid<C>(p, place, at, at.slot(p.plan));
  fetch_x<C>(p, place, at, at.slot(p.plan));
}

// Wait for this thread's copies of the oldest unit of the ring and all before it.
__device__ __forceinline__ void await_unit(const Plan& plan) {
  if (plan.depth == 4) await_copies<2>();
  else if (plan.depth == 3) await_copies<1>();
  else await_copies<0>();
}

// A barrier of the warps that share activations.
__device__ __forceinline__ void await_group(const Plan& plan, const Place& place) {
  if (plan.row_warps == 1) __syncwarp();
  else if (place.thread < plan.row_warps * 32) barrier<1>(plan.row_warps * 32);
  else barrier<2>(plan.row_warps * 32);
}

}  // namespace bitsweep::cuda
