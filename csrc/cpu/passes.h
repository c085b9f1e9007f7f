// Forward and backward of one layer in one direction over a whole sequence. Kernels is an instance of the
// template of that name, with the kernels of one instruction set.
#pragma once

#include "cpu/kernels.h"

namespace fastrnn {

// panels: the layer's matrices packed by pack_weights() for the same kernels, or null. With them w_ih, w_hh
// and w_hr are not read.
template <class Kernels>
void run_forward(const ForwardArgs<typename Kernels::Storage>& args, const Kernels& kernels,
                 const void* panels);

// Factors of the products over the whole sequence that run_backward leaves to its caller.
template <class Storage>
struct ProductFactors {
  Storage* d_slots;  // [rows, S * H] gradient of every pre-activation; if null, run_backward itself writes
                     // dx, dw_ih, dw_hh, db_ih and db_hh (for kernels of one type). May be args.slots.
  Storage* dh;       // [rows, P] gradient of h; null without a projection
  Storage* output;   // [rows, H] h before the projection, or null
};

// Never writes dw_hr, which is dh' output.
template <class Kernels>
void run_backward(const BackwardArgs<typename Kernels::Storage>& args,
                  const ProductFactors<typename Kernels::Storage>& factors, const Kernels& kernels);

// Packs a layer's matrices for any number of forward passes with the same kernels. Returns the size of the
// panels in bytes; with panels null, does nothing else. Panels are aligned to 64 bytes.
template <class Kernels>
int64_t pack_weights(const CellInfo& cell, const Weights<typename Kernels::Storage>& weights,
                     const Kernels& kernels, char* panels);

// Whether h is projected. Sizes alone must tell where weights are packed.
template <class Storage>
bool projects(const Weights<Storage>& weights) {
  return weights.w_hr != nullptr || weights.P != weights.H;
}

}  // namespace fastrnn
