// The CUDA column sweep run by a host loop over its threads, for test_sweep_on_host.py.
#include <vector>

#include "cuda/sweep.cuh"

namespace {

template <bool Ternary>
void run(const bitsweep::Sweep& sweep) {
  using namespace bitsweep::cuda;
  const int64_t blocks = (sweep.rows + kSweepRows - 1) / kSweepRows;
  for (int64_t b = 0; b < blocks; b++) {
    // What a thread block finds in shared memory is arbitrary.
    std::vector<float> slab(sweep_shared_bytes(sweep.columns) / sizeof(float), -1e30f);
    for (int thread = 0; thread < kSweepRows; thread++)
      sweep_row<Ternary>(sweep, b * kSweepRows + thread, slab.data() + thread);
  }
}

}  // namespace

extern "C" void sweep_on_host(const bitsweep::Sweep* sweep) {
  if (sweep->ternary) run<true>(*sweep);
  else run<false>(*sweep);
}
