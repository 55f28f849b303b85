// Memory that ends at a page that cannot be touched, and begins after one.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace bitsweep::emulator {

class Guarded {
 public:
  // `slack` bytes between the end and the guard, to shift the beginning off its alignment.
  explicit Guarded(size_t size, size_t slack = 0) : size_(size) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (size + slack + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    void* base = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(base);
    if (inner) mprotect(base_ + page, inner, PROT_READ | PROT_WRITE);
    data_ = base_ + page + inner - slack - size;
    spoil();
  }
  Guarded(const void* from, size_t size, size_t slack = 0) : Guarded(size, slack) {
    if (size) std::memcpy(data_, from, size);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  // Every bit set: NaN in any floating-point type.
  void spoil() {
    if (size_) std::memset(data_, 0xff, size_);
  }
  char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  char *base_, *data_;
  size_t mapped_, size_;
};

}  // namespace bitsweep::emulator
