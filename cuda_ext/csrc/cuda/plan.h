// How a product is cut over a device: tokens in passes, rows in blocks, steps over thread blocks.
#pragma once

#include "kernels.h"

namespace bitsweep::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kWarpTiles = 4, kWarpRows = kWarpTiles * kTileRows;  // tiles and rows of one warp
constexpr int kUnitBytes = kWarpTiles * kUnitWords * 4;            // of one warp

// Block i of a 3-bit chunk lies in unit i / 5, and block 15, whose bits are in all three units, is
// finished with the last. In other chunks there is one unit.
BITSWEEP_HD constexpr int first_block(int bits, int unit) { return bits == 3 ? 5 * unit : 0; }
BITSWEEP_HD constexpr int end_block(int bits, int unit) {
  return bits == 3 ? (unit == 2 ? 16 : 5 * unit + 5) : chunk_blocks(bits);
}

// A step of a warp: as many chunks as make 512 inputs, or 256 at 8 bits and of ternary codes.
BITSWEEP_HD constexpr int step_chunks(int bits, bool ternary) {
  return bits == 3 || ternary ? 1 : (bits == 2 ? 2 : 4);
}
BITSWEEP_HD constexpr int step_units(int bits, bool ternary) {
  return step_chunks(bits, ternary) * chunk_units(bits);
}
BITSWEEP_HD constexpr int step_blocks(int bits, bool ternary) {
  return step_chunks(bits, ternary) * chunk_blocks(bits);
}

// Scales and activations of a step are fetched when the step before it begins, before the words that
// are fetched from then on: the ring may run ahead by no more than a step.
BITSWEEP_HD constexpr int max_depth(int bits, bool ternary) {
  return step_units(bits, ternary) < 3 ? step_units(bits, ternary) + 1 : 4;
}

// A segment is the blocks of a chunk that are summed before they meet their scale: they are of one
// group. The long one serves groups of 128 and their multiples.
BITSWEEP_HD constexpr int long_segment(int bits) {
  return chunk_blocks(bits) < 4 ? chunk_blocks(bits) : 4;
}

// Bytes from one token to the next in a step's activations: 64 more than a multiple of 128, so that
// two tokens' quarters of a block lie in different banks.
BITSWEEP_HD constexpr int token_stride(int bits, bool ternary) {
  return step_blocks(bits, ternary) * 64 + 64;
}

// Tokens of one pass. 64 columns leave too few registers for the operands of 2 and 3 bits, where a
// second pass costs little, because products and not bytes are their limit, and for 4 bits in short
// segments.
BITSWEEP_HD constexpr int max_tokens(int bits, int segment) {
  return bits == 8 || (bits == 4 && segment > 1) ? 64 : 32;
}

// Thread blocks on one multiprocessor that the registers leave room for: two of 128 a thread, or one.
BITSWEEP_HD constexpr int resident_blocks(int bits, bool ternary, int segment, int tokens) {
  const bool many = ternary || (bits == 3 && segment == 1);
  return tokens <= (many ? 8 : 16) ? 2 : 1;
}

struct Device {
  int multiprocessors, block_shared, shared;  // bytes of shared memory a block, and in all
};

// Attributes of the current device, read once.
cudaError_t current_device(Device* device);

// `blocks` thread blocks share row_blocks * k_steps steps evenly and in order (share_begin). A step
// is one step of each group of warps (step_chunks); a group shares the inputs of `rows` rows.
struct Plan {
  int batch;      // tokens of one pass
  int tokens;     // columns of the products: 8, 16, 32 or 64
  int segment;    // blocks summed before their scale
  int row_warps, row_warps_log;  // warps side by side over rows: 1, 4 or 8
  int k_groups;   // groups of such warps, which split the inputs
  int rows;       // outputs of a row block
  int row_blocks, k_steps;
  int steps, blocks;
  bool split;  // row blocks cut by thread blocks: partial sums go through the workspace
  int resident;  // thread blocks meant to share a multiprocessor
  int depth;     // units in the ring of a warp
  // In shared memory: bytes of a warp's scales and offsets, where the offsets lie in them, bytes of
  // a group's activations and of all of that; where it, the activations in it, and sums lie.
  int grid_bytes, offsets_at, x_bytes, step_bytes, steps_at, x_at, sums_at, shared_bytes;
};

// The first step of thread block `block`.
BITSWEEP_HD int share_begin(const Plan& plan, int block) {
  return static_cast<int>(
      static_cast<uint32_t>(block) * static_cast<uint32_t>(plan.steps) /
      static_cast<uint32_t>(plan.blocks));
}

// The thread block that takes a step.
BITSWEEP_HD int share_of(const Plan& plan, int step) {
  return static_cast<int>(
      ((static_cast<uint32_t>(step) + 1) * static_cast<uint32_t>(plan.blocks) - 1) /
      static_cast<uint32_t>(plan.steps));
}

// A thread block leaves at most two row blocks to be finished by others, its first and its last:
// the place of its sums among partial sums.
BITSWEEP_HD int64_t partial_slot(int block, bool first) { return 2 * int64_t{block} + !first; }

// The plan of the first pass over `batch` tokens; cudaErrorInvalidValue for a shape beyond what the
// kernel counts in 32 bits, cudaErrorNotSupported if nothing fits the shared memory.
cudaError_t plan_linear(const Weight& weight, int64_t batch, const Device& device, Plan* plan);

int64_t workspace_bytes(const Plan& plan);

}  // namespace bitsweep::cuda
