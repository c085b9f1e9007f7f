// Which driver computes a layer: the one that FASTRNN_CUDA_DRIVER names; or the one that was measured to
// be faster than the step driver (measured.h); or the step driver, which serves every problem.
#pragma once

#include <array>
#include <cstdlib>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "cuda/measured.h"
#include "cuda/on_chip/block.h"
#include "cuda/on_chip/cluster.h"
#include "cuda/on_chip/grid.h"
#include "cuda/problem.h"
#include "cuda/step/step.h"

namespace fastrnn::cuda {

template <class Storage>
struct Driver {
  const char* name;
  bool (*serves)(const Problem&);  // on the current device
  int64_t (*forward_workspace)(const ForwardArgs<Storage>&);
  int64_t (*backward_workspace)(const BackwardArgs<Storage>&);
  void (*forward)(const ForwardArgs<Storage>&, void* workspace, Blas&, cudaStream_t);
  void (*backward)(const BackwardArgs<Storage>&, void* workspace, Blas&, cudaStream_t);
};

template <class Storage>
inline constexpr Driver<Storage> step_driver = {"step",
                                                [](const Problem&) { return true; },
                                                step_forward_workspace<Storage>,
                                                step_backward_workspace<Storage>,
                                                step_forward<Storage>,
                                                step_backward<Storage>};
template <class Storage>
inline constexpr Driver<Storage> block_driver = {
    "block",
    [](const Problem& p) { return p.rounds() && !p.projects && block_serves<Storage>(p.cell, p.H); },
    block_forward_workspace<Storage>,
    block_backward_workspace<Storage>,
    block_forward<Storage>,
    block_backward<Storage>};
template <class Storage>
inline constexpr Driver<Storage> cluster_driver = {
    "cluster",
    [](const Problem& p) { return p.rounds() && !p.projects && cluster_serves<Storage>(p.cell, p.H); },
    cluster_forward_workspace<Storage>,
    cluster_backward_workspace<Storage>,
    cluster_forward<Storage>,
    cluster_backward<Storage>};
template <class Storage>
inline constexpr Driver<Storage> grid_driver = {
    "grid",
    [](const Problem& p) { return p.rounds() && !p.projects && grid_serves<Storage>(p.cell, p.H); },
    grid_forward_workspace<Storage>,
    grid_backward_workspace<Storage>,
    grid_forward<Storage>,
    grid_backward<Storage>};

// All there are for a type. Only the step driver computes in float64.
template <class Storage>
constexpr auto drivers() {
  if constexpr (std::is_same_v<Storage, double>) {
    return std::array{&step_driver<Storage>};
  } else {
    return std::array{&step_driver<Storage>, &block_driver<Storage>, &cluster_driver<Storage>,
                      &grid_driver<Storage>};
  }
}

template <class Storage>
const Driver<Storage>* find_driver(std::string_view name) {
  for (const Driver<Storage>* driver : drivers<Storage>()) {
    if (name == driver->name) return driver;
  }
  return nullptr;
}

// What FASTRNN_CUDA_DRIVER names, or nothing.
inline std::string_view asked_driver() {
  const char* setting = std::getenv("FASTRNN_CUDA_DRIVER");
  if (!setting || !*setting) return {};
  if (!find_driver<float>(setting)) {
    std::string names;
    for (const auto* driver : drivers<float>())
      names += (names.empty() ? "" : ", ") + std::string(driver->name);
    throw std::runtime_error("fastrnn: FASTRNN_CUDA_DRIVER=" + std::string(setting) +
                             " names no driver; there are: " + names);
  }
  return setting;
}

template <class Storage>
struct Choice {
  const Driver<Storage>* driver;
  std::string_view asked;         // what FASTRNN_CUDA_DRIVER names, or nothing
  const Measured* row = nullptr;  // by which the driver was chosen, or null

  std::string reason() const {
    std::ostringstream text;
    if (asked == driver->name) {
      text << "FASTRNN_CUDA_DRIVER asks for it";
    } else if (!asked.empty()) {
      text << "FASTRNN_CUDA_DRIVER asks for " << asked << ", which does not serve this";
    } else if (row) {
      text << "measured at least " << row->ratio << " times as fast as step on sm_" << row->arch << " at H "
           << row->min_H << ".." << row->max_H << ", B " << row->min_B << ".." << row->max_B;
    } else {
      text << "no other was measured to be faster here";
    }
    return text.str();
  }
};

template <class Storage>
Choice<Storage> choose_driver(const Problem& p, std::span<const Measured> table = measured) {
  const std::string_view asked = asked_driver();
  if (!asked.empty()) {
    const Driver<Storage>* driver = find_driver<Storage>(asked);
    return {driver && driver->serves(p) ? driver : &step_driver<Storage>, asked};
  }
  if (const Measured* row = find_measured(table, p)) {
    const Driver<Storage>* driver = find_driver<Storage>(row->driver);
    if (driver && driver->serves(p)) return {driver, {}, row};
  }
  return {&step_driver<Storage>, {}};
}

}  // namespace fastrnn::cuda
