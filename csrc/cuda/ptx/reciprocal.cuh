// The GPU's reciprocal, which quotient() of cells/math.h refines; under emulation one that errs as the
// GPU's may.
#pragma once

#ifdef FASTRNN_EMULATED
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

namespace fastrnn {

#ifdef FASTRNN_EMULATED
// 1 / x with an error of an ulp that depends on x: below, none or above.
inline float approximate_reciprocal(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  const float nearest = 1 / x;
  const uint32_t error = bits * 2654435761u >> 30;
  if (std::fpclassify(nearest) == FP_SUBNORMAL) return 0;
  return error == 0   ? std::nextafter(nearest, 0.0f)
         : error == 1 ? std::nextafter(nearest, INFINITY)
                      : nearest;
}
#else
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
#endif

}  // namespace fastrnn
