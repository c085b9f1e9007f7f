// How the work of one pass is divided among threads.
#pragma once

#include <cstdint>

#include "cpu/threads/thread_team.h"

namespace fastrnn {

// By sequences: the batch is cut into slices, and each thread computes the steps of its own without waiting
// for others. Or by units: there is one slice, each thread reads its own part of the weights, and waits for
// the others at every step.
struct Partition {
  int threads;
  bool by_batch;

  int slices() const { return by_batch ? threads : 1; }
};

// weight_bytes: of the recurrent matrix. step_work, work: multiplications and additions of a step and of
// the whole call, in as many of float32 as take the same time.
Partition choose_partition(int64_t B, int64_t blocks, int64_t weight_bytes, double step_work, double work);

// Calls run(slice, for_items) for every slice, on thread `id` of the team. for_items(n, body) calls body(0)
// .. body(n - 1): all of them on this thread if it has the slice alone, otherwise its share.
template <class Run>
void run_slices(ThreadTeam& team, int id, const Partition& partition, Run run) {
  if (partition.by_batch) {
    team.phase(id, partition.slices(), [&](int64_t slice) {
      run(slice, [](int64_t n, auto body) {
        for (int64_t i = 0; i < n; ++i) body(i);
      });
    });
  } else {
    run(0, [&](int64_t n, auto body) { team.phase(id, n, body); });
  }
}

}  // namespace fastrnn
