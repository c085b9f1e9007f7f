// Written by `python -m fastrnn.cells.headers` from ligru
// in fastrnn/nn/variants.py.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

struct Ligru {
  static constexpr int gates = 2, slots = 2;
  static constexpr int own_states = 0, unit_weights = 0;
  static constexpr int step_inputs = 0;
  static constexpr int x_slot[gates] = {0, 1};
  static constexpr int h_slot[gates] = {0, 1};
  static constexpr bool has_c = own_states > 0, keeps_slots = true, projects = false;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], [[maybe_unused]] V h_prev,
                                     [[maybe_unused]] const V (&c_prev)[1], [[maybe_unused]] const V (&e)[1],
                                     V& h, [[maybe_unused]] V (&c)[1]) {
    using K [[maybe_unused]] = typename Lanes<V>::Scalar;
    const V pre[] = {s[0], s[1]};
    const auto v3 = sigmoid(pre[0]);
    const auto v6 = relu(pre[1]);
    const auto v8 = (v3 * h_prev) + (((V{} + K(1.0)) - v3) * v6);
    h = v8;
    s[0] = v3;
    s[1] = v6;
  }

  template <class V>
  static FASTRNN_INLINE void backward([[maybe_unused]] const V (&s)[slots], [[maybe_unused]] V h,
                                      [[maybe_unused]] V h_prev, [[maybe_unused]] const V (&c)[1],
                                      [[maybe_unused]] const V (&c_prev)[1], [[maybe_unused]] const V (&e)[1],
                                      [[maybe_unused]] V dh, [[maybe_unused]] const V (&dc)[1],
                                      V (&d)[slots], V& dh_prev, [[maybe_unused]] V (&dc_prev)[1],
                                      [[maybe_unused]] V (&de)[1]) {
    using K [[maybe_unused]] = typename Lanes<V>::Scalar;
    const auto v5 = (V{} + K(1.0)) - s[0];
    const auto v10 = (s[1] <= (V{} + K(0.0))) ? ((V{} + K(0.0))) : (dh * v5);
    const auto v12 = dh * s[0];
    const auto v16 = ((-(dh * s[1])) + (dh * h_prev)) * (s[0] * v5);
    d[0] = v16;
    d[1] = v10;
    dh_prev = v12;
  }
};

}  // namespace fastrnn
