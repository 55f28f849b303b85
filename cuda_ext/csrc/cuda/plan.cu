#include "plan.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace bitsweep::cuda {
namespace {

// What a second kernel and its partial sums cost, in bytes of weights that a multiprocessor could
// have read meanwhile: about a microsecond of 32 bytes a nanosecond. Not measured.
constexpr int64_t kSplitBytes = 32 * 1024;

constexpr int64_t kCountLimit = int64_t{1} << 31;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int columns_for(int64_t batch, int limit) {
  int tokens = 8;
  while (tokens < batch && tokens < limit) tokens *= 2;
  return tokens;
}

// Warps side by side over rows. More rows to a thread block read the activations fewer times; with
// one or two tokens there is little to read, and small row blocks need no second kernel.
int row_warps_log_for(int64_t batch) { return batch <= 2 ? 0 : (batch <= 4 ? 2 : 3); }

bool segments_fit(const Weight& weight) {
  return weight.group_blocks >= weight.blocks ||
      weight.group_blocks % long_segment(weight.bits) == 0;
}

// What lies where in shared memory, and how much runs ahead; false if it does not fit.
bool lay_out(const Weight& weight, const Device& device, Plan* plan) {
  const bool ternary = weight.zeros == nullptr;
  const int segments = kWarpTiles * step_blocks(weight.bits, ternary) / plan->segment;
  const int scale = kTileRows * (weight.scale_storage == Storage::kFloat32 ? 4 : 2);
  plan->offsets_at = segments * scale;
  plan->grid_bytes = plan->offsets_at + segments * (ternary ? scale : kTileRows);
  const int rows_of_x = plan->tokens == 8 ? plan->batch : plan->tokens;
  plan->x_bytes = rows_of_x * token_stride(weight.bits, ternary);
  plan->step_bytes = kWarps * plan->grid_bytes + plan->k_groups * plan->x_bytes;
  const int sums = plan->tokens == 8 ? kThreads * 8 * 4 : 0;
  const int most = resident_blocks(weight.bits, ternary, plan->segment, plan->tokens);
  for (int resident = most; resident > 0; resident--) {
    // A block takes 1 KB of its own on top of what it asks for.
    const int room = std::min(device.block_shared, device.shared / resident - 1024);
    for (int depth = max_depth(weight.bits, ternary); depth >= 2; depth--) {
      plan->depth = depth;
      plan->resident = resident;
      plan->steps_at = kWarps * depth * kUnitBytes;
      plan->x_at = plan->steps_at + kWarps * plan->grid_bytes;
      plan->sums_at = plan->steps_at + 2 * plan->step_bytes;
      plan->shared_bytes = plan->sums_at + sums;
      if (plan->shared_bytes <= room) return true;
    }
  }
  return false;
}

// Whole row blocks, one a thread block, unless they leave so many multiprocessors idle that an even
// share of steps is worth the second kernel.
void share_out(const Weight& weight, const Device& device, Plan* plan) {
  const int64_t row_block_bytes = int64_t{plan->rows} * weight.inputs * weight.bits / 8;
  const int64_t whole =
      divide_up(plan->row_blocks, device.multiprocessors) * row_block_bytes;
  const int64_t sums = int64_t{2} * 4 * plan->rows * plan->batch * plan->resident;
  const int64_t shared =
      plan->row_blocks * row_block_bytes / device.multiprocessors + kSplitBytes + sums;
  plan->split = shared < whole && plan->k_steps > 1;
  plan->blocks = plan->row_blocks;
  if (plan->split)
    plan->blocks = std::min(plan->steps, device.multiprocessors * plan->resident);
}

}  // namespace

cudaError_t current_device(Device* device) {
  constexpr int kDevices = 64;
  static Device known[kDevices];
  static std::atomic<bool> ready[kDevices];
  int ordinal = 0;
  if (cudaError_t error = cudaGetDevice(&ordinal); error != cudaSuccess) return error;
  if (ordinal < kDevices && ready[ordinal].load(std::memory_order_acquire)) {
    *device = known[ordinal];
    return cudaSuccess;
  }
  const std::pair<int*, cudaDeviceAttr> attributes[] = {
      {&device->multiprocessors, cudaDevAttrMultiProcessorCount},
      {&device->block_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin},
      {&device->shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor}};
  for (auto [value, attribute] : attributes) {
    cudaError_t error = cudaDeviceGetAttribute(value, attribute, ordinal);
    if (error != cudaSuccess) return error;
  }
  if (ordinal < kDevices && !ready[ordinal].load(std::memory_order_acquire)) {
    // Two threads that come here at once write the same values.
    known[ordinal] = *device;
    ready[ordinal].store(true, std::memory_order_release);
  }
  return cudaSuccess;
}

cudaError_t plan_linear(const Weight& weight, int64_t batch, const Device& device, Plan* plan) {
  const int parts = static_cast<int>(divide_up(weight.blocks, step_blocks(weight.bits, !weight.zeros)));
  const int64_t words = tiles_for(weight.outputs) * weight.units * 32;  // of 16 bytes
  const int64_t cells = tiles_for(weight.outputs) * weight.groups * 2;  // 16 bytes of scales
  const int64_t values = weight.inputs * kMaxBatch;
  // Blocks squared bound the product with which `group_of` divides.
  if (std::max({words, cells, values}) >= 2 * kCountLimit ||
      weight.blocks * weight.blocks >= kCountLimit)
    return cudaErrorInvalidValue;
  plan->segment = segments_fit(weight) ? long_segment(weight.bits) : 1;
  for (int limit = max_tokens(weight.bits, plan->segment);; limit /= 2) {
    if (limit == 0) return cudaErrorNotSupported;
    plan->batch = static_cast<int>(std::min<int64_t>(batch, limit));
    plan->tokens = columns_for(plan->batch, limit);
    plan->row_warps_log = row_warps_log_for(plan->batch);
    plan->row_warps = 1 << plan->row_warps_log;
    plan->k_groups = kWarps / plan->row_warps;
    if (lay_out(weight, device, plan)) break;
  }
  plan->rows = plan->row_warps * kWarpRows;
  plan->row_blocks = static_cast<int>(divide_up(weight.outputs, plan->rows));
  plan->k_steps = static_cast<int>(divide_up(parts, plan->k_groups));
  const int64_t steps = int64_t{plan->row_blocks} * plan->k_steps;
  const int64_t most = std::max<int64_t>(
      plan->row_blocks, int64_t{device.multiprocessors} * plan->resident);
  if (steps * most >= kCountLimit) return cudaErrorInvalidValue;
  plan->steps = static_cast<int>(steps);
  share_out(weight, device, plan);
  return cudaSuccess;
}

int64_t workspace_bytes(const Plan& plan) {
  return plan.split ? int64_t{2} * plan.blocks * plan.batch * plan.rows * 4 : 0;
}

int64_t workspace_bytes(const Weight& weight, int64_t batch) {
  Device device;
  if (current_device(&device) != cudaSuccess) return 0;
  int64_t most = 0;
  for (Plan plan; batch > 0; batch -= plan.batch) {
    if (plan_linear(weight, batch, device, &plan) != cudaSuccess) return 0;
    most = std::max(most, workspace_bytes(plan));
  }
  return most;
}

}  // namespace bitsweep::cuda
