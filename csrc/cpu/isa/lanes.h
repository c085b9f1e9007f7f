// Lanes (cells/math.h) of the SIMD vectors of FASTRNN_VECTOR_BYTES. After the compiler's own headers.
#pragma once

#include "cells/math.h"

namespace fastrnn {

#define FASTRNN_VECTOR(scalar) scalar __attribute__((vector_size(FASTRNN_VECTOR_BYTES)))
#if FASTRNN_VECTOR_BYTES == 64
// One instruction each, which gives its second operand where one is a NaN; from comparisons GCC makes two.
#define FASTRNN_CLAMPS(scalar, suffix)                                                 \
  using V = FASTRNN_VECTOR(scalar);                                                    \
  static FASTRNN_INLINE V at_least(V x, V low) { return _mm512_max_##suffix(low, x); } \
  static FASTRNN_INLINE V at_most(V x, V high) { return _mm512_min_##suffix(high, x); }
#define FASTRNN_VECTOR_BASE(scalar)
#else
#define FASTRNN_CLAMPS(scalar, suffix)
#define FASTRNN_VECTOR_BASE(scalar) : Clamps<FASTRNN_VECTOR(scalar)>
#endif

#define FASTRNN_VECTOR_LANES(scalar, suffix, integer)                \
  template <>                                                        \
  struct Lanes<FASTRNN_VECTOR(scalar)> FASTRNN_VECTOR_BASE(scalar) { \
    using Scalar = scalar;                                           \
    typedef FASTRNN_VECTOR(integer Int);                             \
    FASTRNN_CLAMPS(scalar, suffix)                                   \
  };
FASTRNN_VECTOR_LANES(float, ps, int32_t)
FASTRNN_VECTOR_LANES(double, pd, int64_t)

#undef FASTRNN_VECTOR_LANES
#undef FASTRNN_VECTOR_BASE
#undef FASTRNN_CLAMPS
#undef FASTRNN_VECTOR

}  // namespace fastrnn
