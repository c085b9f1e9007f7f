// The list of cells, each with the name that ops, Python and tests know it by. A new cell is one header,
// one line here, one class in fastrnn/nn and one function in fastrnn/reference.py.
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
