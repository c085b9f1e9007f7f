// Sums over all rows of the sequence, in an order that depends on the sizes alone.
#pragma once

#include "cuda/common/elementwise.cuh"

namespace fastrnn::cuda {

// A block sums `sum_columns` columns: `sum_lines` threads each, then their sums.
constexpr int sum_columns = 32, sum_lines = 8;

template <class Storage>
struct SumRows {
  int64_t rows, columns, rows_a_part;
  const Storage* from;        // [rows, columns]
  Compute<Storage>* partial;  // [parts, columns]
};

template <class Storage>
__global__ void sum_rows(SumRows<Storage> a) {
  using Number = Compute<Storage>;
  Number* lines = reinterpret_cast<Number*>(shared_memory());  // [sum_lines][sum_columns]
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t column = int64_t{blockIdx.x} * sum_columns + x;
  const int64_t begin = int64_t{blockIdx.y} * a.rows_a_part;
  const int64_t end = begin + a.rows_a_part < a.rows ? begin + a.rows_a_part : a.rows;
  Number sum{};
  if (column < a.columns) {
    for (int64_t row = begin + y; row < end; row += sum_lines) {
      sum += widen(a.from[row * a.columns + column]);
    }
  }
  lines[y * sum_columns + x] = sum;
  sync_block();
  if (y != 0 || column >= a.columns) return;
  for (int line = 1; line < sum_lines; ++line) sum += lines[line * sum_columns + x];
  a.partial[blockIdx.y * a.columns + column] = sum;
}

template <class Storage>
struct BiasGradients {
  int64_t parts, H;
  const Compute<Storage>* partial;  // [parts, S * H] by Columns
  Storage *db_ih, *db_hh;           // [G * H] or null
};

template <class Cell, class Storage>
__global__ void bias_gradients(BiasGradients<Storage> a) {
  constexpr Columns<Cell> columns;
  for_each_unit<1>(Cell::gates, a.H, [&](int64_t gate, int64_t u) {
#pragma unroll
    for (int g = 0; g < Cell::gates; ++g) {
      if (g != gate) continue;
      const auto total = [&](int column) {
        Compute<Storage> sum{};
        for (int64_t part = 0; part < a.parts; ++part) {
          sum += a.partial[(part * Cell::slots + column) * a.H + u];
        }
        return sum;
      };
      if (a.db_ih) narrow(total(columns.of_slot[columns.x_slot[g]]), a.db_ih[g * a.H + u]);
      if (a.db_hh) narrow(total(columns.of_slot[columns.h_slot[g]]), a.db_hh[g * a.H + u]);
    }
  });
}

}  // namespace fastrnn::cuda
