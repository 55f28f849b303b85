// Codes between packed words and a byte each, and from bytes to values: what every instruction set
// offers.
#pragma once

#include <cstdint>

namespace bitsweep {

// How the codes of a matrix [rows, columns] lie in words of 32 bits. A stream is little-endian: code
// k has bits k * bits and on, and may straddle two words.
enum class Order : int64_t {
  kRows = 0,     // words [rows, held]: a stream for every row
  kColumns = 1,  // words [held, rows]: the words of a row's stream lie `rows` apart
  kNibbles = 2,  // words [columns, rows / 8]: the 4-bit codes of eight adjacent rows in each
};

struct Codes {
  Order order;
  int bits;
  int64_t rows;
  int64_t columns;
  int64_t held;     // words of a row's stream
  uint32_t places;  // kNibbles: nibble (places >> 4 j) & 15 of word i belongs to row 8 i + j
};

constexpr int kSixteen = 16;  // words that are read side by side: a cache line

// Rows that are unpacked or packed together, so that whole cache lines of words are read or written.
constexpr int64_t rows_together(Order order) {
  return order == Order::kRows ? 16 : order == Order::kColumns ? 64 : 256;
}

// Columns of kColumns and kNibbles that are unpacked together, of which the first-level cache holds
// the words. 32 codes of a stream are whole words.
constexpr int64_t kColumnsTogether = 256;

// Words of one row, or of eight rows of kNibbles, in scratch memory. Eight bytes behind a stream may
// be read and written; rows do not lie a power of two apart, where they would fall into the same
// sets of the cache.
constexpr int64_t scratch_stride(const Codes& codes) {
  return codes.order == Order::kNibbles ? kColumnsTogether + 20
                                        : kColumnsTogether / 32 * codes.bits + 20;
}

// Words of scratch memory that one thread needs: those of the rows that are unpacked together, or a
// whole row that is packed for each of 16.
constexpr int64_t pack_stride(const Codes& codes) { return (codes.held + 2 + 15) / 16 * 16 + 4; }
constexpr int64_t unpack_scratch(const Codes& codes) {
  const int64_t rows = rows_together(codes.order);
  return scratch_stride(codes) * (codes.order == Order::kNibbles ? rows / 8 : rows);
}
constexpr int64_t pack_scratch(const Codes& codes) { return kSixteen * pack_stride(codes); }

// (code - zero) * scale for uniform levels: the difference is exact, the product is rounded once.
struct Values {
  int64_t columns;
  int64_t groups;
  int64_t group_size;
  const float* scale;    // [rows, groups], with the elements as far apart as the next two say
  const uint8_t* zero;   // [rows, groups]
  int64_t scale_apart[2], zero_apart[2];
  const int32_t* index;  // [columns], the group of every column; null: column / group_size
  float* some;           // scratch [2, groups] of one thread, for an index
  float* out;            // [rows, columns]
};

struct CodeKernels {
  // Words to codes [end - first, columns]; both ends of the rows are multiples of rows_together,
  // but for the last. scratch holds unpack_scratch words.
  void (*unpack)(
      const Codes&, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
      int64_t end);
  // The inverse, for kRows and kColumns; codes are those of all rows, scratch holds pack_scratch.
  void (*pack)(
      const Codes&, const uint8_t* codes, uint32_t* scratch, uint32_t* words, int64_t first,
      int64_t end);
  // Codes [end - first, columns] of these rows to their values.
  void (*decode)(const Values&, const uint8_t* codes, int64_t first, int64_t end);
};

extern const CodeKernels portable_codes;
#if defined(__x86_64__)
extern const CodeKernels avx2_codes;
extern const CodeKernels avx512_codes;
#endif

}  // namespace bitsweep
