// bitsweep::rms_norm, gated and rotated: what lies between the products of a block, each in one
// pass over memory, in float32 on the CPU. Kernels are those of a decode step.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <cstring>

#include "cpu/chosen.h"
#include "in_shares.h"
#include "operators.h"

namespace bitsweep {
namespace {

// Numbers that are worth a thread, as torch's own operators have it.
constexpr int64_t kShare = 32768;

const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }

Tensor rms_norm(const Tensor& x, const Tensor& weight, double epsilon) {
  constexpr const char* op = "rms_norm";
  const Place place{"x", device_of(x)};
  STD_TORCH_CHECK(x.dim() > 0, op, ": x is a scalar; pass x as [..., features].");
  const int64_t features = x.size(x.dim() - 1);
  check(op, "x", x, ScalarType::Float, sizes_of(x), place);
  check(op, "weight", weight, ScalarType::Float, {features}, place);
  STD_TORCH_CHECK(
      std::isfinite(epsilon) && epsilon >= 0, op, ": epsilon=", epsilon,
      "; pass a finite number from 0 on.");
  const Tensor out = torch::stable::new_empty(x, sizes_of(x));
  if (x.numel() == 0) return out;
  const StepKernels run = chosen_kernels().step;
  const float *from = floats(x), *factors = floats(weight);
  auto* to = static_cast<float*>(out.data_ptr());
  in_shares(
      x.numel() / features, worth_a_thread(features, kShare), [&](int64_t first, int64_t end) {
        for (int64_t row = first; row < end; row++)
          run.norm(
              from + row * features, factors, static_cast<float>(epsilon), features,
              to + row * features);
      });
  return out;
}

Tensor gated(const Tensor& gate, const Tensor& up) {
  constexpr const char* op = "gated";
  const Place place{"gate", device_of(gate)};
  check(op, "gate", gate, ScalarType::Float, sizes_of(gate), place);
  check(op, "up", up, ScalarType::Float, sizes_of(gate), place);
  const Tensor out = torch::stable::new_empty(gate, sizes_of(gate));
  const StepKernels run = chosen_kernels().step;
  const float *gates = floats(gate), *ups = floats(up);
  auto* to = static_cast<float*>(out.data_ptr());
  // A vector cut in two by threads is filled up: the bits of a number do not depend on others.
  in_shares(gate.numel(), kShare, [&](int64_t first, int64_t end) {
    run.gate(gates + first, ups + first, end - first, to + first);
  });
  return out;
}

Tensor rotated(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  constexpr const char* op = "rotated";
  const Place place{"x", device_of(x)};
  STD_TORCH_CHECK(
      x.dim() == 4, op, ": x is ", text_of(sizes_of(x)),
      "; expected [batch, heads, tokens, width].");
  const int64_t batch = x.size(0), heads = x.size(1), tokens = x.size(2), width = x.size(3);
  check_strided(op, "x", x, ScalarType::Float, sizes_of(x), place);
  STD_TORCH_CHECK(width % 2 == 0, op, ": width=", width, " of a head; pass an even one.");
  STD_TORCH_CHECK(
      x.numel() == 0 || ((width < 2 || x.stride(3) == 1) && (heads < 2 || x.stride(1) == width)),
      op, ": the heads of a token do not lie side by side in x; pass a view of [batch, tokens, "
          "heads, width].");
  STD_TORCH_CHECK(
      cosine.dim() == 3, op, ": cosine is ", text_of(sizes_of(cosine)),
      "; expected [batch or 1, tokens, width].");
  const int64_t shared = cosine.size(0);
  STD_TORCH_CHECK(
      shared == 1 || shared == batch, op, ": cosine is for ", shared, " sequences, x has ", batch,
      "; pass one for all or one for each.");
  check(op, "cosine", cosine, ScalarType::Float, {shared, tokens, width}, place);
  check(op, "sine", sine, ScalarType::Float, {shared, tokens, width}, place);
  const Tensor out = torch::stable::new_empty(x, {batch, tokens, heads, width});
  const StepKernels run = chosen_kernels().step;
  const float *from = floats(x), *cosines = floats(cosine), *sines = floats(sine);
  auto* to = static_cast<float*>(out.data_ptr());
  const int64_t row = heads * width;
  in_shares(
      batch * tokens, worth_a_thread(row, kShare), [&](int64_t first, int64_t end) {
        for (int64_t at = first; at < end; at++) {
          const int64_t sequence = at / tokens, token = at % tokens;
          const int64_t angles = ((shared == 1 ? 0 : sequence) * tokens + token) * width;
          float* turned = to + at * row;
          std::memcpy(
              turned, from + sequence * x.stride(0) + token * x.stride(2), row * sizeof(float));
          run.rotate(turned, cosines + angles, sines + angles, heads, width, width);
        }
      });
  return torch::stable::transpose(out, 1, 2);
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float epsilon) -> Tensor");
  m.def("gated(Tensor gate, Tensor up) -> Tensor");
  m.def("rotated(Tensor x, Tensor cosine, Tensor sine) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("rms_norm", TORCH_BOX(&bitsweep::rms_norm));
  m.impl("gated", TORCH_BOX(&bitsweep::gated));
  m.impl("rotated", TORCH_BOX(&bitsweep::rotated));
}
