// torch's own threads, so that there are never more than torch was told to use, and those of the operator
// before find work at once.
#pragma once

#include <cstdint>

#include "layer/range.h"

namespace fastrnn {

int torch_thread_count();

// Whether this is a thread of a parallel region already, in which another would have one thread only.
bool in_parallel_region();

using RangeBody = void (*)(int64_t begin, int64_t end, void* context);

// Calls body(begin, end) over parts of 0 .. n, at once as far as there are threads.
void run_on_torch_threads(int64_t n, RangeBody body, void* context);

// Calls body(range).
template <class Body>
void parallel_for(int64_t n, Body body) {
  run_on_torch_threads(
      n,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(Range{begin, end}); },
      &body);
}

}  // namespace fastrnn
