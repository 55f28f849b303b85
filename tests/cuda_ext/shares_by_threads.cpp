// Shares of work taken by real threads, for test_shares.py.
#include "shares.h"

#include <memory>
#include <thread>
#include <vector>

// Counts in taken [count] how often each item was taken by `threads` threads, of which the first
// `idle` come when all others have gone.
extern "C" void take_all(
    int64_t count, int64_t parts, int64_t least, int64_t threads, int64_t idle, int32_t* taken) {
  using namespace bitsweep;
  const std::unique_ptr<Part[]> part(new Part[parts]);
  const auto work = [&](int64_t thread) {
    while (const Share share = next_share(part.get(), parts, count, least, thread))
      for (int64_t i = share.first; i < share.end; i++)
        __atomic_fetch_add(taken + i, 1, __ATOMIC_RELAXED);
  };
  std::vector<std::thread> running;
  for (int64_t thread = idle; thread < threads; thread++) running.emplace_back(work, thread);
  for (std::thread& one : running) one.join();
  for (int64_t thread = 0; thread < idle; thread++) work(thread);
}

// The shares that one thread takes while no other comes: first and end of each; how many they are.
extern "C" int64_t shares_of(
    int64_t count, int64_t parts, int64_t least, int64_t thread, int64_t* out) {
  using namespace bitsweep;
  const std::unique_ptr<Part[]> part(new Part[parts]);
  int64_t found = 0;
  while (const Share share = next_share(part.get(), parts, count, least, thread)) {
    out[2 * found] = share.first;
    out[2 * found++ + 1] = share.end;
  }
  return found;
}
