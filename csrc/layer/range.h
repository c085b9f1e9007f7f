// Half-open ranges of integers, and how they are divided.
#pragma once

#include <cstdint>

namespace fastrnn {

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

// Part `index` of `parts` nearly equal parts of 0 .. n.
inline Range part_of(int64_t n, int64_t index, int64_t parts) {
  return {n * index / parts, n * (index + 1) / parts};
}

}  // namespace fastrnn
