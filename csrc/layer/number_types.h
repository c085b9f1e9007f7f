// Number formats as the kernels see them: bit patterns, with no library's arithmetic attached.
#pragma once

#include <cstdint>

namespace fastrnn {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

// A float as the sum of two bfloat16: 17 of its 24 significant bits. Only products read it.
struct SplitFloat {
  BFloat16 high, low;
};

// A number of a quantized row, whose scale follows its last number: scale * (bits - 128).
struct QuantizedByte {
  uint8_t bits;
};

// The type that products are summed, states are kept and cells are computed in.
template <class Storage>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class Storage>
using Compute = typename ComputeOf<Storage>::type;

}  // namespace fastrnn
