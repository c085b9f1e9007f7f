// The ops' tensors, checked: what is the same for every backend.
//
// An argument that does not fit raises ValueError, so that a caller can tell it from a failure of the
// kernels.
#pragma once

#include <string_view>
#include <tuple>

#include "cells/cell_info.h"
#include "torch/stable/tensor.h"

namespace fastrnn {

// What an op keeps from forward for backward.
enum Keep : int64_t { keep_nothing = 0, keep_c = 1, keep_slots = 2 };

// Throws ValueError if there is no such cell.
CellId find_cell(std::string_view name);

// Adds a cell that was compiled by itself: the address of its PluginCell (cpu/plugin.h), which must stay.
// Throws ValueError if it was compiled with other headers, or there are too many. Adding a name again does
// nothing.
void load_cell(std::string_view name, int64_t address);

// One layer in one direction, with its input and initial state; contiguous where drivers need it. Borrows
// the op's arguments, and must not outlive them.
struct LayerTensors {
  CellId id;
  const CellInfo* cell;
  int64_t T, B, rows, I, H, P;
  Sizes leading;  // x's dimensions before the last: those of every per-step tensor
  Tensor x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr;  // undefined if absent
  Tensor unit_weights, step_inputs;
  Tensor batch_sizes, lengths, reset;

  Sizes sizes(int64_t last) const { return leading.with(last); }
  int64_t C() const { return cell->own_states * H; }  // numbers in the private states of a row

  // The layer's cell, sizes and weights, without its input, initial state and masks.
  LayerTensors with_same_weights() const;
};

// Everything but the weights, for a layer of H hidden units and P numbers in h.
LayerTensors check_inputs(std::string_view cell, const Tensor& x, const Tensor& h0,
                          const OptionalTensor& c0, const OptionalTensor& batch_sizes,
                          const OptionalTensor& lengths, const OptionalTensor& reset, int64_t H, int64_t P);

LayerTensors check_layer(std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                         const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                         const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset);

// [gates * H] or absent, both or none.
void check_biases(LayerTensors& layer, const OptionalTensor& b_ih, const OptionalTensor& b_hh);

// unit_weights [W * H] and step_inputs [.., E * H] of a cell that has them; else absent.
void check_given(LayerTensors& layer, const OptionalTensor& unit_weights,
                 const OptionalTensor& step_inputs);

// What forward returns; a tensor that the cell does not have, or that is not kept, has no elements.
struct ForwardResults {
  Tensor y, h_n, c_n, c, slots;
};
ForwardResults allocate_results(const LayerTensors& layer, int64_t keep);

// What backward receives besides the layer; undefined if absent.
struct BackwardInputs {
  Tensor dy, dh_n, dc_n, dc;
  Tensor y, c;
  Tensor slots;  // undefined if forward did not keep them, or the cell has no use for them
};
BackwardInputs check_backward(const LayerTensors& layer, const OptionalTensor& dy,
                              const OptionalTensor& dh_n, const OptionalTensor& dc_n,
                              const OptionalTensor& dc, const Tensor& y, const Tensor& c,
                              const Tensor& slots);

// What backward returns; a gradient that is not needed, or has no tensor, has no elements.
struct LayerGradients {
  Tensor dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr, d_unit_weights, d_step_inputs;
};
LayerGradients allocate_gradients(const LayerTensors& layer, bool needs_inputs, bool needs_weights);

using ForwardTuple = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using BackwardTuple =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
inline ForwardTuple as_tuple(ForwardResults r) {
  return {std::move(r.y), std::move(r.h_n), std::move(r.c_n), std::move(r.c), std::move(r.slots)};
}
inline BackwardTuple as_tuple(LayerGradients g) {
  return {std::move(g.dx),           std::move(g.dh0),   std::move(g.dc0),
          std::move(g.dw_ih),        std::move(g.dw_hh), std::move(g.db_ih),
          std::move(g.db_hh),        std::move(g.dw_hr), std::move(g.d_unit_weights),
          std::move(g.d_step_inputs)};
}

}  // namespace fastrnn
