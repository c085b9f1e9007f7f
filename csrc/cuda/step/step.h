// The step driver: a matrix product and one fused kernel a step. Every cell, size, type and GPU.
//
// The input's product is done for many steps at once, a chunk whose pre-activations stay in the L2
// cache; h and c are kept in the type that is computed in; all of backward that is not recurrent (dx,
// dw, db) is whole-sequence products and reductions of a fixed order. No copy to the host, no wait:
// a call can be captured in a CUDA graph.
#pragma once

#include "cuda/blas.h"
#include "cuda/platform/device.h"
#include "layer/args.h"

namespace fastrnn::cuda {

// Bytes of device memory, aligned to 256, that the calls below want as `workspace`.
template <class Storage>
int64_t step_forward_workspace(const ForwardArgs<Storage>& args);
template <class Storage>
int64_t step_backward_workspace(const BackwardArgs<Storage>& args);

template <class Storage>
void step_forward(const ForwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);
template <class Storage>
void step_backward(const BackwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);

}  // namespace fastrnn::cuda
