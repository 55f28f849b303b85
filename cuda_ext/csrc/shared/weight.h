// A weight in the kernel layout, as the kernels of every device receive it. Host and device code.
#pragma once

#include <cstdint>

#include "dequantize.h"

namespace bitsweep {

// A weight in the kernel layout (layout.h). Scales, zeros and negative lie as [tiles, groups,
// 8 rows]; zeros is null for ternary levels, negative for uniform ones.
struct Weight {
  const uint32_t* tiles;
  const void* scales;
  const uint8_t* zeros;
  const void* negative;
  Storage scale_storage;
  int bits;
  int64_t inputs, outputs, blocks, units, groups;
  int64_t group_blocks;  // blocks of 32 inputs in a group
};

}  // namespace bitsweep
