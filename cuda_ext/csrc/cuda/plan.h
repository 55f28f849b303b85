// How a product is cut over a device: tokens in passes, rows in blocks, steps over thread blocks.
#pragma once

#include "kernels.h"

namespace bitsweep::cuda {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kWarpTiles = 4, kWarpRows = kWarpTiles * kTileRows;  // tiles and rows of one warp
constexpr int kMaxDepth = 4;

// Units of a chunk, one after the other, are the stages of a warp. Block i of a 3-bit chunk lies in
// unit i / 5, and block 15, whose bits are in all three, is finished with the last.
BITSWEEP_HD constexpr int first_block(int bits, int unit) { return bits == 3 ? 5 * unit : 0; }
BITSWEEP_HD constexpr int end_block(int bits, int unit) {
  return bits == 3 ? (unit == 2 ? 16 : 5 * unit + 5) : chunk_blocks(bits);
}
BITSWEEP_HD constexpr int max_unit_blocks(int bits) { return bits == 3 ? 6 : chunk_blocks(bits); }

// A segment is the blocks of a chunk that are summed before they meet their scale: they are of one
// group. The long one serves groups of 128 and their multiples.
BITSWEEP_HD constexpr int long_segment(int bits) {
  return chunk_blocks(bits) < 4 ? chunk_blocks(bits) : 4;
}
BITSWEEP_HD constexpr int max_unit_segments(int bits, int segment) {
  return segment == 1 ? max_unit_blocks(bits) : (chunk_blocks(bits) > 4 ? 2 : 1);
}

// Bytes from one token to the next in a stage of activations: 64 more than a multiple of 128, so
// that two tokens' quarters of a block lie in different banks.
BITSWEEP_HD constexpr int token_stride(int bits) {
  return (max_unit_blocks(bits) * 64 + 127) / 128 * 128 + 64;
}

// Tokens of one pass. 64 columns leave too few registers for the operands of 2 and 3 bits, where a
// second pass costs little, because products and not bytes are their limit, and for 4 bits in short
// segments.
BITSWEEP_HD constexpr int max_tokens(int bits, int segment) {
  return bits == 8 || (bits == 4 && segment > 1) ? 64 : 32;
}

// Thread blocks on one multiprocessor that the registers of so many tokens leave room for.
BITSWEEP_HD constexpr int resident_blocks(int tokens, bool ternary) {
  return tokens <= (ternary ? 8 : 16) ? 2 : 1;
}

struct Device {
  int multiprocessors, block_shared, shared, major;  // bytes of shared memory a block, and in all
};

// Attributes of the current device, read once.
cudaError_t current_device(Device* device);

// `blocks` thread blocks share row_blocks * k_steps steps evenly and in order (share_begin). A step
// is one chunk for each group of warps; a group shares the inputs of `rows` rows.
struct Plan {
  int batch;      // tokens of one pass
  int tokens;     // columns of the products: 8, 16, 32 or 64
  int segment;    // blocks summed before their scale
  int row_warps;  // warps side by side over rows
  int k_groups;   // groups of such warps, which split the inputs
  int rows;       // outputs of a row block
  int row_blocks, k_steps;
  int steps, blocks;
  bool split;  // row blocks cut by thread blocks: partial sums go through the workspace
  int resident;  // thread blocks meant to share a multiprocessor
  int depth;     // stages in shared memory
  int warp_bytes, offsets_at, x_bytes, stage_bytes, shared_bytes;
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
// kernel counts in 32 bits, cudaErrorNotSupported if no two stages fit the shared memory.
cudaError_t plan_linear(const Weight& weight, int64_t batch, const Device& device, Plan* plan);

int64_t workspace_bytes(const Plan& plan);

}  // namespace bitsweep::cuda
