// Work that threads share. Each of them has a part of the items, one after the other in memory, and
// takes shares of it; one that has done its part takes from the parts of others. So a thread on a
// slower processor, or on one that other programs use, does less: with parts alone, everybody waits
// for it. A share is half of what is left of a part: few shares, and small ones at the end.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace bitsweep {

// More threads than that share parts: looking through them at the end takes time.
constexpr int64_t kMostParts = 16;

struct alignas(64) Part {  // a cache line each
  std::atomic<int64_t> taken{0};
};

struct Share {
  int64_t first = 0, end = 0;  // of the items
  explicit operator bool() const { return first < end; }
};

// The next share of [0, count), for thread number `thread`, or an empty one. `parts` parts begin
// with nothing taken; shares have at least `least` items while there are as many.
inline Share next_share(
    Part* part, int64_t parts, int64_t count, int64_t least, int64_t thread) {
  for (int64_t turn = 0; turn < parts; turn++) {
    const int64_t index = (thread + turn) % parts;
    const int64_t begin = count * index / parts, size = count * (index + 1) / parts - begin;
    std::atomic<int64_t>& taken = part[index].taken;
    int64_t from = taken.load(std::memory_order_relaxed);
    while (from < size) {
      const int64_t left = size - from, half = parts > 1 ? left / 2 : left;
      const int64_t share = std::min(left, std::max(least, half));
      if (taken.compare_exchange_weak(from, from + share, std::memory_order_relaxed))
        return {begin + from, begin + from + share};
    }
  }
  return {};
}

}  // namespace bitsweep
