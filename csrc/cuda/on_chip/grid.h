// The grid driver: the weights of the recurrence stay on the chip, in the registers and shared memory of
// blocks on as many multiprocessors as it takes, which exchange h through the L2 cache (grid_kernels.cuh).
// sm_80 and later; bfloat16, float16, and float32 where TF32 is allowed; no projection.
//
// All blocks are on the device together: the host asks whether they can be, and launches them
// cooperatively. Should a block still wait for another for some seconds, the recurrence goes on with NaN
// and waits no more: what comes out is NaN, and not a hang.
#pragma once

#include "cuda/blas.h"
#include "cuda/platform/device.h"
#include "layer/args.h"

namespace fastrnn::cuda {

// Whether the driver can compute a layer of H units on the current device.
template <class Storage>
bool grid_serves(CellId cell, int64_t H);

template <class Storage>
int64_t grid_forward_workspace(const ForwardArgs<Storage>& args);
template <class Storage>
int64_t grid_backward_workspace(const BackwardArgs<Storage>& args);

template <class Storage>
void grid_forward(const ForwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);
template <class Storage>
void grid_backward(const BackwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);

}  // namespace fastrnn::cuda
