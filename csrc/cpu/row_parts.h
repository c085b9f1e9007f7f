// How each row of the batch takes part in each step of backward: whether its sequence is active there, and
// from where it and later steps are reached.
#pragma once

#include <algorithm>

#include "cpu/threads/workspace.h"
#include "layer/sequence.h"

namespace fastrnn {

// Where the state before a step is found.
enum class Source : uint8_t { sequence, initial, zero };

struct RowPart {
  bool has_product;  // the row was active at the later step, which did not reset it
  bool active;
  Source previous;
  bool operator==(const RowPart&) const = default;
};

class RowParts {
 public:
  // Found once: every tile of a step, and the products over a chunk, ask for the part of each row.
  RowParts(const Sequence& sequence, Workspace& workspace) : q_(sequence) {
    if (q_.plain()) return;
    parts_ = workspace.take<RowPart>(q_.T * q_.B);
    for (int64_t k = 0; k < q_.T; ++k) {
      for (int64_t b = 0; b < q_.B; ++b) parts_[k * q_.B + b] = find(k, b);
    }
  }

  RowPart at(int64_t k, int64_t b) const { return parts_ ? parts_[k * q_.B + b] : find(k, b); }

  bool has_product(int64_t k, int64_t b) const {
    return k + 1 < q_.T && q_.active(q_.step(k + 1), b) && !q_.resets(q_.step(k + 1), b);
  }

  // Calls body(first row, count, part) for runs of rows that take part in the same way.
  template <class Body>
  void for_runs(int64_t k, int64_t b, int count, Body body) const {
    if (q_.plain()) return body(b, count, at(k, b));
    for (int64_t end = b + count; b < end;) {
      const RowPart part = at(k, b);
      int64_t next = b + 1;
      while (next < end && at(k, next) == part) ++next;
      body(b, static_cast<int>(next - b), part);
      b = next;
    }
  }

 private:
  RowPart find(int64_t k, int64_t b) const {
    const int64_t t = q_.step(k);
    RowPart part;
    part.active = q_.active(t, b);
    part.has_product = has_product(k, b);
    part.previous = q_.resets(t, b)                         ? Source::zero
                    : k > 0 && q_.active(q_.step(k - 1), b) ? Source::sequence
                                                            : Source::initial;
    return part;
  }

  const Sequence& q_;
  RowPart* parts_ = nullptr;  // [T * B]; null if all take part in every step
};

}  // namespace fastrnn
