// exp, sigmoid and tanh for one value or a SIMD vector of values, branch-free.
//
// A type V is described by Lanes<V>: its scalar, the integer of the same width, and at_least and at_most,
// which let a NaN through. The host's SIMD types specialize it in cpu/isa/lanes.inl.h; float and double
// are below.
//
// Largest errors, asserted over the whole range by tests/kernels/test_math.py, in units in the last place:
//
//              exp    sigmoid    tanh
//   float       2        3         3
//   double      2        3         3
//
// The polynomials are Taylor's: after reduction to |r| <= ln(2)/2 the first dropped term is below a
// quarter of an ulp, so that nothing is gained by fitted coefficients.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDA_ARCH__) || defined(FASTRNN_EMULATED)
#include "cuda/ptx/reciprocal.cuh"
#endif

#ifdef __CUDACC__
#define FASTRNN_INLINE __host__ __device__ __forceinline__
#else
#define FASTRNN_INLINE inline __attribute__((always_inline))
#endif

#ifdef __CUDA_ARCH__
#define FASTRNN_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define FASTRNN_UNROLL
#else
#define FASTRNN_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fastrnn {

template <class To, class From>
FASTRNN_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "reinterprets a value of the same size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
struct Lanes;

// A comparison with NaN is false, so x stays NaN.
template <class V>
struct Clamps {
  static FASTRNN_INLINE V at_least(V x, V low) { return x < low ? low : x; }
  static FASTRNN_INLINE V at_most(V x, V high) { return x > high ? high : x; }
};

template <>
struct Lanes<float> : Clamps<float> {
  using Scalar = float;
  using Int = int32_t;
};

template <>
struct Lanes<double> : Clamps<double> {
  using Scalar = double;
  using Int = int64_t;
};

// What differs between float and double: where exp saturates, ln(2) in two parts whose first has
// trailing zeros (n * ln2_hi is exact), the number that rounds to an integer when it is added, the
// exponent's place and the sign's, and how many Taylor terms an ulp needs.
template <class Scalar>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float lowest = -87.0f, highest = 88.0f;
  static constexpr float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23
  static constexpr float tanh_saturates = 9.5f;
  static constexpr int32_t sign = INT32_MIN;
  static constexpr int mantissa = 23, bias = 127, terms = 8;
};

template <>
struct ExpConstants<double> {
  static constexpr double lowest = -708.0, highest = 709.0;
  static constexpr double log2e = 1.4426950408889634, ln2_hi = 6.93145751953125e-1,
                          ln2_lo = 1.42860682030941723212e-6;
  static constexpr double round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double tanh_saturates = 19.5;
  static constexpr int64_t sign = INT64_MIN;
  static constexpr int mantissa = 52, bias = 1023, terms = 14;
};

template <class V>
FASTRNN_INLINE V clamp(V x, typename Lanes<V>::Scalar low, typename Lanes<V>::Scalar high) {
  return Lanes<V>::at_most(Lanes<V>::at_least(x, V{} + low), V{} + high);
}

// of[n] = 1/n!. A table and no function: nvcc would call a function at run time, in every exp.
template <class Scalar>
struct InverseFactorials {
  Scalar of[ExpConstants<Scalar>::terms] = {};

  constexpr InverseFactorials() {
    Scalar product = 1;
    for (int n = 0; n < ExpConstants<Scalar>::terms; ++n) {
      product *= n > 0 ? n : 1;
      of[n] = 1 / product;
    }
  }
};

// a / b from r, which is 1 / b within an ulp.
FASTRNN_INLINE float refined_quotient(float a, float b, float r) {
  const float q = a * r;
  return __builtin_fmaf(__builtin_fmaf(-b, q, a), r, q);
}

// a / b; on a GPU within an ulp for floats, where b is at least 2^-126 and below 2^126. A GPU has no
// instruction that divides: IEEE's division takes 8 of them and a branch to a subroutine.
template <class V>
FASTRNN_INLINE V quotient(V a, V b) {
#if defined(__CUDA_ARCH__) || defined(FASTRNN_EMULATED)
  if constexpr (sizeof(V) == sizeof(float)) return refined_quotient(a, b, approximate_reciprocal(b));
#endif
  return a / b;
}

// x = n ln(2) + r with |r| <= ln(2)/2: power = 2^n and tail = exp(r) - 1.
template <class V>
struct ExpParts {
  V power, tail;
};

// Of x between `lowest` and `highest`.
template <class V>
FASTRNN_INLINE ExpParts<V> exp_parts(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  using Int = typename Lanes<V>::Int;
  using K = ExpConstants<Scalar>;
  // The number that rounds brings the exponent's bias with it, so that no integer is added to a NaN's bits.
  constexpr Scalar round = K::round + K::bias;
  const V shifted = x * K::log2e + round;
  const V n = shifted - round;
  V r = x - n * K::ln2_hi;
  r = r - n * K::ln2_lo;
  const V power = bits_as<V>(static_cast<Int>(bits_as<Int>(shifted) << K::mantissa));
  // 1/2! + r/3! + ... by Horner's rule in r^2, even and odd terms apart, which halves the chain of
  // additions that wait for each other; the linear term last: exp(r) - 1 exact near 0.
  static_assert(K::terms % 2 == 0);
  constexpr InverseFactorials<Scalar> inverse_factorial;
  const V square = r * r;
  V even = V{} + inverse_factorial.of[K::terms - 2], odd = V{} + inverse_factorial.of[K::terms - 1];
  FASTRNN_UNROLL
  for (int i = K::terms - 4; i >= 2; i -= 2) {
    even = even * square + inverse_factorial.of[i];
    odd = odd * square + inverse_factorial.of[i + 1];
  }
  return {power, (odd * r + even) * square + r};
}

template <class V>
FASTRNN_INLINE V exp(V x) {
  using K = ExpConstants<typename Lanes<V>::Scalar>;
  const ExpParts<V> e = exp_parts(clamp(x, K::lowest, K::highest));
  return e.power * e.tail + e.power;
}

// Saturates at 1 long before `highest`, which keeps the divisor in the range of quotient().
template <class V>
FASTRNN_INLINE V sigmoid(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  using K = ExpConstants<Scalar>;
  const ExpParts<V> parts = exp_parts(clamp(x, K::lowest, -K::lowest));
  const V e = parts.power * parts.tail + parts.power;
  return quotient(e, e + Scalar(1));
}

// tanh|x| = m / (m + 2) with m = exp(2|x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which cancels nowhere. (Of a
// negative x the same would be a few ulp worse near -1, where a gradient takes 1 - tanh^2.)
template <class V>
FASTRNN_INLINE V tanh(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  using Int = typename Lanes<V>::Int;
  const Int sign = bits_as<Int>(x) & ExpConstants<Scalar>::sign;
  const V magnitude = bits_as<V>(static_cast<Int>(bits_as<Int>(x) ^ sign));
  const V y = Lanes<V>::at_most(magnitude, V{} + ExpConstants<Scalar>::tanh_saturates);
  const ExpParts<V> e = exp_parts(y + y);
  const V m = e.power * e.tail + (e.power - Scalar(1));
  return bits_as<V>(static_cast<Int>(bits_as<Int>(quotient(m, m + Scalar(2))) | sign));
}

template <class V>
FASTRNN_INLINE V relu(V x) {
  using Scalar = typename Lanes<V>::Scalar;
  return x < Scalar(0) ? V{} : x;
}

}  // namespace fastrnn
