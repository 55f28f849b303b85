// Which accesses of shared memory are ordered by barriers: vector clocks, one a thread, as race
// detectors keep them. Four bytes are the grain.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace bitsweep::emulator {

class Ordering {
 public:
  // A new block begins.
  void begin(int threads, size_t bytes) {
    threads_ = threads;
    clocks_.assign(static_cast<size_t>(threads) * threads, 0);
    for (int t = 0; t < threads; t++) clock(t, t) = 1;
    words_.resize(std::max(words_.size(), (bytes + 3) / 4));
    block_++;
  }

  // What these threads did before comes before what they do after.
  void meet(const std::vector<int>& threads) {
    std::vector<uint32_t> latest(threads_, 0);
    for (int t : threads)
      for (int other = 0; other < threads_; other++)
        latest[other] = std::max(latest[other], clock(t, other));
    for (int t : threads) {
      std::copy(latest.begin(), latest.end(), &clock(t, 0));
      clock(t, t)++;
    }
  }

  // The thread with whose access this one races, or -1.
  int access(int thread, uint32_t at, int size, bool write) {
    for (uint32_t word = at / 4; word <= (at + size - 1) / 4; word++) {
      Word& here = fresh(word);
      if (!before(here.write, thread)) return here.write.thread;
      if (write) {
        for (const Event& read : here.reads)
          if (!before(read, thread)) return read.thread;
        here.write = {thread, clock(thread, thread)};
      } else {
        here.reads[thread / 32 % kWarps] = {thread, clock(thread, thread)};
      }
    }
    return -1;
  }

  // A copy writes at some time between its issue and its end, as seen by the thread that waits.
  void begin_copy(int thread, uint32_t at, int size) { set_write({thread, kNever}, at, size); }
  void end_copy(int thread, uint32_t at, int size) {
    set_write({thread, clock(thread, thread)}, at, size);
  }

 private:
  static constexpr uint32_t kNever = ~0u;
  static constexpr int kWarps = 8;  // the last reader of each is remembered

  struct Event {
    int thread = -1;
    uint32_t clock = 0;
  };
  struct Word {
    int64_t block = 0;
    Event write;
    std::array<Event, kWarps> reads;
  };

  uint32_t& clock(int thread, int other) {
    return clocks_[static_cast<size_t>(thread) * threads_ + other];
  }
  Word& fresh(uint32_t word) {
    if (words_[word].block != block_) words_[word] = {block_, {}, {}};
    return words_[word];
  }
  bool before(const Event& event, int thread) {
    if (event.thread < 0) return true;
    if (event.clock == kNever) return false;
    return event.thread == thread || clock(thread, event.thread) >= event.clock;
  }
  void set_write(const Event& event, uint32_t at, int size) {
    for (uint32_t word = at / 4; word <= (at + size - 1) / 4; word++) fresh(word).write = event;
  }

  int threads_ = 0;
  int64_t block_ = 0;
  std::vector<uint32_t> clocks_;
  std::vector<Word> words_;
};

}  // namespace bitsweep::emulator
