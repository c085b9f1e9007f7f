// The block driver: the weights of a small layer's recurrence stay in the registers and shared memory of
// one block for every 8 sequences, and blocks exchange nothing (cluster_kernels.cuh). sm_80 and later;
// bfloat16, float16, and float32 where TF32 is allowed; no projection.
#pragma once

#include "cuda/blas.h"
#include "cuda/platform/device.h"
#include "layer/args.h"

namespace fastrnn::cuda {

// Whether the driver can compute a layer of H units on the current device.
template <class Storage>
bool block_serves(CellId cell, int64_t H);

template <class Storage>
int64_t block_forward_workspace(const ForwardArgs<Storage>& args);
template <class Storage>
int64_t block_backward_workspace(const BackwardArgs<Storage>& args);

template <class Storage>
void block_forward(const ForwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);
template <class Storage>
void block_backward(const BackwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream);

}  // namespace fastrnn::cuda
