// Long short-term memory, as torch.nn.LSTM computes it (Hochreiter and Schmidhuber 1997, with the
// forget gate of Gers et al. 2000):
//
//   i, f, o = sigmoid(.), g = tanh(.)    of x w_ih' + b_ih + h w_hh' + b_hh, in the order i, f, g, o
//   c' = f c + i g
//   h' = o tanh(c')
#pragma once

#include "cells/cell.h"

namespace fastrnn {

struct Lstm {
  static constexpr int gates = 4, slots = 4;
  static constexpr int x_slot[gates] = {0, 1, 2, 3};
  static constexpr int h_slot[gates] = {0, 1, 2, 3};
  static constexpr bool has_c = true, keeps_slots = true, projects = true, approximable = true;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], V /*h_prev*/, V c_prev, V& h, V& c) {
    s[0] = sigmoid(s[0]);
    s[1] = sigmoid(s[1]);
    s[2] = tanh(s[2]);
    s[3] = sigmoid(s[3]);
    c = s[1] * c_prev + s[0] * s[2];
    h = output(s, c);
  }

  // h from what forward left in the slots, for layers that project it.
  template <class V>
  static FASTRNN_INLINE V output(const V (&s)[slots], V c) {
    return s[3] * tanh(c);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V (&s)[slots], V /*h*/, V /*h_prev*/, V c, V c_prev, V dh, V dc,
                                      V (&d)[slots], V& dh_prev, V& dc_prev) {
    const V i = s[0], f = s[1], g = s[2], o = s[3];
    const V tanh_c = tanh(c);
    dc = dc + dh * o * (1 - tanh_c * tanh_c);
    d[0] = dc * g * i * (1 - i);
    d[1] = dc * c_prev * f * (1 - f);
    d[2] = dc * i * (1 - g * g);
    d[3] = dh * tanh_c * o * (1 - o);
    dh_prev = V{};
    dc_prev = dc * f;
  }
};

}  // namespace fastrnn
