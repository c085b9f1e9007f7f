#include "cpu/threads/thread_team.h"

#include <algorithm>

#include "cpu/threads/system.h"
#include "cpu/threads/torch_threads.h"

namespace fastrnn {
namespace {

std::atomic<bool> forked_after_use{false};
std::atomic<bool> used{false};

void watch_forks() {
  static const bool registered [[maybe_unused]] = [] {
    call_after_fork([] {
      if (!used.load(std::memory_order_relaxed)) return;
      forked_after_use.store(true);
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
  if (forked_after_use.load(std::memory_order_relaxed) || in_parallel_region()) return 1;
  return std::min(torch_thread_count(), ThreadTeam::max_size);
}

void ThreadTeam::begin_phase(int id, int64_t items) {
  ++threads_[id].phase;
  threads_[id].expected += items;
}

// The next items of owner's part, none if all are taken: three quarters of those left, since a claim holds
// up the processor for as long as a small item takes, and the rest for others, should this thread be late.
// The owner need not have come to this phase yet: a counter of an earlier one stands for nothing claimed.
Range ThreadTeam::claim(int id, int owner, int64_t items) {
  const Range part = part_of(items, owner, size_);
  const uint64_t phase = threads_[id].phase;
  std::atomic<uint64_t>& next = threads_[owner].next;
  uint64_t seen = next.load(std::memory_order_relaxed);
  for (;;) {
    if (seen >> 32 > phase) return {0, 0};
    const int64_t claimed = seen >> 32 == phase ? static_cast<int64_t>(seen & 0xffffffffu) : 0;
    const int64_t left = part.size() - claimed;
    if (left <= 0) return {0, 0};
    const int64_t end = claimed + (3 * left + 3) / 4;
    const uint64_t taken = phase << 32 | static_cast<uint64_t>(end);
    if (next.compare_exchange_weak(seen, taken, std::memory_order_relaxed)) {
      return {part.begin + claimed, part.begin + end};
    }
  }
}

// Items of this phase that thread `id` has done. A store that nothing waits for: an addition, or a store in
// the order of all others, would stop here until the threads that look at the count have given it up.
void ThreadTeam::count(int id, int64_t items) {
  std::atomic<int64_t>& done = threads_[id].done;
  if (items > 0) done.store(done.load(std::memory_order_relaxed) + items, std::memory_order_release);
}

bool ThreadTeam::is_done(int id) const {
  int64_t done = 0;
  for (const Thread& thread : threads_) done += thread.done.load(std::memory_order_acquire);
  return done >= threads_[id].expected;
}

bool ThreadTeam::wait(int id, int looks) {
  for (; looks > 0; --looks) {
    if (is_done(id)) return true;
    pause();
  }
  return false;
}

// Spins for about as long as a step takes, since a thread that sleeps wakes late; then sleeps, since on a
// busy machine the thread waited for may need this very core. (To yield the core instead would give it to
// a neighbor for a whole time slice.)
void ThreadTeam::wait(int id) {
  constexpr int looks_before_sleep = 2000;
  while (!wait(id, looks_before_sleep)) {
    const uint32_t seen = wakes_.load();
    sleepers_.fetch_add(1);
    if (!is_done(id)) sleep_while(&wakes_, seen);
    sleepers_.fetch_sub(1);
  }
}

// A phase's last thread finds it done, and wakes those who sleep. It may miss one that lies down in the
// same instant, since its look at the sleepers may come before its count is seen; that one wakes by itself.
void ThreadTeam::wake_others() {
  if (sleepers_.load(std::memory_order_relaxed) == 0) return;
  wakes_.fetch_add(1);
  wake_all(&wakes_);
}

void run_thread_team(int threads, ThreadTeamBody body, void* context) {
  if (threads <= 1) {
    ThreadTeam alone(1);
    body(context, 0, alone);
    return;
  }
  watch_forks();
  used.store(true, std::memory_order_relaxed);
  // Should there be fewer threads than asked for, those that come do the others' parts.
  ThreadTeam team(threads);
  parallel_for(threads, [&](Range ids) {
    for (int64_t id : each(ids)) body(context, static_cast<int>(id), team);
  });
}

}  // namespace fastrnn
