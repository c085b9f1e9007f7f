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

void Team::begin_phase(int id, int64_t items) {
  ++threads_[id].phase;
  threads_[id].expected += items;
}

// The next item of owner's part, or -1 if all are taken. The owner need not have come to this phase yet: a
// counter of an earlier one stands for nothing claimed.
int64_t Team::claim(int id, int owner, int64_t items) {
  const Range part = part_of(items, owner, size_);
  const uint64_t phase = threads_[id].phase;
  std::atomic<uint64_t>& next = threads_[owner].next;
  uint64_t seen = next.load(std::memory_order_relaxed);
  for (;;) {
    if (seen >> 32 > phase) return -1;
    const int64_t claimed = seen >> 32 == phase ? static_cast<int64_t>(seen & 0xffffffffu) : 0;
    if (claimed >= part.size()) return -1;
    const uint64_t taken = phase << 32 | static_cast<uint64_t>(claimed + 1);
    if (next.compare_exchange_weak(seen, taken, std::memory_order_relaxed)) return part.begin + claimed;
  }
}

// Spins for about as long as a step takes, since a thread that sleeps wakes late; then gives its core
// away at every look, since on a busy machine the thread waited for may need this very core.
void Team::wait(int id) {
  constexpr int looks_before_yield = 1000;
  for (int looks = 0;; ++looks) {
    int64_t done = 0;
    for (const Thread& thread : threads_) done += thread.done.load(std::memory_order_acquire);
    if (done >= threads_[id].expected) return;
    if (looks < looks_before_yield) {
      pause();
    } else {
      sched_yield();
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
