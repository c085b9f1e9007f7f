// The cells there are, each with the name that ops, Python and tests know it by. A new cell is one
// header, one line here, one class in fastrnn/nn and one function in fastrnn/reference.py.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

//      name in Python, type
#define FASTRNN_CELLS(X) \
  X(lstm, Lstm)          \
  X(gru, Gru)            \
  X(rnn_tanh, RnnTanh)   \
  X(rnn_relu, RnnRelu)

namespace fastrnn {

enum class CellId : int {
#define FASTRNN_CELL_ID(name, type) name,
  FASTRNN_CELLS(FASTRNN_CELL_ID)
#undef FASTRNN_CELL_ID
      count
};

// A cell's facts as plain numbers, for code that is compiled once for all cells.
struct CellInfo {
  const char* name;
  int gates, slots;
  const int *x_slot, *h_slot;
  bool has_c, keeps_slots;
};

inline const CellInfo& cell_info(CellId id) {
  static const CellInfo table[] = {
#define FASTRNN_CELL_INFO(name, type) \
  {#name, type::gates, type::slots, type::x_slot, type::h_slot, type::has_c, type::keeps_slots},
      FASTRNN_CELLS(FASTRNN_CELL_INFO)
#undef FASTRNN_CELL_INFO
  };
  return table[static_cast<int>(id)];
}

#define FASTRNN_CELL_CHECK(name, type) static_assert(keeps_the_contract<type>());
FASTRNN_CELLS(FASTRNN_CELL_CHECK)
#undef FASTRNN_CELL_CHECK

}  // namespace fastrnn
