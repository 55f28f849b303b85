// One row of x in fixed-point, made once for all weights that it serves.
#pragma once

#include <memory>

#include "floats.h"
#include "kernels.h"

namespace bitsweep {
namespace {

// The rule: one row of x, an instruction set that has such a product, a weight that has it
// (FixedPoint::words), and finite numbers. Everything else reads the floats.
class FixedRow {
 public:
  // From here on `x` is another row of Product::x.
  void forget() {
    for (Form& form : forms_) form.weight = nullptr;
  }

  // For products with `weight`, which is to stay where it is.
  void make(const Kernels& kernels, const Weight& weight, const float* x) {
    const FixedPoint* point = kernels.fixed_point;
    const int64_t words = point == nullptr ? 0 : point->words(weight);
    if (words == 0 || find(kernels, weight) != nullptr) return;
    for (Form& form : forms_) {
      if (form.weight != nullptr) continue;
      if (form.words < words) {
        form.memory = std::make_unique<Floats>(words);
        form.words = words;
      }
      if (point->make(weight, x, form.data())) form.weight = &weight;
      return;
    }
  }

  // What the product with `weight` is to read, or null.
  const int32_t* find(const Kernels& kernels, const Weight& weight) const {
    if (kernels.fixed_point == nullptr) return nullptr;
    for (const Form& form : forms_)
      if (form.weight != nullptr && kernels.fixed_point->same(*form.weight, weight))
        return form.data();
    return nullptr;
  }

 private:
  struct Form {
    const Weight* weight = nullptr;
    std::unique_ptr<Floats> memory;
    int64_t words = 0;

    int32_t* data() const { return reinterpret_cast<int32_t*>(memory->data()); }
  };
  Form forms_[3];  // query, key and value may differ in their bits
};

}  // namespace
}  // namespace bitsweep
