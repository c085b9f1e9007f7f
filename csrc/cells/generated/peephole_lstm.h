// Written by `python -m fastrnn.cells.headers` from peephole_lstm
// in fastrnn/nn/variants.py.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

struct PeepholeLstm {
  static constexpr int gates = 4, slots = 4;
  static constexpr int own_states = 1, unit_weights = 3;
  static constexpr int step_inputs = 0;
  static constexpr int x_slot[gates] = {0, 1, 2, 3};
  static constexpr int h_slot[gates] = {0, 1, 2, 3};
  static constexpr bool has_c = own_states > 0, keeps_slots = true, projects = false;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], [[maybe_unused]] V h_prev,
                                     [[maybe_unused]] const V (&c_prev)[1], [[maybe_unused]] const V (&e)[3],
                                     V& h, [[maybe_unused]] V (&c)[1]) {
    using K [[maybe_unused]] = typename Lanes<V>::Scalar;
    const V pre[] = {s[0], s[1], s[2], s[3]};
    const auto v11 = sigmoid((pre[0] + (e[0] * c_prev[0])));
    const auto v14 = sigmoid((pre[1] + (e[1] * c_prev[0])));
    const auto v16 = tanh(pre[2]);
    const auto v18 = (v14 * c_prev[0]) + (v11 * v16);
    const auto v21 = sigmoid((pre[3] + (e[2] * v18)));
    const auto v23 = v21 * (tanh(v18));
    h = v23;
    c[0] = v18;
    s[0] = v11;
    s[1] = v14;
    s[2] = v16;
    s[3] = v21;
  }

  template <class V>
  static FASTRNN_INLINE void backward([[maybe_unused]] const V (&s)[slots], [[maybe_unused]] V h,
                                      [[maybe_unused]] V h_prev, [[maybe_unused]] const V (&c)[1],
                                      [[maybe_unused]] const V (&c_prev)[1], [[maybe_unused]] const V (&e)[3],
                                      [[maybe_unused]] V dh, [[maybe_unused]] const V (&dc)[1],
                                      V (&d)[slots], V& dh_prev, [[maybe_unused]] V (&dc_prev)[1],
                                      [[maybe_unused]] V (&de)[3]) {
    using K [[maybe_unused]] = typename Lanes<V>::Scalar;
    const auto v13 = tanh(c[0]);
    const auto v22 = (dh * v13) * (s[3] * ((V{} + K(1.0)) - s[3]));
    const auto v24 = v22 * c[0];
    const auto v25 = (dc[0] + ((dh * s[3]) * ((V{} + K(1.0)) - (v13 * v13)))) + (v22 * e[2]);
    const auto v30 = (v25 * s[0]) * ((V{} + K(1.0)) - (s[2] * s[2]));
    const auto v35 = (v25 * c_prev[0]) * (s[1] * ((V{} + K(1.0)) - s[1]));
    const auto v37 = v35 * c_prev[0];
    const auto v41 = (v25 * s[2]) * (s[0] * ((V{} + K(1.0)) - s[0]));
    const auto v43 = v41 * c_prev[0];
    const auto v44 = ((v25 * s[1]) + (v35 * e[1])) + (v41 * e[0]);
    const auto v45 = (V{} + K(0.0));
    d[0] = v41;
    d[1] = v35;
    d[2] = v30;
    d[3] = v22;
    dh_prev = v45;
    dc_prev[0] = v44;
    de[0] = v43;
    de[1] = v37;
    de[2] = v24;
  }
};

}  // namespace fastrnn
