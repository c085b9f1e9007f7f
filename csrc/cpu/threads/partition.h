// How the work of one pass is divided among threads.
#pragma once

#include <cstdint>

namespace fastrnn {

// By sequences: each thread computes all steps of its own and never waits for others. Or by units: each
// thread reads its own part of the weights, and waits for the others at every step.
struct Partition {
  int threads;
  bool by_batch;

  int slices() const { return by_batch ? threads : 1; }
};

// weight_bytes: of the recurrent matrix. step_work, work: multiplications and additions of a step and of
// the whole call, in as many of float32 as take the same time.
Partition choose_partition(int64_t B, int64_t blocks, int64_t weight_bytes, double step_work, double work);

}  // namespace fastrnn
