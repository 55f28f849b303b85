// One product: passes over the tokens, each a plan, a kernel, and a second one where it is split.
#include "launch.cuh"

namespace bitsweep::cuda {
namespace {

constexpr int kSumThreads = 128;

// y from the partial sums of row blocks that several thread blocks share, in the blocks' order.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    add_partials(const __grid_constant__ LinearArguments p) {
  const Plan& plan = p.plan;
  const int size = plan.rows * plan.batch;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  const int row_block = static_cast<int>(index / size), at = static_cast<int>(index % size);
  await_previous();
  if (row_block >= plan.row_blocks) return;
  const int first = row_block * plan.k_steps;
  const int begin = share_of(plan, first), last = share_of(plan, first + plan.k_steps - 1);
  const int64_t output = static_cast<int64_t>(row_block) * plan.rows + at % plan.rows;
  if (begin == last || output >= p.weight.outputs) return;
  float sum = 0.0f;
  for (int block = begin; block <= last; block++) {
    const bool is_first = share_begin(plan, block) / plan.k_steps == row_block;
    sum += p.partials[partial_slot(block, is_first) * size + at];
  }
  store_output<T>(p, at / plan.rows, output, sum);
}

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Whether the code of add_partials that runs here waits for the kernel before it. Code for older
// architectures does not, also where the driver compiles it for a newer one.
template <class T>
bool waits_itself() {
  cudaFuncAttributes attributes;
  const auto kernel = reinterpret_cast<const void*>(&add_partials<T>);
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess && attributes.ptxVersion >= 90;
}

template <class T>
cudaError_t add_up(const LinearArguments& p, cudaStream_t stream) {
  const int64_t sums = int64_t{p.plan.row_blocks} * p.plan.rows * p.plan.batch;
  const int64_t blocks = (sums + kSumThreads - 1) / kSumThreads;
  return launch(&add_partials<T>, blocks, kSumThreads, 0, stream, p, waits_itself<T>());
}

cudaError_t multiply_pass(const LinearArguments& p, Storage storage, cudaStream_t stream) {
  if (p.weight.zeros == nullptr) return multiply_ternary(p, storage, stream);
  switch (p.weight.bits) {
    case 2: return multiply_2(p, storage, stream);
    case 3: return multiply_3(p, storage, stream);
    case 4: return multiply_4(p, storage, stream);
    case 8: return multiply_8(p, storage, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace

cudaError_t linear(const Product& product, cudaStream_t stream) {
  const Weight& weight = product.weight;
  if (product.storage == Storage::kFloat32) return cudaErrorInvalidValue;
  if (!aligned(weight.tiles, 16) || !aligned(weight.scales, 16) || !aligned(weight.zeros, 8) ||
      !aligned(weight.negative, 16))
    return cudaErrorMisalignedAddress;
  Device device;
  if (cudaError_t error = current_device(&device); error != cudaSuccess) return error;
  LinearArguments p{};
  p.weight = weight;
  p.bias = product.bias;
  p.bias_storage = product.bias_storage;
  p.partials = static_cast<float*>(product.workspace);
  p.inputs = static_cast<uint32_t>(weight.inputs);
  p.blocks = static_cast<int>(weight.blocks);
  p.units = static_cast<int>(weight.units);
  p.groups = static_cast<int>(weight.groups);
  p.last_tile = static_cast<int>(tiles_for(weight.outputs)) - 1;
  p.scale_pieces = weight.scale_storage == Storage::kFloat32 ? 1 : 0;
  if (weight.group_blocks < weight.blocks)
    p.group_magic = static_cast<uint32_t>(
        ((int64_t{1} << 31) + weight.group_blocks - 1) / weight.group_blocks);
  for (int64_t token = 0; token < product.batch; token += p.plan.batch) {
    cudaError_t error = plan_linear(weight, product.batch - token, device, &p.plan);
    if (error != cudaSuccess) return error;
    p.x = static_cast<const uint16_t*>(product.x) + token * weight.inputs;
    p.x_aligned = weight.inputs % 8 == 0 && aligned(p.x, 16);
    p.y = static_cast<uint16_t*>(product.y) + token * weight.outputs;
    error = multiply_pass(p, product.storage, stream);
    if (error == cudaSuccess && p.plan.split)
      error = product.storage == Storage::kFloat16 ? add_up<Half>(p, stream)
                                                   : add_up<BFloat16>(p, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace bitsweep::cuda
