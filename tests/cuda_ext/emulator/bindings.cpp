// The emulated kernels as C functions for ctypes: buffers of the caller are copied into guarded
// memory, results come back from memory that began spoilt. Sizes follow from the shapes.
#include <cstdint>

#include "../../../cuda_ext/csrc/cuda/plan.h"
#include "emulator.h"
#include "guarded.h"

namespace {

using namespace bitsweep;
using emulator::Guarded;

struct Layer {
  int32_t bits, scale_storage;
  int64_t inputs, outputs, group_size;
  const void *tiles, *scales, *zeros, *negative;
};

struct Shape {
  int32_t tokens, row_warps, rows, row_blocks, k_steps, blocks, split, depth, resident, shared_bytes;
};

int64_t width(int storage) { return storage == 0 ? 4 : 2; }

// The layer in guarded memory.
struct Guest {
  int64_t groups, cells;
  Guarded tiles, scales, zeros, negative;
  Weight weight;

  explicit Guest(const Layer& l)
      : groups((l.inputs + l.group_size - 1) / l.group_size),
        cells(tiles_for(l.outputs) * groups * kTileRows),
        tiles(l.tiles, tiles_for(l.outputs) * units_for(l.bits, l.inputs) * kUnitWords * 4),
        scales(l.scales, cells * width(l.scale_storage)),
        zeros(l.zeros, l.zeros ? cells : 0),
        negative(l.negative, l.negative ? cells * width(l.scale_storage) : 0),
        weight{} {
    weight.tiles = reinterpret_cast<const uint32_t*>(tiles.data());
    weight.scales = scales.data();
    weight.zeros = l.zeros ? reinterpret_cast<const uint8_t*>(zeros.data()) : nullptr;
    weight.negative = l.negative ? negative.data() : nullptr;
    weight.scale_storage = static_cast<Storage>(l.scale_storage);
    weight.bits = l.bits;
    weight.inputs = l.inputs;
    weight.outputs = l.outputs;
    weight.blocks = blocks_for(l.inputs);
    weight.units = units_for(l.bits, l.inputs);
    weight.groups = groups;
    weight.group_blocks = groups == 1 ? int64_t{1} << 40 : l.group_size / kBlock;
  }
};

}  // namespace

extern "C" {

void use_device(int multiprocessors, int block_shared, int shared, uint64_t order) {
  emulator::use_device({multiprocessors, block_shared, shared}, order);
}

const char* last_error() { return emulator::last_error().c_str(); }
int64_t launches() { return emulator::launches(); }

// The plan of the first pass.
int plan(const Layer* layer, int64_t batch, Shape* shape) {
  const Guest guest(*layer);
  cuda::Device device;
  cuda::Plan plan;
  cudaError_t error = cuda::current_device(&device);
  if (error == cudaSuccess) error = cuda::plan_linear(guest.weight, batch, device, &plan);
  if (error != cudaSuccess) return error;
  *shape = {plan.tokens, plan.row_warps, plan.rows, plan.row_blocks, plan.k_steps,
            plan.blocks, plan.split, plan.depth, plan.resident, plan.shared_bytes};
  return 0;
}

// `shift` values lie between the start of x and an aligned address.
int linear(
    const Layer* layer, const void* x, int storage, int64_t batch, int64_t shift, const void* bias,
    int bias_storage, void* y) {
  const Guest guest(*layer);
  const Guarded x_here(x, batch * layer->inputs * 2, shift * 2);
  const Guarded bias_here(bias, bias ? layer->outputs * width(bias_storage) : 0);
  const Guarded y_here(batch * layer->outputs * 2);
  const Guarded workspace(cuda::workspace_bytes(guest.weight, batch));
  cuda::Product product{};
  product.weight = guest.weight;
  product.x = x_here.data();
  product.storage = static_cast<Storage>(storage);
  product.batch = batch;
  product.bias = bias ? bias_here.data() : nullptr;
  product.bias_storage = static_cast<Storage>(bias_storage);
  product.y = y_here.data();
  product.workspace = workspace.data();
  const cudaError_t error = cuda::linear(product, nullptr);
  std::memcpy(y, y_here.data(), y_here.size());
  return error;
}

int dequantize(const Layer* layer, int storage, void* out) {
  const Guest guest(*layer);
  const Guarded here(layer->outputs * layer->inputs * width(storage));
  const cudaError_t error =
      cuda::dequantize(guest.weight, here.data(), static_cast<Storage>(storage), nullptr);
  std::memcpy(out, here.data(), here.size());
  return error;
}

int repack(const void* qweight, int bits, int64_t inputs, int64_t outputs, void* tiles) {
  const Guarded from(qweight, (inputs * bits + 31) / 32 * outputs * 4);
  const Guarded to(tiles_for(outputs) * units_for(bits, inputs) * kUnitWords * 4);
  const cudaError_t error = cuda::repack(
      reinterpret_cast<const uint32_t*>(from.data()), bits, inputs, outputs,
      reinterpret_cast<uint32_t*>(to.data()), nullptr);
  std::memcpy(tiles, to.data(), to.size());
  return error;
}

}  // extern "C"
