// Which driver computes a layer: the first row of a measured table that the problem falls into.
#pragma once

#include <limits>

#include "step.h"

namespace fastrnn::cuda {

enum class Pass { forward, backward };

struct Problem {
  CellId cell;
  Type type;
  Pass pass;
  int64_t T, B, I, H, P;
  bool plain;  // Sequence::plain()
};

template <class Args>
Problem problem_of(const Args& a, Pass pass) {
  using Storage = std::remove_cvref_t<decltype(*a.weights.w_ih)>;
  return {a.cell,      type_of<Storage>, pass,        a.sequence.T,      a.sequence.B,
          a.weights.I, a.weights.H,      a.weights.P, a.sequence.plain()};
}

template <class Storage>
struct Driver {
  const char* name;
  int64_t (*forward_workspace)(const ForwardArgs<Storage>&);
  int64_t (*backward_workspace)(const BackwardArgs<Storage>&);
  void (*forward)(const ForwardArgs<Storage>&, void* workspace, Blas&, cudaStream_t);
  void (*backward)(const BackwardArgs<Storage>&, void* workspace, Blas&, cudaStream_t);
};

template <class Storage>
inline constexpr Driver<Storage> step_driver = {"step", step_forward_workspace<Storage>,
                                                step_backward_workspace<Storage>, step_forward<Storage>,
                                                step_backward<Storage>};

// The step driver serves every problem; rows of faster ones, each with the figures it was measured by,
// come before it.
template <class Storage>
const Driver<Storage>& choose_driver(const Problem&) {
  return step_driver<Storage>;
}

}  // namespace fastrnn::cuda
