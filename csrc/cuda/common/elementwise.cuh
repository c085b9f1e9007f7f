// Kernels over the units of many rows: how they are spread over the grid, and what a thread does with the N
// units it reads at once.
#pragma once

#include "cuda/common/columns.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/numbers.cuh"

namespace fastrnn::cuda {

// Calls body(row, u) for every row and every N-th unit, spread over the grid.
template <int N, class Body>
__device__ __forceinline__ void for_each_unit(int64_t rows, int64_t units, Body body) {
  const int64_t u = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (u >= units) return;
  const int64_t stride = int64_t{gridDim.y} * blockDim.y;
  for (int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += stride) {
    body(row, u);
  }
}

constexpr int block_threads = 128;

// The launch shape that for_each_unit expects, for threads of `width` units each.
inline Shape spread(int64_t rows, int64_t units, int width) {
  const int64_t columns = (units + width - 1) / width;
  unsigned x = 1;
  while (x < columns && x < block_threads) x *= 2;
  const unsigned y = block_threads / x;
  const int64_t most_y = 65535;
  const int64_t blocks_y = (rows + y - 1) / y;
  return {{static_cast<unsigned>((columns + x - 1) / x),
           static_cast<unsigned>(blocks_y < most_y ? blocks_y : most_y), 1},
          {x, y, 1}};
}

template <int N, class Number>
__device__ __forceinline__ void fill(Number (&to)[N], Number value) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = value;
}

template <int N, class Storage>
__device__ __forceinline__ void add(const Storage* from, Compute<Storage> (&to)[N]) {
  Compute<Storage> more[N];
  load<N>(from, more);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] += more[i];
}

// Pre-activations of every slot at N units, from both products and both biases ([G * H] each).
template <int N, class Cell, class Storage>
__device__ __forceinline__ void pre_activations(const Compute<Storage>* input,
                                                const Compute<Storage>* recurrent, const Storage* b_ih,
                                                const Storage* b_hh, int64_t H, int64_t u,
                                                Compute<Storage> (&s)[Cell::slots][N]) {
  constexpr Columns<Cell> columns;
#pragma unroll
  for (int i = 0; i < Cell::slots; ++i) fill(s[i], Compute<Storage>{});
#pragma unroll
  for (int g = 0; g < Cell::gates; ++g) {
    add(input + g * H + u, s[columns.x_slot[g]]);
    if (b_ih) add(b_ih + g * H + u, s[columns.x_slot[g]]);
    add(recurrent + g * H + u, s[columns.h_slot[g]]);
    if (b_hh) add(b_hh + g * H + u, s[columns.h_slot[g]]);
  }
}

}  // namespace fastrnn::cuda
