// Packed words, bytes and values, over vectors of kVector bytes, a constant that a source file defines
// in an anonymous namespace before it includes this header (see kernel_template.h).
//
// Eight codes of a stream fill as many bytes as a code has bits. They lie in a number of 64 bits, and
// move apart by halves until each has a byte of its own; packing goes the other way.
#pragma once

#include <cstring>

#include "codes.h"
#include "unrolled.h"

namespace bitsweep {
namespace {

constexpr int kEights = kVector / 8;  // numbers of eight codes in a vector
constexpr int kSixteen = 16;          // codes that become values, or leave words, together

using Eights = uint64_t __attribute__((vector_size(kVector)));

// The lower half of every pair of `Size` codes, as bytes of eight codes or as bits of the stream.
template <int Bits, int Size>
constexpr uint64_t low_halves() {
  uint64_t mask = 0;
  for (int pair = 0; pair < 4 / Size; pair++)
    mask |= ((uint64_t{1} << (Size * Bits)) - 1) << (16 * Size * pair);
  return mask;
}

template <int Bits, int Size, class Number>
BITSWEEP_INLINE Number apart(Number codes) {
  constexpr uint64_t low = low_halves<Bits, Size>();
  return (codes & low) | ((codes << (Size * (8 - Bits))) & (low << (8 * Size)));
}

template <int Bits, int Size, class Number>
BITSWEEP_INLINE Number together(Number codes) {
  constexpr uint64_t low = low_halves<Bits, Size>();
  return (codes & low) | ((codes & (low << (8 * Size))) >> (Size * (8 - Bits)));
}

template <int Bits, class Number>
BITSWEEP_INLINE Number spread(Number codes) {
  if constexpr (Bits == 8) return codes;
  else return apart<Bits, 1>(apart<Bits, 2>(apart<Bits, 4>(codes)));
}

template <int Bits, class Number>
BITSWEEP_INLINE Number gathered(Number codes) {
  if constexpr (Bits == 8) return codes;
  else return together<Bits, 4>(together<Bits, 2>(together<Bits, 1>(codes)));
}

// Bits whose eight codes are a number that processors load.
template <int Bits>
constexpr bool kWhole = Bits == 2 || Bits == 4 || Bits == 8;

// Bytes that are read for kEights numbers.
template <int Bits>
constexpr int64_t kRead = kWhole<Bits> ? kEights * Bits : (kEights - 1) * Bits + 8;

template <int Bits>
BITSWEEP_INLINE Eights load_eights(const uint8_t* at) {
  Eights eights;
  if constexpr (Bits == 8) {
    std::memcpy(&eights, at, sizeof eights);
  } else if constexpr (Bits == 4) {
    uint32_t __attribute__((vector_size(kVector / 2))) halves;
    std::memcpy(&halves, at, sizeof halves);
    eights = __builtin_convertvector(halves, Eights);
  } else if constexpr (Bits == 2) {
    uint16_t __attribute__((vector_size(kVector / 4))) quarters;
    std::memcpy(&quarters, at, sizeof quarters);
    eights = __builtin_convertvector(quarters, Eights);
  } else {
    each_of<kEights>([&](auto i) {
      uint64_t number;
      std::memcpy(&number, at + i * Bits, sizeof number);
      eights[i.value] = number;
    });
  }
  return eights;
}

// A stream of `size` bytes to `count` codes.
template <int Bits>
void unpack_stream(const uint8_t* stream, int64_t size, uint8_t* codes, int64_t count) {
  int64_t k = 0;
  for (; k + 8 * kEights <= count && k / 8 * Bits + kRead<Bits> <= size; k += 8 * kEights) {
    const Eights found = spread<Bits>(load_eights<Bits>(stream + k / 8 * Bits));
    std::memcpy(codes + k, &found, sizeof found);
  }
  for (; k < count; k += 8) {
    const int64_t left = size - k / 8 * Bits;
    uint64_t number = 0;
    std::memcpy(&number, stream + k / 8 * Bits, left < Bits ? left : Bits);
    number = spread<Bits>(number);
    std::memcpy(codes + k, &number, count - k < 8 ? count - k : 8);
  }
}

// The inverse; up to eight bytes behind the stream are written.
template <int Bits>
void pack_stream(const uint8_t* codes, int64_t count, uint8_t* stream) {
  int64_t k = 0;
  for (; k + 8 * kEights <= count; k += 8 * kEights) {
    Eights found;
    std::memcpy(&found, codes + k, sizeof found);
    found = gathered<Bits>(found);
    each_of<kEights>([&](auto i) {
      const uint64_t number = found[i.value];
      std::memcpy(stream + k / 8 * Bits + i * Bits, &number, sizeof number);
    });
  }
  for (; k < count; k += 8) {
    uint64_t number = 0;
    std::memcpy(&number, codes + k, count - k < 8 ? count - k : 8);
    number = gathered<Bits>(number);
    std::memcpy(stream + k / 8 * Bits, &number, sizeof number);
  }
}

template <int Bits>
void unpack_rows(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  const int64_t stride = scratch_stride(of);
  for (int64_t n = first; n < end; n++, codes += of.columns) {
    const uint32_t* stream = words + n * of.held;
    int64_t readable = of.held;
    if (of.order == Order::kColumns) {
      const int64_t c = (n - first) % kSixteen;
      if (c == 0) {  // the words of up to 16 rows, a cache line of each word
        const int64_t rows = end - n < kSixteen ? end - n : kSixteen;
        if (rows == kSixteen) {
          for (int64_t w = 0; w < of.held; w++) {
            const uint32_t* from = words + w * of.rows + n;
            each_of<kSixteen>([&](auto r) { scratch[r * stride + w] = from[r]; });
          }
        } else {
          for (int64_t w = 0; w < of.held; w++)
            for (int64_t r = 0; r < rows; r++) scratch[r * stride + w] = words[w * of.rows + n + r];
        }
      }
      stream = scratch + c * stride;
      readable += 2;
    }
    unpack_stream<Bits>(
        reinterpret_cast<const uint8_t*>(stream), 4 * readable, codes, of.columns);
  }
}

template <int Bits>
void pack_rows(
    const Codes& of, const uint8_t* codes, uint32_t* scratch, uint32_t* words, int64_t first,
    int64_t end) {
  const int64_t stride = scratch_stride(of);
  for (int64_t n = first; n < end; n += kSixteen) {
    const int64_t rows = end - n < kSixteen ? end - n : kSixteen;
    for (int64_t r = 0; r < rows; r++) {
      uint32_t* stream = scratch + r * stride;
      stream[of.held - 1] = 0;  // bits behind the last code
      pack_stream<Bits>(
          codes + (n + r) * of.columns, of.columns, reinterpret_cast<uint8_t*>(stream));
      if (of.order == Order::kRows)
        std::memcpy(words + (n + r) * of.held, stream, of.held * sizeof *words);
    }
    if (of.order != Order::kColumns) continue;
    for (int64_t w = 0; w < of.held; w++)
      for (int64_t r = 0; r < rows; r++) words[w * of.rows + n + r] = scratch[r * stride + w];
  }
}

// Words of 16 columns of eight rows, a column after the other, to the codes of one of the rows.
BITSWEEP_INLINE void unpack_nibbles(
    const uint32_t* words, int shift, uint8_t* codes, int64_t count) {
  using Words = uint32_t __attribute__((vector_size(4 * kSixteen)));
  using Bytes = uint8_t __attribute__((vector_size(kSixteen)));
  int64_t k = 0;
  for (; k + kSixteen <= count; k += kSixteen) {
    Words some;
    std::memcpy(&some, words + k, sizeof some);
    const Bytes found = __builtin_convertvector((some >> shift) & 15u, Bytes);
    std::memcpy(codes + k, &found, sizeof found);
  }
  for (; k < count; k++) codes[k] = static_cast<uint8_t>((words[k] >> shift) & 15u);
}

void unpack_from_nibbles(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  const int64_t stride = scratch_stride(of), across = of.rows / 8;
  for (int64_t n = first; n < end; n += 8 * kSixteen) {
    const int64_t some = (end - n) / 8 < kSixteen ? (end - n) / 8 : kSixteen;
    for (int64_t k = 0; k < of.columns; k += kNibbleColumns) {
      const int64_t count = of.columns - k < kNibbleColumns ? of.columns - k : kNibbleColumns;
      for (int64_t c = 0; c < count; c++) {
        const uint32_t* from = words + (k + c) * across + n / 8;
        if (some == kSixteen)
          each_of<kSixteen>([&](auto i) { scratch[i * stride + c] = from[i]; });
        else
          for (int64_t i = 0; i < some; i++) scratch[i * stride + c] = from[i];
      }
      for (int64_t i = 0; i < some; i++) {
        for (int j = 0; j < 8; j++) {
          const int shift = static_cast<int>((of.places >> (4 * j)) & 15u) * 4;
          const int64_t row = n - first + 8 * i + j;
          unpack_nibbles(scratch + i * stride, shift, codes + row * of.columns + k, count);
        }
      }
    }
  }
}

void unpack(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  if (of.order == Order::kNibbles)
    return unpack_from_nibbles(of, words, scratch, codes, first, end);
  switch (of.bits) {
    case 2: return unpack_rows<2>(of, words, scratch, codes, first, end);
    case 3: return unpack_rows<3>(of, words, scratch, codes, first, end);
    case 4: return unpack_rows<4>(of, words, scratch, codes, first, end);
    case 5: return unpack_rows<5>(of, words, scratch, codes, first, end);
    case 6: return unpack_rows<6>(of, words, scratch, codes, first, end);
    case 7: return unpack_rows<7>(of, words, scratch, codes, first, end);
    default: return unpack_rows<8>(of, words, scratch, codes, first, end);
  }
}

void pack(
    const Codes& of, const uint8_t* codes, uint32_t* scratch, uint32_t* words, int64_t first,
    int64_t end) {
  switch (of.bits) {
    case 2: return pack_rows<2>(of, codes, scratch, words, first, end);
    case 3: return pack_rows<3>(of, codes, scratch, words, first, end);
    case 4: return pack_rows<4>(of, codes, scratch, words, first, end);
    case 5: return pack_rows<5>(of, codes, scratch, words, first, end);
    case 6: return pack_rows<6>(of, codes, scratch, words, first, end);
    case 7: return pack_rows<7>(of, codes, scratch, words, first, end);
    default: return pack_rows<8>(of, codes, scratch, words, first, end);
  }
}

// Codes of one group and row to values.
BITSWEEP_INLINE void decode_group(
    const uint8_t* codes, int64_t count, float scale, float zero, float* out) {
  using Bytes = uint8_t __attribute__((vector_size(kSixteen)));
  using Numbers = int32_t __attribute__((vector_size(4 * kSixteen)));
  using Floats16 = float __attribute__((vector_size(4 * kSixteen)));
  int64_t k = 0;
  for (; k + kSixteen <= count; k += kSixteen) {
    Bytes some;
    std::memcpy(&some, codes + k, sizeof some);
    const Numbers numbers = __builtin_convertvector(some, Numbers);
    const Floats16 values = (__builtin_convertvector(numbers, Floats16) - zero) * scale;
    std::memcpy(out + k, &values, sizeof values);
  }
  for (; k < count; k++) out[k] = (static_cast<float>(codes[k]) - zero) * scale;
}

void decode(const Values& of, const uint8_t* codes, int64_t first, int64_t end) {
  for (int64_t n = first; n < end; n++, codes += of.columns) {
    const float* scale = of.scale + n * of.groups;
    const uint8_t* zero = of.zero + n * of.groups;
    float* out = of.out + n * of.columns;
    if (of.index == nullptr) {
      for (int64_t g = 0, k = 0; k < of.columns; g++, k += of.group_size) {
        const int64_t left = of.columns - k;
        decode_group(
            codes + k, left < of.group_size ? left : of.group_size, scale[g],
            static_cast<float>(zero[g]), out + k);
      }
      continue;
    }
    float* __restrict zeros = of.zeros;
    for (int64_t g = 0; g < of.groups; g++) zeros[g] = static_cast<float>(zero[g]);
    for (int64_t k = 0; k < of.columns; k++) {
      const int32_t g = of.index[k];
      out[k] = (static_cast<float>(codes[k]) - zeros[g]) * scale[g];
    }
  }
}

}  // namespace
}  // namespace bitsweep
