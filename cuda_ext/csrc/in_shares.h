// A loop whose items threads take in shares, for the operators.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "shares.h"

namespace bitsweep {

// Items that together are worth a thread, of which one takes `work` products, or numbers copied.
inline int64_t worth_a_thread(int64_t work, int64_t least = 65536) {
  return std::max<int64_t>(1, least / std::max<int64_t>(1, work));
}

// body(first, end) for ranges that together are [0, count), each of them worth a thread if it has
// `least` items. Which thread takes which is not known: results must not depend on it.
template <class Body>
void in_shares(int64_t count, int64_t least, const Body& body) {
  if (count <= 0) return;
  const int64_t most = (count + least - 1) / least;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), most);
  if (threads <= 1) return body(int64_t{0}, count);
  const int64_t count_of_parts = std::min(threads, kMostParts);
  const std::unique_ptr<Part[]> parts(new Part[count_of_parts]);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    while (const Share share = next_share(parts.get(), count_of_parts, count, least, thread))
      body(share.first, share.end);
  });
}

}  // namespace bitsweep
