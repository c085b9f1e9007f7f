// The list of cells, each with the name that ops, Python and tests know it by. A new cell is one header,
// one line here, one class in fastrnn/nn and one function in fastrnn/reference.py.
#pragma once

#include "cells/generated/coupled_lstm.h"
#include "cells/generated/ligru.h"
#include "cells/generated/peephole_lstm.h"
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

//      name in Python, type
#define FASTRNN_CELLS(X) \
  X(lstm, Lstm)          \
  X(gru, Gru)            \
  X(rnn_tanh, RnnTanh)   \
  X(rnn_relu, RnnRelu)

// Cells declared in fastrnn/nn/variants.py, with kernels for CPUs. `python -m fastrnn.cells.headers` writes
// their headers.
#define FASTRNN_GENERATED_CELLS(X) \
  X(peephole_lstm, PeepholeLstm)   \
  X(coupled_lstm, CoupledLstm)     \
  X(ligru, Ligru)
