// bitsweep::unpack_words, pack_words, decode_codes and dequantize_words: schemas and CPU
// implementations. Bits are those of cuda_ext.layout and quant.levels.uniform, with any number of
// threads.
#include <sys/mman.h>
#include <torch/csrc/stable/library.h>


#include "cpu/chosen.h"
#include "cpu/codes.h"
#include "cpu/floats.h"
#include "in_shares.h"
#include "operators.h"

namespace bitsweep {
namespace {

// What glibc maps anew for every tensor: in pages of 4 KiB, mapping takes longer than the work.
constexpr uintptr_t kLarge = 32 << 20, kPage = 4096;

// Asks for large pages under a large tensor that is about to be written.
void prepare(const Tensor& out, int64_t bytes) {
  if (static_cast<uintptr_t>(bytes) < kLarge) return;
  const auto data = reinterpret_cast<uintptr_t>(out.data_ptr());
  const uintptr_t first = (data + kPage - 1) / kPage * kPage;
  madvise(reinterpret_cast<void*>(first), data + bytes - first, MADV_HUGEPAGE);  // advice alone
}

CodeKernels chosen_codes() {
#if defined(__x86_64__)
  const int64_t level = chosen_level();
  if (level >= 2) return avx512_codes;
  if (level == 1) return avx2_codes;
#else
  chosen_level();
#endif
  return portable_codes;
}

Codes codes_of(
    const char* op, int64_t bits, int64_t order, int64_t rows, int64_t columns, int64_t places) {
  STD_TORCH_CHECK(
      bits >= 2 && bits <= 8, op, ": bits=", bits, " is not a bit width; choose one of 2 to 8.");
  STD_TORCH_CHECK(
      order >= 0 && order <= 2, op, ": order=", order,
      " is unknown; pass 0 (rows), 1 (columns) or 2 (nibbles).");
  STD_TORCH_CHECK(columns >= 0, op, ": columns=", columns, "; pass at least 0.");
  Codes codes{};
  codes.order = static_cast<Order>(order);
  codes.bits = static_cast<int>(bits);
  codes.rows = rows;
  codes.columns = columns;
  codes.held = (columns * bits + 31) / 32;
  codes.places = static_cast<uint32_t>(places);
  STD_TORCH_CHECK(
      codes.order != Order::kNibbles || (bits == 4 && rows % 8 == 0), op, ": bits=", bits, " and ",
      rows, " rows in nibbles; a word of them holds 4-bit codes of eight rows.");
  unsigned seen = 0;
  for (int j = 0; j < 8; j++) seen |= 1u << ((codes.places >> (4 * j)) & 15u);
  STD_TORCH_CHECK(
      codes.order != Order::kNibbles || seen == 255u, op, ": places=", places,
      " does not give each of eight rows a nibble of its own.");
  return codes;
}

std::vector<int64_t> words_shape(const Codes& codes) {
  switch (codes.order) {
    case Order::kRows: return {codes.rows, codes.held};
    case Order::kColumns: return {codes.held, codes.rows};
    default: return {codes.columns, codes.rows / 8};
  }
}

// The codes that words hold, checked.
Codes words_of(
    const char* op, const Tensor& words, int64_t bits, int64_t columns, int64_t order,
    int64_t places, const Place& place) {
  STD_TORCH_CHECK(
      words.dim() == 2, op, ": words is ", text_of(sizes_of(words)), "; expected a matrix.");
  const int64_t rows = order == 0 ? words.size(0) : order == 1 ? words.size(1) : words.size(1) * 8;
  const Codes codes = codes_of(op, bits, order, rows, columns, places);
  check(op, "words", words, ScalarType::Int, words_shape(codes), place);
  return codes;
}

// body(first, end, scratch) for tiles of rows, a share of them to a thread, which has scratch memory.
template <class Body>
void by_tiles(const Codes& codes, int64_t scratch_words, Body&& body) {
  if (codes.rows == 0 || codes.columns == 0) return;
  const int64_t together = rows_together(codes.order);
  const int64_t tile = together * codes.columns;
  in_shares(
      (codes.rows + together - 1) / together, worth_a_thread(tile),
      [&](int64_t first, int64_t end) {
        const Floats scratch(scratch_words);
        auto* words = reinterpret_cast<uint32_t*>(scratch.data());
        for (int64_t at = first; at < end; at++) {
          const int64_t last = (at + 1) * together;
          body(at * together, last < codes.rows ? last : codes.rows, words);
        }
      });
}

const uint32_t* words_in(const Tensor& tensor) {
  return static_cast<const uint32_t*>(tensor.data_ptr());
}

Tensor unpack_words(
    const Tensor& words, int64_t bits, int64_t columns, int64_t order, int64_t places) {
  constexpr const char* op = "unpack_words";
  const Codes codes =
      words_of(op, words, bits, columns, order, places, {"words", device_of(words)});
  const std::vector<int64_t> shape = {codes.rows, columns};
  const Tensor out = torch::stable::new_empty(words, shape, ScalarType::Byte);
  prepare(out, out.numel());
  const CodeKernels run = chosen_codes();
  const uint32_t* from = words_in(words);
  auto* to = static_cast<uint8_t*>(out.data_ptr());
  by_tiles(codes, unpack_scratch(codes), [&](int64_t first, int64_t end, uint32_t* scratch) {
    run.unpack(codes, from, scratch, to + first * columns, first, end);
  });
  return out;
}

Tensor pack_words(const Tensor& codes, int64_t bits, int64_t order) {
  constexpr const char* op = "pack_words";
  STD_TORCH_CHECK(
      codes.dim() == 2, op, ": codes is ", text_of(sizes_of(codes)), "; expected a matrix.");
  STD_TORCH_CHECK(order != 2, op, ": order=2 (nibbles) is only read.");
  const Codes of = codes_of(op, bits, order, codes.size(0), codes.size(1), 0);
  const Place place{"codes", device_of(codes)};
  check(op, "codes", codes, ScalarType::Byte, {of.rows, of.columns}, place);
  const Tensor out = torch::stable::new_empty(codes, words_shape(of), ScalarType::Int);
  prepare(out, out.numel() * 4);
  const CodeKernels run = chosen_codes();
  const auto* from = static_cast<const uint8_t*>(codes.data_ptr());
  auto* to = static_cast<uint32_t*>(out.data_ptr());
  by_tiles(of, pack_scratch(of), [&](int64_t first, int64_t end, uint32_t* scratch) {
    run.pack(of, from, scratch, to, first, end);
  });
  return out;
}

// The grid of uniform levels for rows of codes, checked.
Values values_of(
    const char* op, const Tensor& out, const Tensor& scale, const Tensor& zero,
    const std::optional<Tensor>& index, int64_t group_size, int64_t rows, int64_t columns,
    const Place& place) {
  STD_TORCH_CHECK(group_size > 0, op, ": group_size=", group_size, "; pass at least 1.");
  STD_TORCH_CHECK(
      scale.dim() == 2, op, ": scale is ", text_of(sizes_of(scale)), "; expected [rows, groups].");
  const int64_t groups = index ? scale.size(1) : (columns + group_size - 1) / group_size;
  check(op, "out", out, ScalarType::Float, {rows, columns}, place);
  prepare(out, out.numel() * 4);
  check_strided(op, "scale", scale, ScalarType::Float, {rows, groups}, place);
  check_strided(op, "zero", zero, ScalarType::Byte, {rows, groups}, place);
  Values values{};
  values.columns = columns;
  values.groups = groups;
  values.group_size = group_size;
  values.scale = static_cast<const float*>(scale.data_ptr());
  values.zero = static_cast<const uint8_t*>(zero.data_ptr());
  for (int i = 0; i < 2; i++) {
    values.scale_apart[i] = scale.stride(i);
    values.zero_apart[i] = zero.stride(i);
  }
  values.out = static_cast<float*>(out.data_ptr());
  if (!index) return values;
  check(op, "index", *index, ScalarType::Int, {columns}, place);
  values.index = static_cast<const int32_t*>(index->data_ptr());
  for (int64_t k = 0; k < columns; k++)
    STD_TORCH_CHECK(
        values.index[k] >= 0 && values.index[k] < groups, op, ": column ", k, " is in group ",
        values.index[k], " of ", groups, "; correct index.");
  return values;
}

void decode_codes(
    const Tensor& out, const Tensor& codes, const Tensor& scale, const Tensor& zero,
    const std::optional<Tensor>& index, int64_t group_size) {
  constexpr const char* op = "decode_codes";
  STD_TORCH_CHECK(
      codes.dim() == 2, op, ": codes is ", text_of(sizes_of(codes)), "; expected a matrix.");
  const Place place{"out", device_of(out)};
  const int64_t rows = codes.size(0), columns = codes.size(1);
  check(op, "codes", codes, ScalarType::Byte, {rows, columns}, place);
  const Values values = values_of(op, out, scale, zero, index, group_size, rows, columns, place);
  if (rows == 0 || columns == 0) return;
  const CodeKernels run = chosen_codes();
  const auto* from = static_cast<const uint8_t*>(codes.data_ptr());
  in_shares(
      rows, worth_a_thread(columns), [&](int64_t first, int64_t end) {
        const Floats some(2 * values.groups);
        Values mine = values;
        mine.some = some.data();
        run.decode(mine, from + first * columns, first, end);
      });
}

void dequantize_words(
    const Tensor& out, const Tensor& words, int64_t bits, int64_t order, int64_t places,
    const Tensor& scale, const Tensor& zero, const std::optional<Tensor>& index,
    int64_t group_size) {
  constexpr const char* op = "dequantize_words";
  STD_TORCH_CHECK(
      out.dim() == 2, op, ": out is ", text_of(sizes_of(out)), "; expected [rows, columns].");
  const Place place{"out", device_of(out)};
  const Codes codes = words_of(op, words, bits, out.size(1), order, places, place);
  const Values values =
      values_of(op, out, scale, zero, index, group_size, codes.rows, codes.columns, place);
  const CodeKernels run = chosen_codes();
  const uint32_t* from = words_in(words);
  const int64_t held = (rows_together(codes.order) * codes.columns + 3) / 4;
  const int64_t own = unpack_scratch(codes);
  by_tiles(codes, own + held + 2 * values.groups, [&](int64_t first, int64_t end, uint32_t* scratch) {
    auto* some = reinterpret_cast<uint8_t*>(scratch + own);
    Values mine = values;
    mine.some = reinterpret_cast<float*>(scratch + own + held);
    run.unpack(codes, from, scratch, some, first, end);
    run.decode(mine, some, first, end);
  });
}

}  // namespace
}  // namespace bitsweep

STABLE_TORCH_LIBRARY_FRAGMENT(bitsweep, m) {
  m.def("unpack_words(Tensor words, int bits, SymInt columns, int order, int places) -> Tensor");
  m.def("pack_words(Tensor codes, int bits, int order) -> Tensor");
  m.def(
      "decode_codes(Tensor(a!) out, Tensor codes, Tensor scale, Tensor zero, Tensor? index, "
      "SymInt group_size) -> ()");
  m.def(
      "dequantize_words(Tensor(a!) out, Tensor words, int bits, int order, int places, "
      "Tensor scale, Tensor zero, Tensor? index, SymInt group_size) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bitsweep, CPU, m) {
  m.impl("unpack_words", TORCH_BOX(&bitsweep::unpack_words));
  m.impl("pack_words", TORCH_BOX(&bitsweep::pack_words));
  m.impl("decode_codes", TORCH_BOX(&bitsweep::decode_codes));
  m.impl("dequantize_words", TORCH_BOX(&bitsweep::dequantize_words));
}
