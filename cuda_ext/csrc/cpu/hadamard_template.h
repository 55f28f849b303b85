// Rows times a Hadamard matrix, written once over `struct Wide` (attention_template.h, which is
// included before), in float and double.
//
// The matrix is the Kronecker product of a core [order, order] and Sylvester's [width, width], so a
// row is a matrix [order, width]: butterflies run along its rows, then each of its columns is
// multiplied by the core. Entries are 1 and -1, whose products are exact, and sums have a fixed
// order: the bits are the same with every instruction set and any number of threads.
#include <memory>

#include "kernels.h"

namespace bitsweep {
namespace {

template <class T>
struct Registers;
template <>
struct Registers<float> {
  using V = float __attribute__((vector_size(sizeof(F))));
  using I = int32_t __attribute__((vector_size(sizeof(F))));
  using Of = F;
};
template <>
struct Registers<double> {
  using V = double __attribute__((vector_size(sizeof(F))));
  using I = int64_t __attribute__((vector_size(sizeof(F))));
  using Of = Wide::D;
};

template <class T>
struct Vector {
  using V = typename Registers<T>::V;
  using I = typename Registers<T>::I;
  using Of = typename Registers<T>::Of;
  static constexpr int kWidth = sizeof(F) / sizeof(T);

  static V load(const T* at) {
    V a;
    std::memcpy(&a, at, sizeof(V));
    return a;
  }
  static void store(T* at, V a) { std::memcpy(at, &a, sizeof(V)); }
  static V set(T a) { return a - V{}; }
  static V fma(V a, V b, V c) { return V(Wide::fma(Of(a), Of(b), Of(c))); }

  // Butterflies of lanes that are H apart: the sum to the lower one, the difference to the other.
  template <int H>
  static V butterfly(V a) {
    I other{};
    V sign{};
    for (int i = 0; i < kWidth; i++) {
      other[i] = i ^ H;
      sign[i] = i & H ? T(-1) : T(1);
    }
#if defined(__clang__)
    V crossed{};
    for (int i = 0; i < kWidth; i++) crossed[i] = a[i ^ H];
#else
    const V crossed = __builtin_shuffle(a, other);
#endif
    return fma(sign, a, crossed);
  }
};

// One row of `width` numbers times Sylvester's matrix, in place.
template <class T>
void butterflies(T* row, int64_t width) {
  using L = Vector<T>;
  int64_t apart = 1;
  if (width >= L::kWidth) {
    for (int64_t at = 0; at < width; at += L::kWidth) {
      auto a = L::template butterfly<1>(L::load(row + at));
      if constexpr (L::kWidth > 2) a = L::template butterfly<2>(a);
      if constexpr (L::kWidth > 4) a = L::template butterfly<4>(a);
      if constexpr (L::kWidth > 8) a = L::template butterfly<8>(a);
      L::store(row + at, a);
    }
    apart = L::kWidth;
    for (; 4 * apart <= width; apart *= 4) {  // two rounds at once: half the loads and stores
      for (int64_t first = 0; first < width; first += 4 * apart) {
        for (int64_t at = first; at < first + apart; at += L::kWidth) {
          const auto a = L::load(row + at), b = L::load(row + at + apart);
          const auto c = L::load(row + at + 2 * apart), d = L::load(row + at + 3 * apart);
          const auto sum = a + b, less = a - b, other = c + d, rest = c - d;
          L::store(row + at, sum + other);
          L::store(row + at + apart, less + rest);
          L::store(row + at + 2 * apart, sum - other);
          L::store(row + at + 3 * apart, less - rest);
        }
      }
    }
    for (; apart < width; apart *= 2) {
      for (int64_t first = 0; first < width; first += 2 * apart) {
        for (int64_t at = first; at < first + apart; at += L::kWidth) {
          const auto a = L::load(row + at), b = L::load(row + at + apart);
          L::store(row + at, a + b);
          L::store(row + at + apart, a - b);
        }
      }
    }
    return;
  }
  for (; apart < width; apart *= 2) {
    for (int64_t first = 0; first < width; first += 2 * apart) {
      for (int64_t at = first; at < first + apart; at++) {
        const T a = row[at], b = row[at + apart];
        row[at] = a + b;
        row[at + apart] = a - b;
      }
    }
  }
}

// R rows of the core times N vectors of columns of `from` [order, width].
template <class T, int R, int N>
inline __attribute__((always_inline)) void core_rows(
    const T* core, const T* from, T* to, int64_t order, int64_t width) {
  using L = Vector<T>;
  typename L::V sum[R][N] = {};
  for (int64_t j = 0; j < order; j++) {
    typename L::V row[N];
    for (int n = 0; n < N; n++) row[n] = L::load(from + j * width + n * L::kWidth);
    for (int r = 0; r < R; r++) {
      const auto one = L::set(core[r * order + j]);
      for (int n = 0; n < N; n++) sum[r][n] = L::fma(one, row[n], sum[r][n]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) L::store(to + r * width + n * L::kWidth, sum[r][n]);
}

template <class T, int R, int N>
void core_columns(const T* core, const T* from, T* to, int64_t order, int64_t width) {
  for (int64_t column = 0; column < width; column += N * Vector<T>::kWidth)
    for (int64_t i = 0; i < order; i += R)
      core_rows<T, R, N>(core + i * order, from + column, to + i * width + column, order, width);
}

// core [order, order] times from [order, width].
template <class T>
void core_product(const T* core, const T* from, T* to, int64_t order, int64_t width) {
  constexpr int lanes = Vector<T>::kWidth;
  if (order % 4 == 0 && width >= 2 * lanes) {
    core_columns<T, 4, 2>(core, from, to, order, width);
  } else if (order % 12 == 0 && width == lanes) {
    core_columns<T, 12, 1>(core, from, to, order, width);
  } else if (order % 4 == 0 && width == lanes) {
    core_columns<T, 4, 1>(core, from, to, order, width);
  } else {
    for (int64_t i = 0; i < order; i++) {
      for (int64_t k = 0; k < width; k++) {
        T sum = 0;
        for (int64_t j = 0; j < order; j++) sum += core[i * order + j] * from[j * width + k];
        to[i * width + k] = sum;
      }
    }
  }
}

template <class T>
void hadamard_of(const HadamardProduct& product, int64_t first, int64_t end) {
  const int64_t order = product.order, width = product.width, n = order * width;
  const auto* x = static_cast<const T*>(product.x);
  const auto* core = static_cast<const T*>(product.core);
  const auto* factors = static_cast<const T*>(product.factors);
  auto* out = static_cast<T*>(product.out);
  const std::unique_ptr<T[]> kept(order > 1 ? new T[n] : nullptr);
  for (int64_t row = first; row < end; row++) {
    const T* from = x + row * n;
    T* to = out + row * n;
    T* between = order > 1 ? kept.get() : to;
    if (factors == nullptr) {
      std::memcpy(between, from, n * sizeof(T));
    } else {
      const T* times = factors + row % product.blocks * n;
      for (int64_t i = 0; i < n; i++) between[i] = from[i] * times[i];
    }
    if (width > 1)
      for (int64_t i = 0; i < order; i++) butterflies(between + i * width, width);
    if (order > 1) core_product(core, between, to, order, width);
  }
}

HadamardKernels hadamard_kernels() { return {hadamard_of<float>, hadamard_of<double>}; }

}  // namespace
}  // namespace bitsweep
