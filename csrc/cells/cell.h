// What a cell is, and nothing of how time, threads or memory are arranged around it.
//
// A cell computes one hidden unit of one row for one step. It has `slots` numbers per unit. Before
// forward() they hold pre-activations: the input projection was added into slot x_slot[g] for gate g,
// the recurrent product into h_slot[g]. Where the two may be summed beforehand (LSTM) both name the
// same slot; where they must stay apart (the candidate of GRU) they name two. forward() leaves in the
// slots what backward() wants to find there. backward() gives the gradient of every pre-activation in
// the same slots, so that
//
//   dx      = sum over g of d[x_slot[g]] * w_ih[g]
//   dh_prev = sum over g of d[h_slot[g]] * w_hh[g] + the direct part that backward() returns.
//
// Both slot lists increase and start at 0 for g = 0; a run of consecutive slots is one matrix operand.
//
//   gates        rows of w_ih and w_hh are gates * hidden_size, in torch.nn's order
//   slots        numbers kept per unit
//   x_slot       [gates] slot that receives the input's part of gate g
//   h_slot       [gates] slot that receives the recurrent part of gate g
//   has_c        there is a second state c, which never leaves its unit
//   keeps_slots  backward() reads the slots; otherwise h alone is enough and they are not kept
//
//   template <class V> static void forward(V (&s)[slots], V h_prev, V c_prev, V& h, V& c)
//   template <class V> static void backward(const V (&s)[slots], V h, V h_prev, V c, V c_prev, V dh,
//                                           V dc, V (&d)[slots], V& dh_prev, V& dc_prev)
//
// V is float, double or a SIMD vector of them. dh is the whole gradient of h; dc is the gradient of c
// from later steps alone. c, c_prev, dc and dc_prev are unused by a cell without c.
#pragma once

#include "cells/math.h"

namespace fastrnn {

template <class Cell>
constexpr bool slots_cover() {
  bool seen[Cell::slots] = {};
  for (int g = 0; g < Cell::gates; ++g) {
    if (Cell::x_slot[g] >= Cell::slots || Cell::h_slot[g] >= Cell::slots) return false;
    if (g > 0 && (Cell::x_slot[g] <= Cell::x_slot[g - 1] || Cell::h_slot[g] <= Cell::h_slot[g - 1])) {
      return false;
    }
    seen[Cell::x_slot[g]] = seen[Cell::h_slot[g]] = true;
  }
  for (bool slot : seen) {
    if (!slot) return false;
  }
  return Cell::x_slot[0] == 0 && Cell::h_slot[0] == 0;
}

// Asserted for every cell in the registry (registry.h).
template <class Cell>
constexpr bool keeps_the_contract() {
  static_assert(Cell::gates >= 1 && Cell::slots >= Cell::gates, "a slot for every gate");
  static_assert(slots_cover<Cell>(), "slot lists increase from 0 and leave no slot unused");
  static_assert(sizeof(Cell) == 1, "a cell has no data of its own");
  return true;
}

}  // namespace fastrnn
