// What math.inl.h compiles for each target.
#pragma once

#include <cstdint>

namespace fastrnn {

// [scalar or vector code][exp, sigmoid, tanh]
struct MathFunctions {
  void (*of_float[2][3])(int64_t n, const float* x, float* y);
  void (*of_double[2][3])(int64_t n, const double* x, double* y);
  void (*approximate[2])(int64_t n, const float* x, float* y);  // sigmoid, tanh
};

}  // namespace fastrnn
