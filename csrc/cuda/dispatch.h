// Which driver computes a layer: the first row of a table that the problem falls into.
#pragma once

#include <cstdlib>
#include <string_view>
#include <type_traits>

#include "block.h"
#include "cluster.h"
#include "grid.h"
#include "step.h"

namespace fastrnn::cuda {

enum class Pass { forward, backward };

struct Problem {
  CellId cell;
  Type type;
  Pass pass;
  int64_t T, B, I, H, P;
  bool projects;
  bool tf32;  // float32 may be rounded to TF32
};

template <class Args>
Problem problem_of(const Args& a, Pass pass, bool tf32) {
  using Storage = std::remove_cvref_t<decltype(*a.weights.w_ih)>;
  return {
      a.cell,      type_of<Storage>,          pass, a.sequence.T, a.sequence.B, a.weights.I, a.weights.H,
      a.weights.P, a.weights.w_hr != nullptr, tf32};
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
template <class Storage>
inline constexpr Driver<Storage> cluster_driver = {"cluster", cluster_forward_workspace<Storage>,
                                                   cluster_backward_workspace<Storage>,
                                                   cluster_forward<Storage>, cluster_backward<Storage>};
template <class Storage>
inline constexpr Driver<Storage> block_driver = {"block", block_forward_workspace<Storage>,
                                                 block_backward_workspace<Storage>, block_forward<Storage>,
                                                 block_backward<Storage>};
template <class Storage>
inline constexpr Driver<Storage> grid_driver = {"grid", grid_forward_workspace<Storage>,
                                                grid_backward_workspace<Storage>, grid_forward<Storage>,
                                                grid_backward<Storage>};

// A driver that has not been measured yet runs only where FASTRNN_CUDA_DRIVER names it.
inline bool asked_for(std::string_view driver) {
  const char* setting = std::getenv("FASTRNN_CUDA_DRIVER");
  return setting && driver == setting;
}

// The step driver serves every problem; rows of faster ones, each with the figures it was measured by,
// come before it.
template <class Storage>
const Driver<Storage>& choose_driver(const Problem& p) {
  if constexpr (!std::is_same_v<Storage, double>) {
    const bool rounds = p.type != Type::float32 || p.tf32;
    if (asked_for("cluster") && rounds && !p.projects && cluster_serves<Storage>(p.cell, p.H)) {
      return cluster_driver<Storage>;
    }
    const bool keeps_weights = rounds && !p.projects;
    if (keeps_weights && asked_for("block") && block_serves<Storage>(p.cell, p.H))
      return block_driver<Storage>;
    if (keeps_weights && asked_for("grid") && grid_serves<Storage>(p.cell, p.H))
      return grid_driver<Storage>;
  }
  return step_driver<Storage>;
}

}  // namespace fastrnn::cuda
