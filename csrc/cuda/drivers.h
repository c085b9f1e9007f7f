// The CUDA drivers. A driver computes the forward and backward of a layer. To add one, define it in a .cu
// with driver_of() (pass.cuh), and declare and list it here.
#pragma once

#include <array>
#include <type_traits>

#include "cuda/blas.h"
#include "cuda/platform/device.h"
#include "cuda/problem.h"
#include "layer/args.h"

namespace fastrnn::cuda {

template <class Storage>
struct Driver {
  const char* name;
  bool (*serves)(const Problem&);  // on the current device
  // Bytes of device memory, aligned to 256, that forward and backward need as `workspace`.
  int64_t (*forward_workspace)(const ForwardArgs<Storage>&);
  int64_t (*backward_workspace)(const BackwardArgs<Storage>&);
  void (*forward)(const ForwardArgs<Storage>&, void* workspace, Blas&, cudaStream_t);
  void (*backward)(const BackwardArgs<Storage>&, void* workspace, Blas&, cudaStream_t);
};

template <class Storage>
struct Drivers {
  // One matrix product and one fused kernel a step. Serves every cell, size, type and GPU.
  static const Driver<Storage> step;

  // The on-chip drivers keep w_hh in registers and shared memory and compute many steps in one launch. They
  // multiply with tensor cores: bfloat16, float16, and float32 if TF32 is allowed. No projection.
  // Experimental: no GPU has run them.
  static const Driver<Storage> block;    // small H: a block computes 8 sequences; sm_80
  static const Driver<Storage> cluster;  // medium H: a cluster of up to 16 blocks does; sm_90
  static const Driver<Storage> grid;     // large H: all multiprocessors, through the L2 cache; sm_80

  // All for this type. Only the step driver computes in float64.
  static constexpr auto all() {
    if constexpr (std::is_same_v<Storage, double>) {
      return std::array{&step};
    } else {
      return std::array{&step, &block, &cluster, &grid};
    }
  }
};

}  // namespace fastrnn::cuda
