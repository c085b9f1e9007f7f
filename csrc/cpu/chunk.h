// Chunks of a sequence: some steps of some sequences of the batch, whose rows are numbered in the order of
// computation, step by step.
#pragma once

#include <algorithm>

#include "layer/range.h"
#include "layer/sequence.h"

namespace fastrnn {

// Sequences present at step t.
inline Range present(const Sequence& q, Range batch, int64_t t) {
  return {batch.begin, std::clamp(q.batch(t), batch.begin, batch.end)};
}

// Of the k-th to be computed up to another.
inline int64_t rows_of(const Sequence& q, Range batch, Range steps) {
  if (!q.first) return steps.size() * batch.size();
  int64_t rows = 0;
  for (int64_t k : each(steps)) rows += present(q, batch, q.step(k)).size();
  return rows;
}

// First row in the chunk of step k.
inline int64_t row_in_chunk(const Sequence& q, Range batch, Range steps, int64_t k) {
  if (!q.first || batch.size() < q.B) return rows_of(q, batch, {steps.begin, k});
  const int64_t t0 = q.step(steps.begin), t = q.step(k);
  return q.reverse ? q.first[t0 + 1] - q.first[t + 1] : q.first[t] - q.first[t0];
}

// The steps from k0 whose rows fit into a chunk of so many; at least one.
inline Range chunk_from(const Sequence& q, Range batch, int64_t k0, int64_t most_rows) {
  int64_t k = k0, rows = 0;
  do {
    rows += present(q, batch, q.step(k++)).size();
  } while (k < q.T && k - k0 < most_rows && rows + present(q, batch, q.step(k)).size() <= most_rows);
  return {k0, k};
}

// The same of the steps before k1, which a backward pass goes through from the last.
inline Range chunk_before(const Sequence& q, Range batch, int64_t k1, int64_t most_rows) {
  int64_t k = k1, rows = 0;
  do {
    rows += present(q, batch, q.step(--k)).size();
  } while (k > 0 && k1 - k < most_rows && rows + present(q, batch, q.step(k - 1)).size() <= most_rows);
  return {k, k1};
}

}  // namespace fastrnn
