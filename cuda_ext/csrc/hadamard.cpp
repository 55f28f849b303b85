// bitsweep::hadamard, rows times a Hadamard matrix: schema and CPU implementation.
#include <torch/csrc/stable/library.h>

#include "cpu/chosen.h"
#include "in_shares.h"
#include "operators.h"

namespace bitsweep {
namespace {

// Sums that are worth a thread.
constexpr int64_t kShare = 1 << 18;

int64_t log2_of(int64_t n) {
  int64_t result = 0;
  while (n > 1) n >>= 1, result++;
  return result;
}

Tensor hadamard(
    const Tensor& x, const std::optional<Tensor>& core, const std::optional<Tensor>& factors) {
  constexpr const char* op = "hadamard";
  const Place place{"x", device_of(x)};
  STD_TORCH_CHECK(x.dim() > 0, op, ": x is a scalar; pass x as [..., n].");
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || type == ScalarType::Double, op, ": x is ", name_of(type),
      "; pass float32 or float64.");
  check(op, "x", x, type, sizes_of(x), place);
  const int64_t n = x.size(x.dim() - 1);
  HadamardProduct product{};
  product.order = core ? core->size(0) : 1;
  if (core) check(op, "core", *core, type, {product.order, product.order}, place);
  product.width = product.order > 0 ? n / product.order : 0;
  STD_TORCH_CHECK(
      product.order > 0 && product.order * product.width == n && product.width > 0 &&
          (product.width & (product.width - 1)) == 0,
      op, ": n=", n, " is no power of two times the order ", product.order, " of core.");
  const Tensor out = torch::stable::new_empty(x, sizes_of(x));
  if (x.numel() == 0) return out;
  product.blocks = 1;
  if (factors) {
    product.blocks = factors->numel() / n;
    check(op, "factors", *factors, type, {product.blocks, n}, place);
    STD_TORCH_CHECK(
        product.blocks > 0 && x.numel() / n % product.blocks == 0, op, ": factors is ",
        text_of(sizes_of(*factors)), " and x is ", text_of(sizes_of(x)),
        "; pass as many rows of factors as x has blocks of n.");
    product.factors = factors->data_ptr();
  }
  product.x = x.data_ptr();
  product.core = core ? core->data_ptr() : nullptr;
  product.out = out.data_ptr();
  const HadamardKernels kernels = chosen_kernels().hadamard;
  const auto run = type == ScalarType::Float ? kernels.in_float : kernels.in_double;
  const int64_t work = n * (product.order + log2_of(product.width));
  in_shares(
      x.numel() / n, worth_a_thread(work, kShare),
      [&](int64_t first, int64_t end) { run(product, first, end); });
  return out;
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def("hadamard(Tensor x, Tensor? core, Tensor? factors) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("hadamard", TORCH_BOX(&bitsweep::hadamard));
}
