// Rows of h, or of a cell's output, as kernels that quantize read them: bytes, and a scale for each row.
//
// Quantizing takes whole rows, so that it can only begin when a step has ended. Each thread does so for
// itself: another phase of the team would take longer.
#pragma once

#include <vector>

#include "cpu/chunk.h"
#include "cpu/threads/partition.h"
#include "cpu/threads/workspace.h"

namespace fastrnn {

template <class Kernels>
class QuantizedRows {
 public:
  using Operand = typename Kernels::Operand;
  using Compute = typename Kernels::Compute;

  QuantizedRows(const Kernels& kernels, const Sequence& sequence) : k_(kernels), q_(sequence) {}

  // For rows of n numbers, `stride` apart before and after. Threads that share a slice need a copy each.
  void allocate(int64_t n, int64_t stride, const Partition& partition, Workspace& workspace) {
    n_ = n;
    stride_ = stride;
    const int copies = partition.by_batch ? 1 : partition.threads;
    Operand* rows = workspace.take<Operand>(copies * q_.B * stride);
    for (int i = 0; i < partition.threads; ++i) {
      of_workers_.push_back({rows + (partition.by_batch ? 0 : i) * q_.B * stride});
    }
  }

  // [B, stride] the rows of the sequences of `batch` present at step k, quantized once a step.
  const Operand* at_step(int64_t k, int64_t worker, Range batch, const Compute* from) {
    Rows& own = of_workers_[worker];
    if (own.step != k) {
      own.step = k;
      for (int64_t b : each(present(q_, batch, q_.step(k)))) {
        k_.quantize(n_, from + b * stride_, own.rows + b * stride_);
      }
    }
    return own.rows;
  }

 private:
  struct Rows {
    Operand* rows;      // [B, stride]
    int64_t step = -1;  // that they were made for
  };

  const Kernels& k_;
  const Sequence& q_;
  int64_t n_ = 0, stride_ = 0;
  std::vector<Rows> of_workers_;
};

}  // namespace fastrnn
