// Which rows a step has, which of them are active, and which row holds the state before another.
#pragma once

#include <cstdint>

#include "cuda/platform/device.h"

namespace fastrnn::cuda {

// Rows of one step. A step that does not exist has batch = 0: no row of it is active.
struct StepRows {
  int64_t t, batch;        // the step, and how many rows it has
  const int64_t* lengths;  // [B] or null
  const uint8_t* reset;    // [batch] of this step's rows, or null

  __device__ bool active(int64_t b) const { return b < batch && (!lengths || t < lengths[b]); }
  __device__ bool resets(int64_t b) const { return reset && active(b) && reset[b]; }
};

// The sequence as kernels over all rows read it.
struct DeviceSequence {
  int64_t T, B;
  const int64_t* first;    // [T + 1] on the device, or null
  const int64_t* lengths;  // [B] or null
  const uint8_t* reset;    // [rows] or null
  bool reverse;

  // The state before a row: that of row `previous`, the initial one of sequence `b`, or zero.
  struct Before {
    int64_t b, previous;  // previous < 0: the initial state
    bool active, zero;
  };

  __device__ Before before(int64_t row) const {
    int64_t t = row / B;
    if (first) {  // the last t whose first row is not beyond this one
      int64_t low = 0, high = T;
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (first[middle] <= row ? low : high) = middle;
      }
      t = low;
    }
    const int64_t b = row - (first ? first[t] : t * B);
    const int64_t end = lengths && lengths[b] < T ? lengths[b] : T;
    const int64_t other = reverse ? t + 1 : t - 1;
    bool initial = other < 0 || other >= end;
    int64_t previous = -1;
    if (!initial && first) initial = b >= first[other + 1] - first[other];
    if (!initial) previous = (first ? first[other] : other * B) + b;
    return {b, previous, t < end, reset && reset[row]};
  }
};

}  // namespace fastrnn::cuda
