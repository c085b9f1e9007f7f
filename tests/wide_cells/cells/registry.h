// In place of csrc/cells/registry.h: cells of five to eight gates, more than one tile of a product has.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

// For i < N - 1 a_i = tanh(.), n = tanh(x part + a_0 * recurrent part) of the last gate, and
//
//   c' = a_1 c + n
//   h' = c' (a_2 / 2 + a_3 / 3 + .. + a_{N-2} / (N - 2))
//
// Slots: the a_i, n, and the recurrent part of the last gate.
template <int N>
struct Wide {
  static constexpr int gates = N, slots = N + 1;
  static constexpr struct Slots {
    int x[N], h[N];
  } lists = [] {
    Slots s{};
    for (int g = 0; g < N; ++g) s.x[g] = s.h[g] = g;
    s.h[N - 1] = N;
    return s;
  }();
  static constexpr const int (&x_slot)[N] = lists.x;
  static constexpr const int (&h_slot)[N] = lists.h;
  static constexpr bool has_c = true, keeps_slots = true, projects = false;

  template <class V>
  static constexpr typename Lanes<V>::Scalar number(int i) {
    return static_cast<typename Lanes<V>::Scalar>(i);
  }

  template <class V>
  static FASTRNN_INLINE V sum(const V (&s)[slots]) {
    V total{};
    for (int i = 2; i < N - 1; ++i) total += s[i] / number<V>(i);
    return total;
  }

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], V /*h_prev*/, V c_prev, V& h, V& c) {
    for (int i = 0; i < N - 1; ++i) s[i] = tanh(s[i]);
    s[N - 1] = tanh(s[N - 1] + s[0] * s[N]);
    c = s[1] * c_prev + s[N - 1];
    h = c * sum(s);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V (&s)[slots], V /*h*/, V /*h_prev*/, V c, V c_prev, V dh, V dc,
                                      V (&d)[slots], V& dh_prev, V& dc_prev) {
    dc = dc + dh * sum(s);
    const V dn = dc * (1 - s[N - 1] * s[N - 1]);
    d[0] = dn * s[N] * (1 - s[0] * s[0]);
    d[1] = dc * c_prev * (1 - s[1] * s[1]);
    for (int i = 2; i < N - 1; ++i) d[i] = dh * c / number<V>(i) * (1 - s[i] * s[i]);
    d[N - 1] = dn;
    d[N] = dn * s[0];
    dh_prev = V{};
    dc_prev = dc * s[1];
  }
};

using FiveGates = Wide<5>;
using SixGates = Wide<6>;
using SevenGates = Wide<7>;
using EightGates = Wide<8>;

}  // namespace fastrnn

#define FASTRNN_CELLS(X)     \
  X(five_gates, FiveGates)   \
  X(six_gates, SixGates)     \
  X(seven_gates, SevenGates) \
  X(eight_gates, EightGates)

#define FASTRNN_GENERATED_CELLS(X)
