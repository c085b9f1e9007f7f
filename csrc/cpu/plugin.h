// A cell that is compiled by itself (fastrnn/cells), as its shared object exports it: plain C, without
// torch.
#pragma once

#include <type_traits>

#include "cpu/kernels.h"

namespace fastrnn {

// Which of a plug-in's functions serve kernels of these types, as CellForward and CellBackward have them.
template <class Storage, class Operand>
constexpr int plugin_types() {
  if constexpr (std::is_same_v<Storage, double>) return 1;
  if constexpr (std::is_same_v<Storage, Half>) return 3;
  if constexpr (std::is_same_v<Storage, BFloat16>) return std::is_same_v<Operand, BFloat16> ? 4 : 2;
  if constexpr (std::is_same_v<Operand, BFloat16>) return 5;
  if constexpr (std::is_same_v<Operand, SplitFloat>) return 6;
  return 0;
}
constexpr int plugin_types_count = 7;

struct PluginCell {
  // Changes with this struct and with those that the functions take.
  static constexpr int current_layout = 1;

  int layout;
  int arguments_size;  // of CellForward and CellBackward together
  int gates, slots;
  const int *x_slot, *h_slot;
  int keeps_slots, own_states, unit_weights, step_inputs;
  const void* functions[2 * plugin_types_count];  // forward and backward of each plugin_types(), or null
};

constexpr int plugin_arguments_size =
    sizeof(CellForward<float, float, float>) + sizeof(CellBackward<float, float, float>);

template <class Function, class Kernels>
Function loaded_function(const CellInfo& info, bool backward) {
  constexpr int types = plugin_types<typename Kernels::Storage, typename Kernels::CellOperand>();
  return reinterpret_cast<Function>(const_cast<void*>(info.functions[2 * types + backward]));
}

// The kernels of a cell, one of the tables' own or a loaded one.
template <class Kernels>
auto forward_of(const Kernels& kernels, CellId id) {
  using Function = std::remove_cvref_t<decltype(kernels.forward[0])>;
  if (id < CellId::count) return kernels.forward[static_cast<int>(id)];
  return loaded_function<Function, Kernels>(cell_info(id), false);
}
template <class Kernels>
auto backward_of(const Kernels& kernels, CellId id) {
  using Function = std::remove_cvref_t<decltype(kernels.backward[0])>;
  if (id < CellId::count) return kernels.backward[static_cast<int>(id)];
  return loaded_function<Function, Kernels>(cell_info(id), true);
}

}  // namespace fastrnn
