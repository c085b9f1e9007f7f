// The cluster driver: the weights of the recurrence stay on the chip, in the registers and shared memory
// of one cluster of blocks for every 8 sequences (cluster_kernels.cuh). sm_90; bfloat16, float16, and
// float32 where TF32 is allowed; no projection.
#pragma once

#include "cuda/blas.h"
#include "cuda/platform/device.h"
#include "layer/args.h"

namespace fastrnn::cuda {

// Whether the driver can compute a layer of H units on the current device.
template <class Storage>
bool cluster_serves(CellId cell, int64_t H);

template <class Storage>
int64_t cluster_forward_workspace(const ForwardArgs<Storage>& args);
template <class Storage>
int64_t cluster_backward_workspace(const BackwardArgs<Storage>& args);

template <class Storage>
void cluster_forward(const ForwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);
template <class Storage>
void cluster_backward(const BackwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);

}  // namespace fastrnn::cuda
