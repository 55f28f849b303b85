// Stages of a decode step. A stage is cut into items that threads take in shares, and whoever ends the
// last one does the short serial part that follows and opens the next stage. Threads wait for work to
// be done, never for each other: one that the system holds back costs nothing but its help, and any
// number of threads, one included, goes through.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "../shares.h"

namespace bitsweep::step {
namespace {

using Clock = std::chrono::steady_clock;

double nanoseconds(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::nano>(end - start).count();
}

constexpr int kSpins = 4000;  // looks at the counter before the processor is offered to others

inline void breathe() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Stages {
 public:
  Stages(size_t count, int64_t threads)
      : parts_of_stage_(std::min<int64_t>(threads, kMostParts)),
        stages_(new Stage[count]),
        parts_(new Part[count * parts_of_stage_]) {}

  // Stage `index`: items [0, items) by whoever comes, body(first, end) for each share of them, and
  // last() by whoever ends them.
  template <class Body, class Last>
  void run(int64_t thread, int64_t index, int64_t items, Body body, Last last) {
    Stage& stage = stages_[index];
    Part* parts = parts_.get() + index * parts_of_stage_;
    int64_t mine = 0;
    while (const Share share = next_share(parts, parts_of_stage_, items, 1, thread)) {
      body(share.first, share.end);
      mine += share.end - share.first;
    }
    if (mine > 0 && stage.done.fetch_add(mine, std::memory_order_acq_rel) + mine == items) {
      stage.done_at = Clock::now();
      last();
      stage.ready_at = Clock::now();
      stage.ready.store(true, std::memory_order_release);
    }
    for (int spins = 0; !stage.ready.load(std::memory_order_acquire); spins++) {
      if (spins < kSpins) breathe();
      else std::this_thread::yield();
    }
  }

  // Before and after the serial part of a stage that has run.
  Clock::time_point done_at(int64_t index) const { return stages_[index].done_at; }
  Clock::time_point ready_at(int64_t index) const { return stages_[index].ready_at; }

 private:
  struct alignas(64) Stage {
    std::atomic<int64_t> done{0};
    std::atomic<bool> ready{false};
    Clock::time_point done_at, ready_at;
  };

  const int64_t parts_of_stage_;
  const std::unique_ptr<Stage[]> stages_;
  const std::unique_ptr<Part[]> parts_;  // of every stage
};

}  // namespace
}  // namespace bitsweep::step
