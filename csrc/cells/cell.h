// The contract of a cell: the equations of one hidden unit of one row for one step. A cell knows nothing of
// time, threads or memory.
//
// A cell has `slots` numbers per unit. Before forward() they hold pre-activations: x_slot[g] receives the
// input's part of gate g, h_slot[g] the recurrent part. Gates whose two parts may be added beforehand (all
// of LSTM's) name the same slot twice; gates whose parts must stay apart (the candidate of GRU) name two
// slots. forward() leaves in the slots what backward() reads. backward() returns the gradient of every
// pre-activation in the same slots, so that
//
//   dx      = sum over g of d[x_slot[g]] * w_ih[g]
//   dh_prev = sum over g of d[h_slot[g]] * w_hh[g] + the direct part that backward() returns.
//
//   gates        1 to max_gates; rows of w_ih and w_hh are gates * hidden_size, in torch.nn's order
//   slots        numbers per unit, at most two per gate
//   x_slot       [gates] slot of the input's part of gate g
//   h_slot       [gates] slot of the recurrent part of gate g. A run of consecutive slots is one matrix
//                operand. Every slot is in one of the lists, and in none twice.
//   has_c        the cell has a second state c, which never leaves its unit
//   keeps_slots  backward() reads the slots; otherwise h alone is enough, and they are not kept
//   projects     the cell may be followed by a projection (proj_size): forward() and backward() then read
//                neither h nor h_prev, backward() returns dh_prev = 0, and output() gives h again
//   approximable optional, true: forward() takes +, -, *, sigmoid, tanh and relu alone, so that layers of
//                rounded weights may compute it with approximations
//
// A cell that declares the three counts below, as those declared in Python do, may have several private
// states and be given numbers besides gates and states. It takes c and c_prev as arrays, and these numbers
// in an array e: first its weights, one number per unit (peepholes), then inputs of the step (masks,
// decays).
//
//   own_states    private states; has_c is own_states > 0
//   unit_weights  weights per unit
//   step_inputs   numbers given for each unit and step
//
//   template <class V> static void forward(V (&s)[slots], V h_prev, V c_prev, V& h, V& c)
//   template <class V> static void backward(const V (&s)[slots], V h, V h_prev, V c, V c_prev, V dh,
//                                           V dc, V (&d)[slots], V& dh_prev, V& dc_prev)
//   template <class V> static V output(const V (&s)[slots], V c)     h from what forward() left; if
//   projects
//
// and with counts, where an array has at least one element:
//
//   template <class V> static void forward(V (&s)[slots], V h_prev, const V (&c_prev)[own_states],
//                                          const V (&e)[unit_weights + step_inputs], V& h,
//                                          V (&c)[own_states])
//   template <class V> static void backward(const V (&s)[slots], V h, V h_prev, const V (&c)[own_states],
//                                           const V (&c_prev)[own_states],
//                                           const V (&e)[unit_weights + step_inputs], V dh,
//                                           const V (&dc)[own_states], V (&d)[slots], V& dh_prev,
//                                           V (&dc_prev)[own_states],
//                                           V (&de)[unit_weights + step_inputs])
//
// V is float, double or a SIMD vector of them. dh is the whole gradient of h; dc is the gradient of c
// from later steps alone. A cell without c ignores c, c_prev, dc and dc_prev.
//
// What the contract cannot express: a cell whose units see each other other than through w_hh (layer
// normalization, a product inside the step, block-diagonal w_hh); an output y other than the state h.
#pragma once

#include "cells/math.h"

namespace fastrnn {

constexpr int max_gates = 8, max_slots = 2 * max_gates;
constexpr int max_own_states = 7, max_given = 8;

template <class Cell>
concept HasCounts = requires { Cell::own_states; };

template <class Cell>
constexpr int own_states = Cell::has_c;
template <HasCounts Cell>
constexpr int own_states<Cell> = Cell::own_states;
template <class Cell>
constexpr int unit_weights = 0;
template <HasCounts Cell>
constexpr int unit_weights<Cell> = Cell::unit_weights;
template <class Cell>
constexpr int step_inputs = 0;
template <HasCounts Cell>
constexpr int step_inputs<Cell> = Cell::step_inputs;

// Lengths of the arrays above.
constexpr int at_least_one(int n) { return n > 0 ? n : 1; }
template <class Cell>
constexpr int states_length = at_least_one(own_states<Cell>);
template <class Cell>
constexpr int given_length = at_least_one(unit_weights<Cell> + step_inputs<Cell>);

template <class Cell>
constexpr bool slots_cover() {
  bool seen[Cell::slots] = {};
  for (int g = 0; g < Cell::gates; ++g) {
    const int x = Cell::x_slot[g], h = Cell::h_slot[g];
    if (x < 0 || x >= Cell::slots || h < 0 || h >= Cell::slots) return false;
    for (int before = 0; before < g; ++before) {
      if (x == Cell::x_slot[before] || h == Cell::h_slot[before]) return false;
    }
    seen[x] = seen[h] = true;
  }
  for (bool slot : seen) {
    if (!slot) return false;
  }
  return true;
}

// Asserted for every registered cell (cell_info.h).
template <class Cell>
constexpr bool keeps_the_contract() {
  static_assert(Cell::gates >= 1 && Cell::gates <= max_gates, "a cell has 1 to 8 gates");
  static_assert(Cell::slots >= Cell::gates && Cell::slots <= 2 * Cell::gates,
                "one or two slots for a gate");
  static_assert(slots_cover<Cell>(), "slot lists leave no slot unused and name none twice");
  static_assert(!Cell::projects || (Cell::has_c && Cell::keeps_slots),
                "output() computes h from c and the slots");
  static_assert(sizeof(Cell) == 1, "a cell has no data of its own");
  return true;
}

}  // namespace fastrnn
