#include "cuda/common/padding.h"

#include <algorithm>

#include "cuda/common/launch.cuh"

namespace fastrnn::cuda {
namespace {

struct Padding {
  unsigned char* x;        // [T, B, row_bytes]
  const int64_t* lengths;  // [B]
  int64_t T, B, row_bytes;
};

// A block for every so many rows.
__global__ void zero_rows(Padding p) {
  for (int64_t row = blockIdx.x; row < p.T * p.B; row += gridDim.x) {
    if (row / p.B < p.lengths[row % p.B]) continue;
    for (int64_t i = threadIdx.x; i < p.row_bytes; i += blockDim.x) p.x[row * p.row_bytes + i] = 0;
  }
}

}  // namespace

void zero_padding(void* x, const int64_t* lengths, int64_t T, int64_t B, int64_t row_bytes,
                  cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(T * B, 1024));
  launch("zero_padding", zero_rows, {dim3(blocks), dim3(128)}, stream,
         Padding{static_cast<unsigned char*>(x), lengths, T, B, row_bytes});
}

}  // namespace fastrnn::cuda
