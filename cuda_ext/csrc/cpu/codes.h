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

// Rows that are unpacked or packed together, so that whole cache lines of words are read or written.
constexpr int64_t rows_together(Order order) { return order == Order::kNibbles ? 128 : 16; }

// Columns of kNibbles that are unpacked at a time: 16 words of each fit the first-level cache.
constexpr int64_t kNibbleColumns = 256;

// Words of one row in scratch memory. Eight bytes behind a stream may be read and written; rows do
// not lie a power of two apart, where they would fall into the same sets of the cache.
constexpr int64_t scratch_stride(const Codes& codes) {
  const int64_t words = codes.order == Order::kNibbles ? kNibbleColumns : codes.held;
  return (words + 2 + 15) / 16 * 16 + 4;
}

// Words of scratch memory that one thread needs.
constexpr int64_t scratch_words(const Codes& codes) { return 16 * scratch_stride(codes); }

// (code - zero) * scale for uniform levels: the difference is exact, the product is rounded once.
struct Values {
  int64_t columns;
  int64_t groups;
  int64_t group_size;
  const float* scale;    // [rows, groups]
  const uint8_t* zero;   // [rows, groups]
  const int32_t* index;  // [columns], the group of every column; null: column / group_size
  float* zeros;          // scratch [groups] of one thread, for an index
  float* out;            // [rows, columns]
};

struct CodeKernels {
  // Words to codes [end - first, columns]; both ends of the rows are multiples of rows_together,
  // but for the last. scratch holds scratch_words.
  void (*unpack)(
      const Codes&, const uint32_t* words, uint32_t* scratch, uint8_t* codes, int64_t first,
      int64_t end);
  // The inverse, for kRows and kColumns; codes are those of all rows.
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
