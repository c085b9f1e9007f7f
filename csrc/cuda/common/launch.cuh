// What kernels and drivers of every kind share: launches, and the bits of CUDA that differ under
// emulation.
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/platform/device.h"

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

inline void zero_async(void* at, int64_t bytes, cudaStream_t) { memset(at, 0, bytes); }

inline int multiprocessors() { return emulation::options().multiprocessors; }
inline int most_shared_bytes() { return emulation::options().shared_bytes; }
// With other sizes it is another device.
inline int current_device() { return multiprocessors() << 20 | most_shared_bytes(); }

template <class Kernel>
bool can_launch(Kernel, int shared_bytes, int /*threads*/, int /*cluster*/) {
  return shared_bytes <= most_shared_bytes();
}

template <class Kernel>
int blocks_together(Kernel, int shared_bytes, int /*threads*/) {
  return shared_bytes <= most_shared_bytes() ? multiprocessors() : 0;
}

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

// Lets a kernel have more shared memory or larger clusters than every device offers.
template <class Kernel>
cudaError_t allow(Kernel kernel, int shared_bytes, unsigned cluster) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  if (error == cudaSuccess && cluster > 8) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  return error;
}

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "current device");
  return device;
}

inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, current_device()), "device attribute");
  return value;
}

inline int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
inline int most_shared_bytes() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// How many such blocks can be on the current device at once, in a cooperative launch. 0 also where the
// device is older than the kernels.
template <class Kernel>
int blocks_together(Kernel kernel, int shared_bytes, int threads) {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 8 || !attribute(cudaDevAttrCooperativeLaunch) ||
      shared_bytes > most_shared_bytes()) {
    return 0;
  }
  int blocks = 0;
  const bool known =
      allow(kernel, shared_bytes, 1) == cudaSuccess &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes) == cudaSuccess;
  if (!known) static_cast<void>(cudaGetLastError());  // an error here is an answer
  return known ? blocks * multiprocessors() : 0;
}

// Whether the current device can run one cluster of such blocks: it may be too old, or its
// multiprocessors divided among instances.
template <class Kernel>
bool can_launch(Kernel kernel, int shared_bytes, int threads, int cluster) {
  if (cluster == 1) return blocks_together(kernel, shared_bytes, threads) > 0;
  int clusters = 0;
  if (!attribute(cudaDevAttrClusterLaunch) || shared_bytes > most_shared_bytes()) return false;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(cluster), 1, 1};
  config.blockDim = {static_cast<unsigned>(threads), 1, 1};
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  const bool can = allow(kernel, shared_bytes, cluster) == cudaSuccess &&
                   cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess &&
                   clusters > 0;
  if (!can) static_cast<void>(cudaGetLastError());  // an error here is an answer
  return can;
}

template <class Args>
void launch(const char* name, void (*kernel)(Args), const Shape& shape, cudaStream_t stream,
            const Args& args) {
  if (shape.grid.x == 0 || shape.grid.y == 0) return;
  check(allow(kernel, shape.shared_bytes, shape.cluster), name);
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

inline void zero_async(void* at, int64_t bytes, cudaStream_t stream) {
  check(cudaMemsetAsync(at, 0, bytes, stream), "zeros on the device");
}

inline void copy_async(void* to, const void* from, int64_t bytes, cudaStream_t stream) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy on the device");
}

#endif

}  // namespace fastrnn::cuda
