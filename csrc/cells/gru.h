// Gated recurrent unit, as torch.nn.GRU computes it (Cho et al. 2014, with the reset gate applied
// after the matrix product):
//
//   r, z = sigmoid(x w_ih' + b_ih + h w_hh' + b_hh)
//   n = tanh(x w_in' + b_in + r (h w_hn' + b_hn))
//   h' = (1 - z) n + z h
//
// Slots: r, z, the input's part of n (later n itself), the recurrent part of n.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

struct Gru {
  static constexpr int gates = 3, slots = 4;
  static constexpr int x_slot[gates] = {0, 1, 2};
  static constexpr int h_slot[gates] = {0, 1, 3};
  static constexpr bool has_c = false, keeps_slots = true, projects = false, approximable = true;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], V h_prev, V /*c_prev*/, V& h, V& /*c*/) {
    s[0] = sigmoid(s[0]);
    s[1] = sigmoid(s[1]);
    s[2] = tanh(s[2] + s[0] * s[3]);
    h = s[2] + s[1] * (h_prev - s[2]);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V (&s)[slots], V /*h*/, V h_prev, V /*c*/, V /*c_prev*/, V dh,
                                      V /*dc*/, V (&d)[slots], V& dh_prev, V& /*dc_prev*/) {
    const V r = s[0], z = s[1], n = s[2], hn = s[3];
    const V dn = dh * (1 - z) * (1 - n * n);
    d[0] = dn * hn * r * (1 - r);
    d[1] = dh * (h_prev - n) * z * (1 - z);
    d[2] = dn;
    d[3] = dn * r;
    dh_prev = dh * z;
  }
};

}  // namespace fastrnn
