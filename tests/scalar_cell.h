// Computes the struct Declared, a cell in the form of fastrnn/cells/printing.py, in float64, one number at
// a time: what tests compare with the Python function. A test puts the struct before this file's inclusion.
#pragma once

#include "cells/cell.h"

namespace fastrnn {

// in: slots, h, own states, inputs, dh, gradients of own states; out: h, own states, gradients of the
// slots, of h, own states and inputs. Each [units].
template <class Cell>
void compute(long units, const double* in, double* out) {
  constexpr int own = Cell::own_states, given = Cell::unit_weights + Cell::step_inputs;
  for (long u = 0; u < units; ++u) {
    long read = 0, written = 0;
    const auto take = [&](double* to, int count) {
      for (int i = 0; i < count; ++i) to[i] = in[units * read++ + u];
    };
    const auto put = [&](const double* from, int count) {
      for (int i = 0; i < count; ++i) out[units * written++ + u] = from[i];
    };
    double s[Cell::slots], d[Cell::slots], h_prev, h, dh, dh_prev;
    double c_prev[at_least_one(own)], c[at_least_one(own)], dc[at_least_one(own)],
        dc_prev[at_least_one(own)];
    double e[at_least_one(given)], de[at_least_one(given)];
    take(s, Cell::slots);
    take(&h_prev, 1);
    take(c_prev, own);
    take(e, given);
    take(&dh, 1);
    take(dc, own);
    Cell::forward(s, h_prev, c_prev, e, h, c);
    Cell::backward(s, h, h_prev, c, c_prev, e, dh, dc, d, dh_prev, dc_prev, de);
    put(&h, 1);
    put(c, own);
    put(d, Cell::slots);
    put(&dh_prev, 1);
    put(dc_prev, own);
    put(de, given);
  }
}

}  // namespace fastrnn

extern "C" __attribute__((visibility("default"))) void run(long units, const double* in, double* out) {
  fastrnn::compute<fastrnn::Declared>(units, in, out);
}
