// Memory for vectors. In an anonymous namespace, because the kernels of every instruction set
// include it: the linker must not take code compiled for one as the code of another.
#pragma once

#include <cstdint>
#include <new>

namespace bitsweep {
namespace {

// Floats that begin on a cache line, so that no vector of 16 of them lies across two.
class Floats {
 public:
  explicit Floats(int64_t count)
      : data_(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}))),
        count_(count) {}
  ~Floats() { ::operator delete(data_, std::align_val_t{64}); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* data() const { return data_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(float)); }

 private:
  float* data_;
  int64_t count_;
};

}  // namespace
}  // namespace bitsweep
