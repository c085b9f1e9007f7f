// The threads of one call: started once for a whole sequence, sharing the work of one step after another.
//
// They are OpenMP's, which are torch's own, so that a call right after another operator finds them
// awake and there are never more threads than torch was told to use.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "layer/range.h"

namespace fastrnn {

// Threads a call may use here and now: torch.get_num_threads(), but one inside another parallel region,
// or in a process forked after OpenMP started its threads, which such a process does not have.
int available_threads();

// Work is done in phases, each of some items; a thread does its own part of a phase's items, so that it
// finds its data in its own cache, then waits a little for the others, and then takes what they have not
// begun. A phase ends when all its items are done, whoever did them: a thread that lost its core delays the
// others by the items in its hands, not by all that it was meant to do, and finds the phases it missed
// already done.
//
// Where cores are far apart a cache line takes some 0.3 us from one to the other, and a phase of a small
// layer not much longer. So threads touch each other's lines but once a phase, to see that it is done.
class ThreadTeam {
 public:
  static constexpr int max_size = 256;

  explicit ThreadTeam(int size) : size_(size), threads_(size > 1 ? size : 0) {}

  // Thread `id` does its share of a phase. Every thread calls this for the same phases in the same order.
  template <class Body>
  void phase(int id, int64_t items, Body body) {
    if (size_ == 1) {
      for (int64_t i = 0; i < items; ++i) body(i);
      return;
    }
    begin_phase(id, items);
    do_part(id, id, items, body);
    if (!wait(id, looks_before_help)) {
      for (int other = 1; other < size_; ++other) do_part(id, (id + other) % size_, items, body);
      wait(id);
    }
    wake_others();
  }

 private:
  static constexpr int looks_before_help = 30;

  // Two cache lines: one of the thread's own, which others touch to help it, and one they all look at.
  struct alignas(64) Thread {
    std::atomic<uint64_t> next{0};  // phase << 32 | items of this thread's part that are claimed
    int64_t expected = 0;           // items of all phases begun, known to this thread only
    uint64_t phase = 0;
    alignas(64) std::atomic<int64_t> done{0};
  };

  template <class Body>
  void do_part(int id, int owner, int64_t items, Body& body) {
    int64_t done = 0;
    for (Range own = claim(id, owner, items); own.size() > 0; own = claim(id, owner, items)) {
      for (int64_t i : each(own)) body(i);
      done += own.size();
    }
    count(id, done);
  }

  void begin_phase(int id, int64_t items);
  Range claim(int id, int owner, int64_t items);
  void count(int id, int64_t items);
  bool is_done(int id) const;
  bool wait(int id, int looks);
  void wait(int id);
  void wake_others();

  int size_;
  std::vector<Thread> threads_;
  // For threads that have waited long enough to sleep: a count of wake-ups, and how many sleep.
  alignas(64) std::atomic<uint32_t> wakes_{0};
  std::atomic<int> sleepers_{0};
};

using ThreadTeamBody = void (*)(void* context, int id, ThreadTeam& team);
void run_thread_team(int threads, ThreadTeamBody body, void* context);

// Calls body(id, team) on `threads` threads, or on those of them that are to be had, which do the others'
// parts.
template <class Body>
void run_thread_team(int threads, Body& body) {
  run_thread_team(
      threads, [](void* context, int id, ThreadTeam& team) { (*static_cast<Body*>(context))(id, team); },
      &body);
}

}  // namespace fastrnn
