// Which sequence of a batch is active at which step, and where the rows of a step are in memory.
#pragma once

#include <cstdint>

namespace fastrnn {

// T steps of B sequences. Row (t, b) of every per-step tensor is row first_row(t) + b. A sequence that is
// not active at a step has output zero there (a packed batch has no such row) and keeps its state.
struct Sequence {
  int64_t T, B;
  int64_t rows;            // of every per-step tensor: T * B, or the sum of a packed batch's sizes
  const int64_t* first;    // [T + 1] first row of each step of a packed batch, or null
  const int64_t* lengths;  // [B] steps of each sequence, or null; never with `first`
  const uint8_t* reset;    // [rows] the state is zero before this step, or null
  bool reverse;            // the last step is computed first

  // The k-th step to be computed.
  int64_t step(int64_t k) const { return reverse ? T - 1 - k : k; }
  int64_t first_row(int64_t t) const { return first ? first[t] : t * B; }
  // Rows present at step t: sequences 0 .. batch(t) - 1.
  int64_t batch(int64_t t) const { return first ? first[t + 1] - first[t] : B; }
  bool active(int64_t t, int64_t b) const { return b < batch(t) && (!lengths || t < lengths[b]); }
  bool resets(int64_t t, int64_t b) const { return reset && active(t, b) && reset[first_row(t) + b]; }
  // Every sequence is active at every step and none is reset.
  bool plain() const { return !first && !lengths && !reset; }
};

}  // namespace fastrnn
