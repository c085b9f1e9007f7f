// What the forward and backward of every driver share: everything except the recurrence. Defined in
// pass.cu, where its kernels are compiled once for all drivers.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "cuda/blas.h"
#include "cuda/common/columns.h"
#include "cuda/common/elementwise.cuh"
#include "cuda/common/sequence.cuh"
#include "cuda/drivers.h"

namespace fastrnn::cuda {

// Hands out arrays one after another from one buffer. Without a buffer it measures how large one must be.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class Number>
  Number* take(int64_t n) {
    char* taken = base_ ? base_ + used_ : nullptr;
    used_ += (n * int64_t{sizeof(Number)} + 255) / 256 * 256;
    return reinterpret_cast<Number*>(taken);
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// What the forward and backward of a cell share.
template <class Cell, class Storage>
class PassBase {
 public:
  using Number = Compute<Storage>;
  static constexpr int G = Cell::gates, S = Cell::slots;
  static constexpr bool widens = !std::is_same_v<Storage, Number>;
  static constexpr Columns<Cell> columns{};
  static_assert(columns.h_in_order, "the recurrent product's columns are the gates in order");

  PassBase(const Sequence& sequence, const Weights<Storage>& weights, void* workspace, Blas* blas,
           cudaStream_t stream);

  int64_t workspace_bytes() const { return arena_.used(); }

 protected:
  bool projects() const { return w_.w_hr != nullptr; }

  // The step that is computed k-th, as kernels read it; no rows if k is out of range.
  StepRows rows_of(int64_t k) const {
    if (k < 0 || k >= T_) return {0, 0, nullptr, nullptr};
    const int64_t t = q_.step(k);
    return {t, q_.batch(t), q_.lengths, q_.reset ? q_.reset + q_.first_row(t) : nullptr};
  }
  int64_t first_row(int64_t k) const { return q_.first_row(q_.step(k)); }

  // Steps whose pre-activations make a chunk.
  int64_t chunk_steps() const;
  // First row and number of rows of the steps [k0, k1) in the order of computation.
  struct Chunk {
    int64_t first, rows;
  };
  Chunk chunk(int64_t k0, int64_t k1) const;

  // c[m, n] (+)= a[m, k] b[k, n], stored in the type of c.
  template <class Out>
  void multiply(int64_t m, int64_t n, int64_t k, const Storage* a, int64_t a_row, bool a_transposed,
                const Storage* b, int64_t b_row, bool b_transposed, Out* c, int64_t c_row,
                bool accumulate = false) {
    if (m == 0 || n == 0) return;
    blas_->multiply({m, n, k, type_of<Storage>, type_of<Out>, a, a_row, a_transposed, b, b_row,
                     b_transposed, c, c_row, accumulate});
  }

  // Launches a kernel over rows of `units` numbers: `wide` if they are aligned, else `narrow`.
  template <class Args>
  void spread_over(const char* name, void (*wide)(Args), void (*narrow)(Args), int64_t rows, int64_t units,
                   const Args& args) {
    constexpr int N = vector_width<Storage>;
    const bool is_wide = wide_ && units % N == 0;
    launch(name, is_wide ? wide : narrow, spread(rows, units, is_wide ? N : 1), stream_, args);
  }

  void get_state(int64_t width, const Storage* from, const StepRows& next, Number* state, Storage* operand);
  void put_state(int64_t width, const Number* state, const Number* acc, int64_t acc_rows,
                 const StepRows& after, Storage* to);

  // The input's part of the pre-activations, without biases: [rows, G * H].
  void multiply_input(const Storage* x, int64_t rows, Number* to);

  // The first row of every step of a packed batch, on the device, for kernels over all rows.
  void allocate_first_rows();
  void upload_first_rows();
  DeviceSequence device_sequence() const { return {T_, B_, first_, q_.lengths, q_.reset, q_.reverse}; }

  // Whether everything that kernels read in wide accesses is aligned to them.
  template <class... Pointers>
  void check_alignment(const Pointers*... pointers) {
    wide_ = ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
  }

  const Sequence q_;
  const Weights<Storage> w_;
  const int64_t T_, B_, I_, H_, P_;
  Arena arena_;
  Blas* const blas_;
  const cudaStream_t stream_;
  bool wide_ = true;
  int64_t chunk_bytes_;
  int64_t* first_ = nullptr;  // [T + 1] on the device
};

// Forward without the recurrence: the input's product, one chunk of steps at a time, and the states.
template <class Cell, class Storage>
class ForwardPass : public PassBase<Cell, Storage> {
 protected:
  using Base = PassBase<Cell, Storage>;
  using Base::B_, Base::G, Base::H_, Base::P_, Base::T_, Base::w_;
  using typename Base::Number;

 public:
  // `chunks` times the usual size of a chunk, for a recurrence that is launched once a chunk.
  ForwardPass(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream,
              int64_t chunks = 1);

  void run();

 protected:
  ~ForwardPass() = default;

  // The steps [k0, k1) in the order of computation; `input` starts at row `first_row`.
  virtual void recur(int64_t k0, int64_t k1, const Number* input, int64_t first_row) = 0;

  template <class N>
  N* take(int64_t n) {
    return this->arena_.template take<N>(n);
  }

  const ForwardArgs<Storage> a_;
  Number* input_;               // [rows of a chunk, G * H]
  Number* h_;                   // [B, P]
  Number* c_ = nullptr;         // [B, H]
  Storage* operand_ = nullptr;  // [B, P] h as products read it, if h_ has another type
};

// Backward without the recurrence: recomputing what forward did not keep, and every product or sum over the
// whole sequence.
template <class Cell, class Storage>
class BackwardPass : public PassBase<Cell, Storage> {
 protected:
  using Base = PassBase<Cell, Storage>;
  using Base::B_, Base::G, Base::H_, Base::I_, Base::P_, Base::q_, Base::S, Base::T_, Base::w_;
  using Base::columns;
  using typename Base::Number;

 public:
  BackwardPass(const BackwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream,
               bool recurs_on_device);

  void run();

 protected:
  ~BackwardPass() = default;

  // All steps, the last to be computed first: reads carry_h_ and carry_c_, writes d_ (and dh_) and the
  // carries. Returns what must be added to carry_h_ for h0, [B, P], or null.
  virtual const Number* recur() = 0;

  template <class N>
  N* take(int64_t n) {
    return this->arena_.template take<N>(n);
  }

  bool recomputes() const { return Cell::keeps_slots && !a_.slots; }
  const Storage* slots() const { return recomputes() ? d_ : a_.slots; }

 private:
  bool wants_weights() const { return a_.dw_ih != nullptr; }
  // Unless h before each row is y at a fixed distance, it is gathered.
  bool shifts() const { return !q_.first && !q_.reset && !(q_.lengths && q_.reverse); }
  bool gathers() const { return recomputes() || (wants_weights() && !shifts()); }
  static constexpr bool x_in_order() {
    for (int g = 0; g < G; ++g) {
      if (columns.x_gate[g] != g) return false;
    }
    return true;
  }
  // Rows that one block sums, and how many such parts there are.
  int64_t rows_a_part() const;
  int64_t parts() const { return (q_.rows + rows_a_part() - 1) / rows_a_part(); }

  void gather_rows(int64_t first_row, int64_t rows, int64_t width, const Storage* steps,
                   const Storage* initial, Storage* to);
  void recompute_slots();
  void recompute_outputs();
  void input_gradient();
  void weight_gradients();
  void bias_gradient();

 protected:
  const BackwardArgs<Storage> a_;
  Storage* d_;                 // [rows, S * H] gradients of the slots, by Columns
  Number* carry_h_;            // [B, P]
  Number* carry_c_ = nullptr;  // [B, H]
  Storage* dh_ = nullptr;      // [rows, P] gradient of a projected h

 private:
  Storage* output_ = nullptr;    // [rows, H] the cell's output
  Storage* h_prev_ = nullptr;    // [rows, P]
  Number* input_ = nullptr;      // [rows of a chunk, G * H]
  Number* recurrent_ = nullptr;  // [rows of a chunk, G * H]
  Storage* c_prev_ = nullptr;    // [rows of a chunk, H]
  Storage* w_x_ = nullptr;       // [G * H, I] w_ih in the order of d's columns
  Number* partial_ = nullptr;    // [parts, S * H]
};

// Calls body with a value of the cell's type.
template <class Body>
auto with_cell(CellId id, Body body) {
  switch (id) {
#define FASTRNN_CELL_CASE(name, type) \
  case CellId::name:                  \
    return body(type{});
    FASTRNN_CELLS(FASTRNN_CELL_CASE)
#undef FASTRNN_CELL_CASE
    default:
      throw std::runtime_error("fastrnn: no such cell");
  }
}

// The driver made of a file's classes Forward and Backward, for one type.
template <template <class, class> class Forward, template <class, class> class Backward, class Storage>
constexpr Driver<Storage> driver_of(const char* name, bool (*serves)(const Problem&)) {
  return {name,
          serves,
          [](const ForwardArgs<Storage>& args) {
            return with_cell(args.cell, [&](auto cell) {
              return Forward<decltype(cell), Storage>(args, nullptr, nullptr, {}).workspace_bytes();
            });
          },
          [](const BackwardArgs<Storage>& args) {
            return with_cell(args.cell, [&](auto cell) {
              return Backward<decltype(cell), Storage>(args, nullptr, nullptr, {}).workspace_bytes();
            });
          },
          [](const ForwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream) {
            with_cell(args.cell, [&](auto cell) {
              Forward<decltype(cell), Storage>(args, workspace, &blas, stream).run();
            });
          },
          [](const BackwardArgs<Storage>& args, void* workspace, Blas& blas, cudaStream_t stream) {
            with_cell(args.cell, [&](auto cell) {
              Backward<decltype(cell), Storage>(args, workspace, &blas, stream).run();
            });
          }};
}

}  // namespace fastrnn::cuda
