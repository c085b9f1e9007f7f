// The plain recurrent layer, as torch.nn.RNN computes it (Elman 1990):
//
//   h' = tanh(x w_ih' + b_ih + h w_hh' + b_hh), or relu in tanh's place
//
// The derivative of either is known from h' itself, so nothing is kept beside it.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

struct Tanh {
  template <class V>
  static FASTRNN_INLINE V value(V x) {
    return tanh(x);
  }
  template <class V>
  static FASTRNN_INLINE V slope_at(V y) {
    return 1 - y * y;
  }
};

struct Relu {
  template <class V>
  static FASTRNN_INLINE V value(V x) {
    return relu(x);
  }
  template <class V>
  static FASTRNN_INLINE V slope_at(V y) {
    return y <= 0 ? V{} : V{} + 1;  // 1 where y is NaN, as in torch
  }
};

template <class Nonlinearity>
struct Rnn {
  static constexpr int gates = 1, slots = 1;
  static constexpr int x_slot[gates] = {0};
  static constexpr int h_slot[gates] = {0};
  static constexpr bool has_c = false, keeps_slots = false, projects = false, approximable = true;

  template <class V>
  static FASTRNN_INLINE void forward(V (&s)[slots], V /*h_prev*/, V /*c_prev*/, V& h, V& /*c*/) {
    h = s[0] = Nonlinearity::value(s[0]);
  }

  template <class V>
  static FASTRNN_INLINE void backward(const V (&)[slots], V h, V /*h_prev*/, V /*c*/, V /*c_prev*/, V dh,
                                      V /*dc*/, V (&d)[slots], V& dh_prev, V& /*dc_prev*/) {
    d[0] = dh * Nonlinearity::slope_at(h);
    dh_prev = V{};
  }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;

}  // namespace fastrnn
