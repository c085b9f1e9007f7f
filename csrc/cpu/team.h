// The threads of one call: started once for a whole sequence, sharing the work of one step after another.
//
// They are OpenMP's, which are torch's own, so that a call right after another operator finds them
// awake and there are never more threads than torch was told to use.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace fastrnn {

// Threads a call may use here and now: torch.get_num_threads(), but one inside another parallel region,
// or in a process forked after OpenMP started its threads, which such a process does not have.
int available_threads();

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// for (int64_t i : each(range))
struct Each {
  struct Iterator {
    int64_t i;
    int64_t operator*() const { return i; }
    Iterator& operator++() { return ++i, *this; }
    bool operator!=(const Iterator& other) const { return i < other.i; }
  };
  Range range;
  Iterator begin() const { return {range.begin}; }
  Iterator end() const { return {range.end}; }
};
inline Each each(Range range) { return {range}; }

// The id-th of `parts` nearly equal parts of 0 .. n.
inline Range part_of(int64_t n, int id, int parts) { return {n * id / parts, n * (id + 1) / parts}; }

// Work is done in phases, each of some items; a thread begins with its own part of a phase's items, so
// that it finds its data in its own cache, and then takes what the others have not begun. A phase ends when
// all its items are done, whoever did them: a thread that lost its core delays the others by the one item
// in its hands, not by all that it was meant to do, and finds the phases it missed already done.
class Team {
 public:
  static constexpr int max_size = 256;

  explicit Team(int size) : size_(size), threads_(size > 1 ? size : 0) {}
  int size() const { return size_; }

  // Thread `id` does its share of a phase. Every thread calls this for the same phases in the same order.
  template <class Body>
  void phase(int id, int64_t items, Body body) {
    if (size_ == 1) {
      for (int64_t i = 0; i < items; ++i) body(i);
      return;
    }
    begin_phase(id, items);
    int64_t done = 0;
    for (int victim = 0; victim < size_; ++victim) {
      const int owner = (id + victim) % size_;
      for (int64_t i = claim(id, owner, items); i >= 0; i = claim(id, owner, items)) {
        body(i);
        ++done;
      }
    }
    // At once, since the others look at the count all the time, and every look takes it from this core.
    threads_[id].done.fetch_add(done);
    wait(id);
  }

 private:
  struct alignas(64) Thread {
    std::atomic<uint64_t> next{0};  // phase << 32 | items of this thread's part that are claimed
    alignas(64) std::atomic<int64_t> done{0};
    int64_t expected = 0;  // items of all phases begun, known to this thread only
    uint64_t phase = 0;
  };

  void begin_phase(int id, int64_t items);
  int64_t claim(int id, int owner, int64_t items);
  void wait(int id);

  bool is_done(int id) const;

  int size_;
  std::vector<Thread> threads_;
  // For threads that have waited long enough to sleep: a count of wake-ups, and how many sleep.
  alignas(64) std::atomic<uint32_t> wakes_{0};
  std::atomic<int> sleepers_{0};
};

using TeamBody = void (*)(void* context, int id, Team& team);
void run_team(int threads, TeamBody body, void* context);

// Calls body(id, team) on `threads` threads, or fewer if there are fewer to be had: ask team.size().
template <class Body>
void run_team(int threads, Body& body) {
  run_team(
      threads, [](void* context, int id, Team& team) { (*static_cast<Body*>(context))(id, team); }, &body);
}

}  // namespace fastrnn
