#include "team.h"

#include <ATen/Parallel.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <memory>

namespace fastrnn {
namespace {

std::atomic<bool> forked_after_use{false};
std::atomic<bool> used{false};

void watch_forks() {
  static const bool registered [[maybe_unused]] = [] {
    pthread_atfork(nullptr, nullptr, [] {
      if (used.load(std::memory_order_relaxed)) forked_after_use.store(true);
    });
    return true;
  }();
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int available_threads() {
  if (omp_in_parallel() || forked_after_use.load(std::memory_order_relaxed)) return 1;
  return std::min(at::get_num_threads(), Team::max_size);
}

// Spins for about as long as a step takes, since a thread that sleeps wakes late; then gives its core
// away at every look, since on a busy machine the thread waited for may need this very core.
void Team::barrier(int id) {
  constexpr int looks_before_yield = 2000;
  const uint32_t mine = arrivals_[id].count.load(std::memory_order_relaxed) + 1;
  arrivals_[id].count.store(mine, std::memory_order_release);
  for (int other = 0; other < size_; ++other) {
    int looks = 0;
    // The difference is compared, so that the count may wrap.
    while (static_cast<int32_t>(arrivals_[other].count.load(std::memory_order_acquire) - mine) < 0) {
      if (++looks < looks_before_yield) {
        pause();
      } else {
        sched_yield();
      }
    }
  }
}

void run_team(int threads, TeamBody body, void* context) {
  if (threads <= 1) {
    Team alone(1);
    body(context, 0, alone);
    return;
  }
  watch_forks();
  used.store(true, std::memory_order_relaxed);
  std::unique_ptr<Team> team;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team = std::make_unique<Team>(omp_get_num_threads());
    body(context, omp_get_thread_num(), *team);
  }
}

}  // namespace fastrnn
