// One layer in one direction over a whole sequence: plain pointers and sizes, row-major and dense
// unless a stride is given. T steps, B sequences, I inputs, H hidden units, P the size of h (H, or
// the projection's size), G gates and S slots of the cell (cells/cell.h).
#pragma once

#include <cstdint>

#include "cells/registry.h"
#include "layer/number_types.h"

namespace fastrnn {

// Which sequence is active at which step, and where a step's rows lie.
//
// Row (t, b) of every per-step tensor is row first_row(t) + b. A sequence that is not active at a step
// has output zero there (a packed batch has no such row) and keeps its state.
struct Sequence {
  int64_t T, B;
  int64_t rows;            // of every per-step tensor: T * B, or the sum of a packed batch's sizes
  const int64_t* first;    // [T + 1] first row of each step of a packed batch, or null
  const int64_t* lengths;  // [B] steps of each sequence, or null; never with `first`
  const uint8_t* reset;    // [rows] state is zero before this step, or null
  bool reverse;            // the last step is computed first

  // The k-th step to be computed.
  int64_t step(int64_t k) const { return reverse ? T - 1 - k : k; }
  int64_t first_row(int64_t t) const { return first ? first[t] : t * B; }
  // Rows present at step t: sequences 0 .. batch(t) - 1.
  int64_t batch(int64_t t) const { return first ? first[t + 1] - first[t] : B; }
  bool active(int64_t t, int64_t b) const { return b < batch(t) && (!lengths || t < lengths[b]); }
  bool resets(int64_t t, int64_t b) const { return reset && active(t, b) && reset[first_row(t) + b]; }
  // Every sequence is active at every step and none is reset.
  bool plain() const { return !first && !lengths && !reset; }
};

template <class Storage>
struct Weights {
  int64_t I, H, P;
  const Storage* w_ih;  // [G * H, I]
  const Storage* w_hh;  // [G * H, P]
  const Storage* b_ih;  // [G * H] or null
  const Storage* b_hh;  // [G * H] or null
  const Storage* w_hr;  // [P, H] or null
  // The matrices packed by pack_weights() for the kernels in use, or null. With them w_ih and w_hh are null
  // and w_hr may be anything but null where there is a projection.
  const void* panels;
};

template <class Storage>
struct ForwardArgs {
  CellId cell;
  Sequence sequence;
  Weights<Storage> weights;
  const Storage* x;       // [T, B, I], or [rows, I] packed
  int64_t x_step, x_row;  // strides of x from step to step (unused when packed) and from row to row
  const Storage* h0;      // [B, P]
  const Storage* c0;      // [B, H] or null
  Storage* y;             // [rows, P] h of every step
  Storage* h_n;           // [B, P]
  Storage* c_n;           // [B, H] or null
  Storage* c;             // [rows, H] c of every step, or null
  Storage* slots;         // [rows, S * H] what backward() of the cell reads, or null
};

template <class Storage>
struct BackwardArgs {
  CellId cell;
  Sequence sequence;
  Weights<Storage> weights;  // of which w_hh and w_hr are read
  const Storage* h0;         // [B, P]
  const Storage* c0;         // [B, H] or null
  const Storage* y;          // [rows, P]
  const Storage* c;          // [rows, H] or null
  const Storage* slots;      // [rows, S * H] or null
  const Storage* dy;         // [rows, P] or null
  const Storage* dh_n;       // [B, P] or null
  const Storage* dc_n;       // [B, H] or null
  const Storage* dc;         // [rows, H] or null
  Storage* d_slots;  // [rows, S * H] gradient of every pre-activation; null where what it is good for
                     // is asked for itself, of a table of one type:
  const Storage* x;  // as forward had it,
  int64_t x_step, x_row;
  Storage* dx;      // [rows, I] or null
  Storage* dw_ih;   // [G * H, I], and with it, or null,
  Storage* dw_hh;   // [G * H, P]
  Storage* d_bias;  // [S * H] sums of d_slots
  Storage* dh;      // [rows, P] whole gradient of h; with a projection only, else null
  Storage* dh0;     // [B, P]
  Storage* dc0;     // [B, H] or null
};

}  // namespace fastrnn
