// Chunks: some consecutive steps of some sequences, and those that end or begin anew in them. A chunk's
// rows are numbered in the order of computation, step by step.
#pragma once

#include <algorithm>

#include "layer/range.h"
#include "layer/sequence.h"

namespace fastrnn {

// Sequences of `batch` that are present at step t.
inline Range present(const Sequence& q, Range batch, int64_t t) {
  return {batch.begin, std::clamp(q.batch(t), batch.begin, batch.end)};
}

// Number of rows of the steps computed steps.begin-th to (steps.end - 1)-th.
inline int64_t rows_of(const Sequence& q, Range batch, Range steps) {
  if (!q.first) return steps.size() * batch.size();
  int64_t rows = 0;
  for (int64_t k : each(steps)) rows += present(q, batch, q.step(k)).size();
  return rows;
}

// First row of step k in the chunk.
inline int64_t row_in_chunk(const Sequence& q, Range batch, Range steps, int64_t k) {
  if (!q.first || batch.size() < q.B) return rows_of(q, batch, {steps.begin, k});
  const int64_t t0 = q.step(steps.begin), t = q.step(k);
  return q.reverse ? q.first[t0 + 1] - q.first[t + 1] : q.first[t] - q.first[t0];
}

// The steps from k0 on that have at most so many rows; at least one.
inline Range chunk_from(const Sequence& q, Range batch, int64_t k0, int64_t max_rows) {
  int64_t k = k0, rows = 0;
  do {
    rows += present(q, batch, q.step(k++)).size();
  } while (k < q.T && k - k0 < max_rows && rows + present(q, batch, q.step(k)).size() <= max_rows);
  return {k0, k};
}

// The steps before k1, backward from it, that have at most so many rows; at least one.
inline Range chunk_before(const Sequence& q, Range batch, int64_t k1, int64_t max_rows) {
  int64_t k = k1, rows = 0;
  do {
    rows += present(q, batch, q.step(--k)).size();
  } while (k > 0 && k1 - k < max_rows && rows + present(q, batch, q.step(k - 1)).size() <= max_rows);
  return {k, k1};
}

// Length of the shortest sequence of `batch`.
inline int64_t shortest(const Sequence& q, Range batch) {
  int64_t steps = q.T;
  if (q.lengths) {
    for (int64_t b : each(batch)) steps = std::min(steps, q.lengths[b]);
  }
  return steps;
}

// Calls body(b, anew) for the sequences of `batch`, none shorter than `shortest`, that are not active at
// step k, or that the next step resets (anew). q is a copy that body cannot write to, so that it stays in
// registers.
template <class Body>
void for_interrupted(const Sequence q, Range batch, int64_t shortest, int64_t k, Body body) {
  const int64_t t = q.step(k), next = q.step(k + 1);
  const bool resets = q.reset && k + 1 < q.T;
  if (t < shortest && !q.first) {
    uint8_t any = 0;
    if (resets) {
      for (int64_t b : each(batch)) any |= q.reset[next * q.B + b];
    }
    if (!any) return;
  }
  for (int64_t b : each(batch)) {
    const bool anew = resets && q.resets(next, b);
    if (anew || !q.active(t, b)) body(b, anew);
  }
}

}  // namespace fastrnn
