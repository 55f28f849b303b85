// The CUDA column loop run by a host loop over its threads, for test_column_loop_on_host.py.
#include <vector>

#include "cuda/column_loop.cuh"

namespace {

template <bool Ternary>
void run(const bitsweep::ColumnLoop& loop) {
  using namespace bitsweep::cuda;
  const int64_t blocks = (loop.rows + kLoopRows - 1) / kLoopRows;
  for (int64_t b = 0; b < blocks; b++) {
    // What a thread block finds in shared memory is arbitrary.
    std::vector<float> slab(loop_shared_bytes(loop.columns) / sizeof(float), -1e30f);
    for (int thread = 0; thread < kLoopRows; thread++)
      loop_row<Ternary>(loop, b * kLoopRows + thread, slab.data() + thread);
  }
}

}  // namespace

extern "C" void column_loop_on_host(const bitsweep::ColumnLoop* loop) {
  if (loop->ternary) run<true>(*loop);
  else run<false>(*loop);
}
