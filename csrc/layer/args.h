// One layer in one direction over a whole sequence, as every backend receives it: plain pointers and sizes.
//
// Arrays are row-major and dense unless a stride is given, and in the backend's memory (except
// Sequence::first, which is on the host). T steps, B sequences, I inputs, H hidden units, P the size of h
// (H, or the projection's size), G gates and S slots of the cell (cells/cell.h).
#pragma once

#include <cstdint>

#include "cells/cell_info.h"
#include "layer/number_types.h"
#include "layer/sequence.h"

namespace fastrnn {

template <class Storage>
struct Weights {
  int64_t I, H, P;
  const Storage* w_ih;                    // [G * H, I]
  const Storage* w_hh;                    // [G * H, P]
  const Storage* b_ih;                    // [G * H] or null
  const Storage* b_hh;                    // [G * H] or null
  const Storage* w_hr;                    // [P, H] or null
  const Storage* unit_weights = nullptr;  // [W * H] of a cell with W weights per unit, or null
};

// Numbers given to a cell for every unit and step: that of row (t, b) at from + t * step + b * row, or, if
// packed, at from + (its row) * row. A stride of 0 tells that they are the same for all.
template <class Storage>
struct StepInputs {
  const Storage* from;  // [.., E * H] or null
  int64_t step, row;

  const Storage* at(const Sequence& q, int64_t t, int64_t b) const {
    return from + (q.first ? (q.first[t] + b) * row : t * step + b * row);
  }
};

template <class Storage>
struct ForwardArgs {
  CellId cell;
  Sequence sequence;
  Weights<Storage> weights;
  const Storage* x;       // [T, B, I], or [rows, I] packed
  int64_t x_step, x_row;  // strides of x from step to step (unused if packed) and from row to row
  const Storage* h0;      // [B, P]
  const Storage* c0;      // [B, K * H] K private states, or null
  Storage* y;             // [rows, P] h of every step
  Storage* h_n;           // [B, P]
  Storage* c_n;           // [B, K * H] or null
  Storage* c;             // [rows, K * H] c of every step, or null
  Storage* slots;         // [rows, S * H] what the cell's backward reads, or null
  StepInputs<Storage> step_inputs{};
};

template <class Storage>
struct BackwardArgs {
  CellId cell;
  Sequence sequence;
  Weights<Storage> weights;
  const Storage* x;       // [T, B, I], or [rows, I] packed
  int64_t x_step, x_row;  // as in ForwardArgs
  const Storage* h0;      // [B, P]
  const Storage* c0;      // [B, K * H] K private states, or null
  const Storage* y;       // [rows, P]
  const Storage* c;       // [rows, K * H] or null
  const Storage* slots;   // [rows, S * H] or null
  const Storage* dy;      // [rows, P] or null
  const Storage* dh_n;    // [B, P] or null
  const Storage* dc_n;    // [B, K * H] or null
  const Storage* dc;      // [rows, K * H] or null
  Storage* dx;            // [rows, I] or null
  Storage* dh0;           // [B, P]
  Storage* dc0;           // [B, K * H] or null
  Storage* dw_ih;         // [G * H, I] or null; if null, so are the next four
  Storage* dw_hh;         // [G * H, P] or null
  Storage* db_ih;         // [G * H] or null
  Storage* db_hh;         // [G * H] or null
  Storage* dw_hr;         // [P, H] or null
  StepInputs<Storage> step_inputs{};
  Storage* d_unit_weights = nullptr;  // [W * H] or null
  Storage* d_step_inputs = nullptr;   // [rows, E * H] or null
};

// First row of x at step t.
template <class Args>
auto x_at(const Args& a, int64_t t) {
  return a.x + (a.sequence.first ? a.sequence.first[t] * a.x_row : t * a.x_step);
}

}  // namespace fastrnn
