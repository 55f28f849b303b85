// Loops that are unrolled where they are compiled. Included by each instruction set's own source, in
// an anonymous namespace: see kernel_template.h.
#pragma once

#include <type_traits>
#include <utility>

namespace bitsweep {
namespace {

#define BITSWEEP_INLINE inline __attribute__((always_inline))

// body(0) to body(N - 1), with numbers that are constants.
template <int N, class Body>
BITSWEEP_INLINE void each_of(Body&& body) {
  [&]<int... index>(std::integer_sequence<int, index...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, index>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

}  // namespace
}  // namespace bitsweep
