// Facts about the registered cells as plain numbers, for code that is compiled once for all cells.
#pragma once

#include "cells/registry.h"

namespace fastrnn {

enum class CellId : int {
#define FASTRNN_CELL_ID(name, type) name,
  FASTRNN_CELLS(FASTRNN_CELL_ID) FASTRNN_GENERATED_CELLS(FASTRNN_CELL_ID)
#undef FASTRNN_CELL_ID
      count
};

#define FASTRNN_COUNT_CELL(name, type) +1
constexpr int written_cells = 0 FASTRNN_CELLS(FASTRNN_COUNT_CELL);  // those before the generated ones
#undef FASTRNN_COUNT_CELL

struct CellInfo {
  const char* name;
  int gates, slots;
  const int *x_slot, *h_slot;
  bool has_c, keeps_slots, projects;
  int own_states, unit_weights, step_inputs;
  const void* const* functions;  // of a cell that was loaded (cpu/plugin.h), else null
};

// Cells loaded since, whose ids follow CellId::count. Written by torch/arguments.cpp alone.
constexpr int max_loaded_cells = 1024;
inline const CellInfo* loaded_cells[max_loaded_cells];

inline const CellInfo& cell_info(CellId id) {
  if (id >= CellId::count) return *loaded_cells[static_cast<int>(id) - static_cast<int>(CellId::count)];
  static const CellInfo table[] = {
#define FASTRNN_CELL_INFO(name, type) \
  {#name,                             \
   type::gates,                       \
   type::slots,                       \
   type::x_slot,                      \
   type::h_slot,                      \
   type::has_c,                       \
   type::keeps_slots,                 \
   type::projects,                    \
   own_states<type>,                  \
   unit_weights<type>,                \
   step_inputs<type>,                 \
   nullptr},
      FASTRNN_CELLS(FASTRNN_CELL_INFO) FASTRNN_GENERATED_CELLS(FASTRNN_CELL_INFO)
#undef FASTRNN_CELL_INFO
  };
  return table[static_cast<int>(id)];
}

#define FASTRNN_CELL_CHECK(name, type) static_assert(keeps_the_contract<type>());
FASTRNN_CELLS(FASTRNN_CELL_CHECK)
FASTRNN_GENERATED_CELLS(FASTRNN_CELL_CHECK)
#undef FASTRNN_CELL_CHECK

}  // namespace fastrnn
