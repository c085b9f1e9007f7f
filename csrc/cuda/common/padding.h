// Zeros beyond each sequence's end.
#pragma once

#include <cstdint>

#include "cuda/platform/device.h"

namespace fastrnn::cuda {

// x [T, B, row_bytes], dense, in device memory; lengths [B].
void zero_padding(void* x, const int64_t* lengths, int64_t T, int64_t B, int64_t row_bytes,
                  cudaStream_t stream);

}  // namespace fastrnn::cuda
