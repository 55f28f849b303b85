// The kernels to run, for operators outside ops.cpp, which chooses.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "kernels.h"

namespace bitsweep {

// The instruction set that bitsweep::cpu_isa names.
inline int64_t chosen_level() {
  StableIValue stack[1] = {};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("bitsweep::cpu_isa", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<int64_t>(stack[0]);
}

inline Kernels chosen_kernels() {
  const int64_t level = chosen_level();
#if defined(__x86_64__)
  if (level == 3) return avx512vnni_kernels();
  if (level == 2) return avx512_kernels();
  if (level == 1) return avx2_kernels();
#endif
  (void)level;
  return portable_kernels();
}

}  // namespace bitsweep
