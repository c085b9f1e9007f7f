// Matrix products as a driver asks for them; who multiplies (cuBLAS, or the host in tests) is not its
// concern.
#pragma once

#include <cstdint>

#include "layer/number_types.h"

namespace fastrnn::cuda {

enum class Type { float32, float64, bfloat16, float16 };

template <class Storage>
constexpr Type type_of = Type::float32;
template <>
inline constexpr Type type_of<double> = Type::float64;
template <>
inline constexpr Type type_of<BFloat16> = Type::bfloat16;
template <>
inline constexpr Type type_of<Half> = Type::float16;

// c[m, n] (+)= a[m, k] b[k, n], row-major with a stride from row to row. A transposed factor lies in
// memory as [k, m] or [n, k]. Sums are kept in float for the types of 16 bits.
struct Product {
  int64_t m, n, k;
  Type type, c_type;  // of a and b, and of c: the same, or float32
  const void* a;
  int64_t a_row;
  bool a_transposed;
  const void* b;
  int64_t b_row;
  bool b_transposed;
  void* c;
  int64_t c_row;
  bool accumulate;
};

class Blas {
 public:
  virtual void multiply(const Product& product) = 0;

 protected:
  ~Blas() = default;
};

}  // namespace fastrnn::cuda
