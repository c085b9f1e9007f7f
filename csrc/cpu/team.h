// The threads of one call: started once for a whole sequence, meeting at barriers between steps.
//
// They are OpenMP's, which are torch's own, so that a call right after another operator finds them
// awake and there are never more threads than torch was told to use.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastrnn {

// Threads a call may use here and now: torch.get_num_threads(), but one inside another parallel region,
// or in a process forked after OpenMP started its threads, which such a process does not have.
int available_threads();

class Team {
 public:
  static constexpr int max_size = 256;

  explicit Team(int size) : size_(size) {}
  int size() const { return size_; }

  // Returns when every thread of the team has called it as often as this one has.
  void barrier(int id);

 private:
  struct alignas(64) Arrivals {
    std::atomic<uint32_t> count{0};
  };
  int size_;
  Arrivals arrivals_[max_size];
};

using TeamBody = void (*)(void* context, int id, Team& team);
void run_team(int threads, TeamBody body, void* context);

// Calls body(id, team) on `threads` threads, or fewer if there are fewer to be had: ask team.size().
template <class Body>
void run_team(int threads, Body& body) {
  run_team(
      threads,
      [](void* context, int id, Team& team) { (*static_cast<Body*>(context))(id, team); }, &body);
}

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
inline Range part_of(int64_t n, int id, int parts) {
  return {n * id / parts, n * (id + 1) / parts};
}

}  // namespace fastrnn
