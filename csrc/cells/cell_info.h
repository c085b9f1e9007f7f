// Facts about the registered cells as plain numbers, for code that is compiled once for all cells.
#pragma once

#include "cells/registry.h"

namespace fastrnn {

enum class CellId : int {
#define FASTRNN_CELL_ID(name, type) name,
  FASTRNN_CELLS(FASTRNN_CELL_ID)
#undef FASTRNN_CELL_ID
      count
};

struct CellInfo {
  const char* name;
  int gates, slots;
  const int *x_slot, *h_slot;
  bool has_c, keeps_slots, projects;
};

inline const CellInfo& cell_info(CellId id) {
  static const CellInfo table[] = {
#define FASTRNN_CELL_INFO(name, type)                          \
  {#name,        type::gates, type::slots,       type::x_slot, \
   type::h_slot, type::has_c, type::keeps_slots, type::projects},
      FASTRNN_CELLS(FASTRNN_CELL_INFO)
#undef FASTRNN_CELL_INFO
  };
  return table[static_cast<int>(id)];
}

#define FASTRNN_CELL_CHECK(name, type) static_assert(keeps_the_contract<type>());
FASTRNN_CELLS(FASTRNN_CELL_CHECK)
#undef FASTRNN_CELL_CHECK

}  // namespace fastrnn
