// Numbers as kernels read and write them: conversions, and several at once in one access.
#pragma once

#include "cells/math.h"
#include "cuda/platform/device.h"
#include "layer/number_types.h"

namespace fastrnn::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) {
  return bits_as<float>(static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ void narrow(float x, float& to) { to = x; }
__device__ __forceinline__ void narrow(double x, double& to) { to = x; }

#ifdef FASTRNN_EMULATED
inline float widen(Half x) { return bits_as<_Float16>(x.bits); }
inline void narrow(float x, Half& to) { to.bits = bits_as<uint16_t>(static_cast<_Float16>(x)); }
inline void narrow(float x, BFloat16& to) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t nearest_even = bits + 0x7fff + (bits >> 16 & 1);
  to.bits = x != x ? 0x7fff : static_cast<uint16_t>(nearest_even >> 16);
}
#else
__device__ __forceinline__ float widen(Half x) { return __half2float(bits_as<__half>(x)); }
__device__ __forceinline__ void narrow(float x, Half& to) {
  to.bits = bits_as<uint16_t>(__float2half_rn(x));
}
__device__ __forceinline__ void narrow(float x, BFloat16& to) {
  to.bits = bits_as<uint16_t>(__float2bfloat16_rn(x));
}
#endif

// N numbers that are read or written by accesses of up to 16 bytes; aligned to that.
template <class Storage, int N>
struct alignas(sizeof(Storage) * N < 16 ? sizeof(Storage) * N : 16) Pack {
  Storage value[N];
};

// Numbers a thread handles side by side where rows are aligned: 16 bytes of what it computes in.
template <class Storage>
constexpr int vector_width = 16 / sizeof(Compute<Storage>);

template <int N, class Storage>
__device__ __forceinline__ void load(const Storage* from, Compute<Storage> (&to)[N]) {
  const Pack<Storage, N> pack = *reinterpret_cast<const Pack<Storage, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(pack.value[i]);
}

template <int N, class Storage>
__device__ __forceinline__ void store(Storage* to, const Compute<Storage> (&from)[N]) {
  Pack<Storage, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) narrow(from[i], pack.value[i]);
  *reinterpret_cast<Pack<Storage, N>*>(to) = pack;
}

}  // namespace fastrnn::cuda
