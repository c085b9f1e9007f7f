// Written by `python -m fastrnn.cells.headers` from coupled_lstm
// in fastrnn/nn/variants.py.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

struct CoupledLstm {
  static constexpr int gates = 3, slots = 3;
  static constexpr int own_states = 1, unit_weights = 0;
  static constexpr int step_inputs = 0;
  static constexpr int x_slot[gates] = {0, 1, 2};
  static constexpr int h_slot[gates] = {0, 1, 2};
  static constexpr bool has_c = own_states > 0, keeps_slots = true, projects = false;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], [[maybe_unused]] V h_prev,
                                     [[maybe_unused]] const V (&c_prev)[1], [[maybe_unused]] const V (&e)[1],
                                     V& h, [[maybe_unused]] V (&c)[1]) {
    using K [[maybe_unused]] = typename Lanes<V>::Scalar;
    const V pre[] = {s[0], s[1], s[2]};
    const auto v5 = sigmoid(pre[0]);
    const auto v8 = tanh(pre[1]);
    const auto v10 = (((V{} + K(1.0)) - v5) * c_prev[0]) + (v5 * v8);
    const auto v11 = sigmoid(pre[2]);
    const auto v13 = v11 * (tanh(v10));
    h = v13;
    c[0] = v10;
    s[0] = v5;
    s[1] = v8;
    s[2] = v11;
  }

  template <class V>
  static FASTRNN_INLINE void backward([[maybe_unused]] const V (&s)[slots], [[maybe_unused]] V h,
                                      [[maybe_unused]] V h_prev, [[maybe_unused]] const V (&c)[1],
                                      [[maybe_unused]] const V (&c_prev)[1], [[maybe_unused]] const V (&e)[1],
                                      [[maybe_unused]] V dh, [[maybe_unused]] const V (&dc)[1],
                                      V (&d)[slots], V& dh_prev, [[maybe_unused]] V (&dc_prev)[1],
                                      [[maybe_unused]] V (&de)[1]) {
    using K [[maybe_unused]] = typename Lanes<V>::Scalar;
    const auto v9 = (V{} + K(1.0)) - s[0];
    const auto v10 = tanh(c[0]);
    const auto v16 = dc[0] + ((dh * s[2]) * ((V{} + K(1.0)) - (v10 * v10)));
    const auto v19 = (dh * v10) * (s[2] * ((V{} + K(1.0)) - s[2]));
    const auto v24 = (v16 * s[0]) * ((V{} + K(1.0)) - (s[1] * s[1]));
    const auto v25 = v16 * v9;
    const auto v30 = ((v16 * s[1]) + (-(v16 * c_prev[0]))) * (s[0] * v9);
    const auto v31 = (V{} + K(0.0));
    d[0] = v30;
    d[1] = v24;
    d[2] = v19;
    dh_prev = v31;
    dc_prev[0] = v25;
  }
};

}  // namespace fastrnn
