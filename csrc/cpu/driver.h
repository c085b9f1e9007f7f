// The time loops. One call computes one layer in one direction; see args.h.
#pragma once

#include "kernels.h"

namespace fastrnn {

template <class Storage, class Operand, class Compute>
void run_forward(const ForwardArgs<Storage>& args, const Kernels<Storage, Operand, Compute>& kernels);

template <class Storage, class Operand, class Compute>
void run_backward(const BackwardArgs<Storage>& args, const Kernels<Storage, Operand, Compute>& kernels);

}  // namespace fastrnn
