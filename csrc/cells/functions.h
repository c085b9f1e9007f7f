// Functions that cells declared in Python may call besides exp, sigmoid, tanh and relu (cells/math.h), for
// one value or a SIMD vector of values.
//
// The compiler has instructions for a square root or rounding of a whole vector; the others are the C
// library's, lane by lane.
#pragma once

#include <cmath>

#include "cells/math.h"

namespace fastrnn {

// f of every lane.
template <class V, class Function>
FASTRNN_INLINE V each_lane(V x, Function f) {
  using Scalar = typename Lanes<V>::Scalar;
  if constexpr (sizeof(V) == sizeof(Scalar)) {
    return f(x);
  } else {
    V y;
    for (unsigned i = 0; i < sizeof(V) / sizeof(Scalar); ++i) y[i] = f(Scalar(x[i]));
    return y;
  }
}
template <class V, class Function>
FASTRNN_INLINE V each_lane(V x, V y, Function f) {
  using Scalar = typename Lanes<V>::Scalar;
  if constexpr (sizeof(V) == sizeof(Scalar)) {
    return f(x, y);
  } else {
    V z;
    for (unsigned i = 0; i < sizeof(V) / sizeof(Scalar); ++i) z[i] = f(Scalar(x[i]), Scalar(y[i]));
    return z;
  }
}

#define FASTRNN_EACH_LANE(name)                                       \
  template <class V>                                                  \
  FASTRNN_INLINE V name(V x) {                                        \
    return each_lane(x, [](auto value) { return std::name(value); }); \
  }
FASTRNN_EACH_LANE(sqrt)
FASTRNN_EACH_LANE(floor)
FASTRNN_EACH_LANE(ceil)
FASTRNN_EACH_LANE(trunc)
FASTRNN_EACH_LANE(exp2)
FASTRNN_EACH_LANE(expm1)
FASTRNN_EACH_LANE(log)
FASTRNN_EACH_LANE(log1p)
FASTRNN_EACH_LANE(log2)
FASTRNN_EACH_LANE(log10)
FASTRNN_EACH_LANE(erf)
FASTRNN_EACH_LANE(erfc)
FASTRNN_EACH_LANE(sin)
FASTRNN_EACH_LANE(cos)
FASTRNN_EACH_LANE(tan)
FASTRNN_EACH_LANE(asin)
FASTRNN_EACH_LANE(acos)
FASTRNN_EACH_LANE(atan)
FASTRNN_EACH_LANE(sinh)
FASTRNN_EACH_LANE(cosh)
FASTRNN_EACH_LANE(asinh)
FASTRNN_EACH_LANE(acosh)
FASTRNN_EACH_LANE(atanh)
#undef FASTRNN_EACH_LANE

// To nearest, ties to even, as torch rounds.
template <class V>
FASTRNN_INLINE V round(V x) {
  return each_lane(x, [](auto value) { return std::nearbyint(value); });
}

template <class V>
FASTRNN_INLINE V pow(V x, V y) {
  return each_lane(x, y, [](auto base, auto exponent) { return std::pow(base, exponent); });
}
template <class V>
FASTRNN_INLINE V atan2(V y, V x) {
  return each_lane(y, x, [](auto a, auto b) { return std::atan2(a, b); });
}

template <class V>
FASTRNN_INLINE V fmod(V x, V y) {
  return each_lane(x, y, [](auto a, auto b) { return std::fmod(a, b); });
}
// Of the divisor's sign, as Python's %.
template <class V>
FASTRNN_INLINE V remainder(V x, V y) {
  const V rest = fmod(x, y);
  return (rest != 0) & ((rest < 0) != (y < 0)) ? rest + y : rest;
}
template <class V>
FASTRNN_INLINE V hypot(V x, V y) {
  return each_lane(x, y, [](auto a, auto b) { return std::hypot(a, b); });
}

template <class V>
FASTRNN_INLINE V abs(V x) {
  using Int = typename Lanes<V>::Int;
  return bits_as<V>(static_cast<Int>(bits_as<Int>(x) & ~ExpConstants<typename Lanes<V>::Scalar>::sign));
}
template <class V>
FASTRNN_INLINE V sign(V x) {
  return x > 0 ? V{} + 1 : (x < 0 ? V{} - 1 : V{});
}

// A NaN in either argument goes through, as in torch.
template <class V>
FASTRNN_INLINE V maximum(V x, V y) {
  return (x > y) | (x != x) ? x : y;
}
template <class V>
FASTRNN_INLINE V minimum(V x, V y) {
  return (x < y) | (x != x) ? x : y;
}

}  // namespace fastrnn
