// Packed words, bytes and values, written once over an instruction set. A source file defines, in an
// anonymous namespace, `struct Isa` and includes this header (see kernel_template.h).
//
// Isa: kVector, the bytes of a vector; kWidth, the codes of one group that decode makes values of.
//
// Eight codes of a stream fill as many bytes as a code has bits. They lie in a number of 64 bits, and
// move apart by halves until each has a byte of its own; packing goes the other way.
#pragma once

#include <cstring>

#include "codes.h"
#include "unrolled.h"

namespace bitsweep {
namespace {

constexpr int kVector = Isa::kVector;
constexpr int kEights = kVector / 8;  // numbers of eight codes in a vector
constexpr int64_t kAhead = 16;  // words of a row: their lines lie pages apart

using Eights = uint64_t __attribute__((vector_size(kVector)));
using Bytes16 = uint8_t __attribute__((vector_size(16)));
using Words4 = uint32_t __attribute__((vector_size(16)));

#if defined(__clang__)
#define BITSWEEP_SHUFFLE(Type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define BITSWEEP_SHUFFLE(Type, a, b, ...) __builtin_shuffle(a, b, Type{__VA_ARGS__})
#endif

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

// A stream to `count` codes; `size` bytes may be read.
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

// Four words of four rows each, transposed.
BITSWEEP_INLINE void transpose(Words4 (&rows)[4]) {
  const Words4 a = BITSWEEP_SHUFFLE(Words4, rows[0], rows[1], 0, 4, 1, 5);
  const Words4 b = BITSWEEP_SHUFFLE(Words4, rows[2], rows[3], 0, 4, 1, 5);
  const Words4 c = BITSWEEP_SHUFFLE(Words4, rows[0], rows[1], 2, 6, 3, 7);
  const Words4 d = BITSWEEP_SHUFFLE(Words4, rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = BITSWEEP_SHUFFLE(Words4, a, b, 0, 1, 4, 5);
  rows[1] = BITSWEEP_SHUFFLE(Words4, a, b, 2, 3, 6, 7);
  rows[2] = BITSWEEP_SHUFFLE(Words4, c, d, 0, 1, 4, 5);
  rows[3] = BITSWEEP_SHUFFLE(Words4, c, d, 2, 3, 6, 7);
}

// `count` words of each of `rows` rows to scratch, row by row; those of one row lie `apart`. All rows
// of some words come first: lines a power of two apart share a set of the cache, and there are more
// words of a row than a set has lines.
BITSWEEP_INLINE void bring_words(
    const uint32_t* words, int64_t apart, int64_t rows, int64_t count, uint32_t* scratch,
    int64_t stride) {
  int64_t w = 0;
  for (; w + 4 <= count; w += 4, words += 4 * apart) {
    int64_t n = 0;
    for (; n + kSixteen <= rows; n += kSixteen) {
      for (int i = 0; i < 4; i++) __builtin_prefetch(words + (kAhead + i) * apart + n);
      each_of<4>([&](auto r) {
        Words4 some[4];
        for (int i = 0; i < 4; i++)
          std::memcpy(&some[i], words + i * apart + n + 4 * r, sizeof some[i]);
        transpose(some);
        for (int i = 0; i < 4; i++)
          std::memcpy(scratch + (n + 4 * r + i) * stride + w, &some[i], sizeof some[i]);
      });
    }
    for (; n < rows; n++)
      for (int i = 0; i < 4; i++) scratch[n * stride + w + i] = words[i * apart + n];
  }
  for (; w < count; w++, words += apart)
    for (int64_t n = 0; n < rows; n++) scratch[n * stride + w] = words[n];
}

template <int Bits>
void unpack_rows(
    const Codes& of, const uint32_t* words, uint8_t* codes, int64_t first, int64_t end) {
  for (int64_t n = first; n < end; n++, codes += of.columns)
    unpack_stream<Bits>(
        reinterpret_cast<const uint8_t*>(words + n * of.held), 4 * (of.rows - n) * of.held, codes,
        of.columns);
}

// `scratch` holds the words of some rows and kColumnsTogether columns.
template <int Bits>
void unpack_columns(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  constexpr int64_t most = kColumnsTogether / 32 * Bits;  // words of a row
  const int64_t stride = scratch_stride(of);
  for (int64_t k = 0, w = 0; k < of.columns; k += kColumnsTogether, w += most) {
    const int64_t count = of.columns - k < kColumnsTogether ? of.columns - k : kColumnsTogether;
    const int64_t held = of.held - w < most ? of.held - w : most;
    const uint32_t* from = words + w * of.rows + first;
    bring_words(from, of.rows, end - first, held, scratch, stride);
    for (int64_t n = 0; n < end - first; n++)
      unpack_stream<Bits>(
          reinterpret_cast<const uint8_t*>(scratch + n * stride), 4 * (held + 2),
          codes + n * of.columns + k, count);
  }
}

template <int Bits>
void pack_rows(
    const Codes& of, const uint8_t* codes, uint32_t* scratch, uint32_t* words, int64_t first,
    int64_t end) {
  const int64_t stride = pack_stride(of);
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

// Sixteen words of eight 4-bit codes each to four vectors: byte b of every word.
BITSWEEP_INLINE void bytes_of_words(const uint32_t* words, Words4 (&byte)[4]) {
  for (int i = 0; i < 4; i++) {
    Bytes16 some;
    std::memcpy(&some, words + 4 * i, sizeof some);
    some = BITSWEEP_SHUFFLE(Bytes16, some, some, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    std::memcpy(&byte[i], &some, sizeof some);
  }
  // Now every word has one byte of four words; transposed, a vector has that of sixteen.
  transpose(byte);
}

// Words of `count` columns of eight rows, a column after the other, to the codes of these rows.
BITSWEEP_INLINE void unpack_eight(
    const Codes& of, const uint32_t* words, uint8_t* codes, int64_t count) {
  uint8_t* row[8];  // by nibble
  for (int j = 0; j < 8; j++) row[(of.places >> (4 * j)) & 7u] = codes + j * of.columns;
  int64_t k = 0;
  for (; k + kSixteen <= count; k += kSixteen) {
    Words4 byte[4];
    bytes_of_words(words + k, byte);
    for (int b = 0; b < 4; b++) {
      const Words4 low = byte[b] & 0x0f0f0f0fu, high = (byte[b] >> 4) & 0x0f0f0f0fu;
      std::memcpy(row[2 * b] + k, &low, sizeof low);
      std::memcpy(row[2 * b + 1] + k, &high, sizeof high);
    }
  }
  for (; k < count; k++)
    for (int i = 0; i < 8; i++) row[i][k] = static_cast<uint8_t>((words[k] >> (4 * i)) & 15u);
}

void unpack_nibbles(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  const int64_t stride = scratch_stride(of), across = of.rows / 8, some = (end - first) / 8;
  for (int64_t k = 0; k < of.columns; k += kColumnsTogether) {
    const int64_t count = of.columns - k < kColumnsTogether ? of.columns - k : kColumnsTogether;
    const uint32_t* from = words + k * across + first / 8;
    bring_words(from, across, some, count, scratch, stride);
    for (int64_t i = 0; i < some; i++)
      unpack_eight(of, scratch + i * stride, codes + 8 * i * of.columns + k, count);
  }
}

template <int Bits>
BITSWEEP_INLINE void unpack_streams(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  if (of.order == Order::kRows) unpack_rows<Bits>(of, words, codes, first, end);
  else unpack_columns<Bits>(of, words, scratch, codes, first, end);
}

void unpack(
    const Codes& of, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
    int64_t end) {
  if (of.order == Order::kNibbles)
    return unpack_nibbles(of, words, scratch, codes, first, end);
  switch (of.bits) {
    case 2: return unpack_streams<2>(of, words, scratch, codes, first, end);
    case 3: return unpack_streams<3>(of, words, scratch, codes, first, end);
    case 4: return unpack_streams<4>(of, words, scratch, codes, first, end);
    case 5: return unpack_streams<5>(of, words, scratch, codes, first, end);
    case 6: return unpack_streams<6>(of, words, scratch, codes, first, end);
    case 7: return unpack_streams<7>(of, words, scratch, codes, first, end);
    default: return unpack_streams<8>(of, words, scratch, codes, first, end);
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
    const uint8_t* codes, int64_t count, float zero, float scale, float* out) {
  int64_t k = 0;
  for (; k + Isa::kWidth <= count; k += Isa::kWidth) Isa::decode(codes + k, zero, scale, out + k);
  for (; k < count; k++) out[k] = (static_cast<float>(codes[k]) - zero) * scale;
}

// Codes of one row, each with the zero and the scale of its group. Measured on a Zen 5: gathering
// them into vectors takes a third longer.
BITSWEEP_INLINE void decode_scattered(
    const uint8_t* codes, int64_t count, const int32_t* group, const float* zero,
    const float* scale, float* __restrict out) {
  for (int64_t k = 0; k < count; k++) {
    const int32_t g = group[k];
    out[k] = (static_cast<float>(codes[k]) - zero[g]) * scale[g];
  }
}

void decode(const Values& of, const uint8_t* codes, int64_t first, int64_t end) {
  const int64_t scale_apart = of.scale_apart[1], zero_apart = of.zero_apart[1];
  for (int64_t n = first; n < end; n++, codes += of.columns) {
    const float* scale = of.scale + n * of.scale_apart[0];
    const uint8_t* zero = of.zero + n * of.zero_apart[0];
    float* out = of.out + n * of.columns;
    if (of.index == nullptr) {
      for (int64_t k = 0; k < of.columns; k += of.group_size) {
        const int64_t left = of.columns - k;
        decode_group(
            codes + k, left < of.group_size ? left : of.group_size, static_cast<float>(*zero),
            *scale, out + k);
        scale += scale_apart;
        zero += zero_apart;
      }
      continue;
    }
    float* scales = of.some + of.groups;
    for (int64_t g = 0; g < of.groups; g++) {
      of.some[g] = static_cast<float>(zero[g * zero_apart]);
      scales[g] = scale[g * scale_apart];
    }
    decode_scattered(codes, of.columns, of.index, of.some, scales, out);
  }
}

}  // namespace
}  // namespace bitsweep
