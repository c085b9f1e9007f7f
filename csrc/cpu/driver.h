// The time loops. One call computes one layer in one direction; see args.h. Kernels is an instance of the
// template of that name.
#pragma once

#include "cpu/kernels.h"

namespace fastrnn {

template <class Kernels>
void run_forward(const ForwardArgs<typename Kernels::Storage>& args, const Kernels& kernels);

template <class Kernels>
void run_backward(const BackwardArgs<typename Kernels::Storage>& args, const Kernels& kernels);

// Packs a layer's matrices, for any number of forward calls with the same kernels. Returns how many bytes
// that takes; with panels null, nothing else. Panels are aligned to 64 bytes.
template <class Kernels>
int64_t pack_weights(const CellInfo& cell, const Weights<typename Kernels::Storage>& weights,
                     const Kernels& kernels, char* panels);

}  // namespace fastrnn
