// What kernels and drivers of every kind share: launches, and the bits of CUDA that differ under
// emulation.
#pragma once

#include <stdexcept>
#include <string>

#include "platform.h"

namespace fastrnn::cuda {

struct Shape {
  dim3 grid, block;
  int shared_bytes = 0;
  unsigned cluster = 1;      // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are on the device together, or the launch fails
};

#ifdef FASTRNN_EMULATED

inline unsigned char* shared_memory() {
  return reinterpret_cast<unsigned char*>(emulation::shared_memory());
}
inline void sync_block() { emulation::sync_block(); }

template <class Args>
void launch(const char* /*name*/, void (*kernel)(Args), const Shape& shape, cudaStream_t,
            const Args& args) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return;
  emulation::run(
      {shape.grid, shape.block, static_cast<size_t>(shape.shared_bytes), shape.cluster, shape.cooperative},
      [&] { kernel(args); });
}

inline void copy_async(void* to, const void* from, int64_t bytes, cudaStream_t) { memcpy(to, from, bytes); }

#else

__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}
__device__ __forceinline__ void sync_block() { __syncthreads(); }

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fastrnn: ") + what + ": " + cudaGetErrorString(error));
}

template <class Args>
void launch(const char* name, void (*kernel)(Args), const Shape& shape, cudaStream_t stream,
            const Args& args) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {shape.cluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = shape.cooperative;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = shape.cluster > 1 ? attributes : attributes + 1;
  config.numAttrs = (shape.cluster > 1) + shape.cooperative;
  check(cudaLaunchKernelEx(&config, kernel, args), name);
}

inline void copy_async(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy on the device");
}

#endif

}  // namespace fastrnn::cuda
