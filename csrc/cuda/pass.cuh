// What every driver's forward and backward have in common: all that is not the recurrence itself.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/blas.h"
#include "cuda/step/step_kernels.cuh"
#include "layer/args.h"

namespace fastrnn::cuda {

// Chunks of this many bytes of pre-activations are computed at once: small beside an L2 cache, and
// large enough to be a product of full speed. Tests set another, to have several chunks.
#ifndef FASTRNN_CHUNK_BYTES
#define FASTRNN_CHUNK_BYTES (int64_t{32} << 20)
#endif
constexpr int64_t chunk_bytes = FASTRNN_CHUNK_BYTES;

// Takes arrays one after another out of one buffer; of none, measures how large it has to be.
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

template <class Pointer>
bool aligned(const Pointer* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// What forward and backward of a cell have in common.
template <class Cell, class Storage>
class Pass {
 public:
  using Number = Compute<Storage>;
  static constexpr int G = Cell::gates, S = Cell::slots;
  static constexpr bool widens = !std::is_same_v<Storage, Number>;
  static constexpr Columns<Cell> columns{};
  static_assert(columns.h_in_order, "the recurrent product's columns are the gates in order");

  Pass(const Sequence& sequence, const Weights<Storage>& weights, void* workspace, Blas* blas,
       cudaStream_t stream)
      : q_(sequence),
        w_(weights),
        T_(sequence.T),
        B_(sequence.B),
        I_(weights.I),
        H_(weights.H),
        P_(weights.P),
        arena_(workspace),
        blas_(blas),
        stream_(stream) {}

  int64_t workspace_bytes() const { return arena_.used(); }

 protected:
  bool projects() const { return w_.w_hr != nullptr; }

  // The step that is the k-th to be computed, as kernels see it; none where k is out of range.
  StepRows rows_of(int64_t k) const {
    if (k < 0 || k >= T_) return {0, 0, nullptr, nullptr};
    const int64_t t = q_.step(k);
    return {t, q_.batch(t), q_.lengths, q_.reset ? q_.reset + q_.first_row(t) : nullptr};
  }
  int64_t first_row(int64_t k) const { return q_.first_row(q_.step(k)); }

  // Steps whose pre-activations make a chunk.
  int64_t chunk_steps() const {
    const int64_t step_bytes = std::max<int64_t>(1, B_ * G * H_ * int64_t{sizeof(Number)});
    return std::clamp<int64_t>(chunk_bytes_ / step_bytes, 1, std::max<int64_t>(1, T_));
  }
  // First row and number of rows of the steps [k0, k1) in the order of computation.
  struct Chunk {
    int64_t first, rows;
  };
  Chunk chunk(int64_t k0, int64_t k1) const {
    const int64_t t0 = q_.reverse ? T_ - k1 : k0, t1 = q_.reverse ? T_ - k0 : k1;
    return {q_.first_row(t0), q_.first_row(t1) - q_.first_row(t0)};
  }

  // c[m, n] (+)= a[m, k] b[k, n]; the type of c says in which it is stored.
  template <class Out>
  void multiply(int64_t m, int64_t n, int64_t k, const Storage* a, int64_t a_row, bool a_transposed,
                const Storage* b, int64_t b_row, bool b_transposed, Out* c, int64_t c_row,
                bool accumulate = false) {
    if (m == 0 || n == 0) return;
    blas_->multiply({m, n, k, type_of<Storage>, type_of<Out>, a, a_row, a_transposed, b, b_row,
                     b_transposed, c, c_row, accumulate});
  }

  // Kernels in a version for aligned rows of `units` numbers, and in one for any.
  template <class Args>
  void spread_over(const char* name, void (*wide)(Args), void (*narrow)(Args), int64_t rows, int64_t units,
                   const Args& args) {
    constexpr int N = vector_width<Storage>;
    const bool is_wide = wide_ && units % N == 0;
    launch(name, is_wide ? wide : narrow, spread(rows, units, is_wide ? N : 1), stream_, args);
  }

  void get_state(int64_t width, const Storage* from, const StepRows& next, Number* state,
                 Storage* operand) {
    constexpr int N = vector_width<Storage>;
    spread_over("state_in", state_in<N, Storage>, state_in<1, Storage>, B_, width,
                StateIn<Storage>{B_, width, from, next, state, operand});
  }
  void put_state(int64_t width, const Number* state, const Number* acc, int64_t acc_rows,
                 const StepRows& after, Storage* to) {
    constexpr int N = vector_width<Storage>;
    spread_over("state_out", state_out<N, Storage>, state_out<1, Storage>, B_, width,
                StateOut<Storage>{B_, width, state, acc, acc_rows, after, to});
  }

  // Input's part of the pre-activations, without bias: [rows, G * H].
  void project_input(const Storage* x, int64_t rows, Number* to) {
    multiply(rows, G * H_, I_, x, I_, false, w_.w_ih, I_, true, to, G * H_);
  }

  // The first rows of a packed batch's steps, on the device, where a kernel over all rows is to come.
  void take_first_rows() {
    if (q_.first) first_ = arena_.template take<int64_t>(T_ + 1);
  }
  void upload_first_rows() {
    for (int64_t t = 0; first_ && t <= T_; t += Upload::most) {
      Upload part{std::min<int64_t>(Upload::most, T_ + 1 - t), first_ + t, {}};
      std::copy_n(q_.first + t, part.count, part.values);
      launch("upload", upload, {{1, 1, 1}, {Upload::most, 1, 1}}, stream_, part);
    }
  }
  DeviceSequence device_sequence() const { return {T_, B_, first_, q_.lengths, q_.reset, q_.reverse}; }

  // Whether everything that kernels read in wide accesses is aligned to them.
  template <class... Pointers>
  void check_alignment(const Pointers*... pointers) {
    wide_ = (aligned(pointers) && ...);
  }

  const Sequence q_;
  const Weights<Storage> w_;
  const int64_t T_, B_, I_, H_, P_;
  Arena arena_;
  Blas* const blas_;
  const cudaStream_t stream_;
  bool wide_ = true;
  int64_t chunk_bytes_ = chunk_bytes;
  int64_t* first_ = nullptr;  // [T + 1] on the device
};

// Forward, but for the recurrence: the input's product, a chunk of steps at a time, and the states.
template <class Cell, class Storage>
class ForwardPass : public Pass<Cell, Storage> {
 protected:
  using Base = Pass<Cell, Storage>;
  using Base::B_, Base::G, Base::H_, Base::P_, Base::T_, Base::w_;
  using typename Base::Number;

 public:
  // `chunks` times the usual size of a chunk, for a recurrence that has to be started for each.
  ForwardPass(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream,
              int64_t chunks = 1)
      : Base(args.sequence, args.weights, workspace, blas, stream), a_(args) {
    this->chunk_bytes_ *= chunks;
    input_ = take<Number>(this->chunk_steps() * B_ * G * H_);
    if constexpr (Base::widens) {
      operand_ = take<Storage>(B_ * P_);
      h_ = take<Number>(B_ * P_);
      if (Cell::has_c) c_ = take<Number>(B_ * H_);
    } else {
      h_ = a_.h_n;
      c_ = a_.c_n;
    }
  }

  void run() {
    this->check_alignment(a_.h0, a_.c0, a_.y, a_.h_n, a_.c_n, a_.c, a_.slots, w_.b_ih, w_.b_hh);
    this->get_state(P_, a_.h0, this->rows_of(0), h_, operand_);
    if (Cell::has_c) this->get_state(H_, a_.c0, this->rows_of(0), c_, nullptr);
    const int64_t steps = this->chunk_steps();
    for (int64_t k0 = 0; k0 < T_; k0 += steps) {
      const int64_t k1 = std::min(T_, k0 + steps);
      const typename Base::Chunk chunk = this->chunk(k0, k1);
      this->project_input(a_.x + chunk.first * this->I_, chunk.rows, input_);
      recur(k0, k1, input_, chunk.first);
    }
    if constexpr (Base::widens) {
      this->put_state(P_, h_, nullptr, 0, this->rows_of(T_), a_.h_n);
      if (Cell::has_c) this->put_state(H_, c_, nullptr, 0, this->rows_of(T_), a_.c_n);
    }
  }

 protected:
  ~ForwardPass() = default;

  // The steps [k0, k1) in the order of computation; `input` is at row `first_row`.
  virtual void recur(int64_t k0, int64_t k1, const Number* input, int64_t first_row) = 0;

  template <class N>
  N* take(int64_t n) {
    return this->arena_.template take<N>(n);
  }

  const ForwardArgs<Storage> a_;
  Number* input_;               // [rows of a chunk, G * H]
  Number* h_;                   // [B, P]
  Number* c_ = nullptr;         // [B, H]
  Storage* operand_ = nullptr;  // [B, P] h as products read it, where h_ is of another type
};

// Backward, but for the recurrence: what forward left out, and everything that is a product or a sum
// over the whole sequence.
template <class Cell, class Storage>
class BackwardPass : public Pass<Cell, Storage> {
 protected:
  using Base = Pass<Cell, Storage>;
  using Base::B_, Base::G, Base::H_, Base::I_, Base::P_, Base::q_, Base::S, Base::T_, Base::w_;
  using Base::columns;
  using typename Base::Number;

 public:
  BackwardPass(const BackwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream,
               bool recurs_on_device)
      : Base(args.sequence, args.weights, workspace, blas, stream), a_(args) {
    const int64_t rows = q_.rows;
    d_ = take<Storage>(rows * S * H_);
    carry_h_ = take<Number>(B_ * P_);
    if (Cell::has_c) carry_c_ = take<Number>(B_ * H_);
    if (this->projects()) {
      dh_ = take<Storage>(rows * P_);
      if (wants_weights()) output_ = take<Storage>(rows * H_);
    }
    if (gathers()) {
      h_prev_ = take<Storage>(rows * P_);
    }
    if (gathers() || recurs_on_device) this->take_first_rows();
    if (recomputes()) {
      const int64_t chunk = this->chunk_steps() * B_;
      input_ = take<Number>(chunk * G * H_);
      recurrent_ = take<Number>(chunk * G * H_);
      if (Cell::has_c) c_prev_ = take<Storage>(chunk * H_);
    }
    if (a_.dx && !x_in_order()) w_x_ = take<Storage>(G * H_ * I_);
    if (wants_weights()) partial_ = take<Number>(parts() * S * H_);
  }

  void run() {
    this->check_alignment(a_.h0, a_.c0, a_.y, a_.c, a_.slots, a_.dy, a_.dh_n, a_.dc_n, a_.dc, a_.dh0,
                          a_.dc0, w_.b_ih, w_.b_hh);
    this->upload_first_rows();
    if (gathers()) gather_rows(0, q_.rows, P_, a_.y, a_.h0, h_prev_);
    if (recomputes()) recompute_slots();
    if (output_) outputs_again();
    this->get_state(P_, a_.dh_n, this->rows_of(T_), carry_h_, nullptr);
    if (Cell::has_c) this->get_state(H_, a_.dc_n, this->rows_of(T_), carry_c_, nullptr);
    const Number* acc = recur();
    const StepRows first = this->rows_of(0);
    this->put_state(P_, carry_h_, acc, first.batch, first, a_.dh0);
    if (Cell::has_c) this->put_state(H_, carry_c_, nullptr, 0, first, a_.dc0);
    if (a_.dx) input_gradient();
    if (wants_weights()) weight_gradients();
  }

 protected:
  ~BackwardPass() = default;

  // All steps, the last to be computed first: from carry_h_ and carry_c_ to d_ (and dh_) and again the
  // carries. Gives what is still to be added to carry_h_ for h0, [B, P], or null.
  virtual const Number* recur() = 0;

  template <class N>
  N* take(int64_t n) {
    return this->arena_.template take<N>(n);
  }

  bool wants_weights() const { return a_.dw_ih != nullptr; }
  bool recomputes() const { return Cell::keeps_slots && !a_.slots; }
  // Where h before a row is not simply y a step's rows further on, it is collected.
  bool shifts() const { return !q_.first && !q_.reset && !(q_.lengths && q_.reverse); }
  bool gathers() const { return recomputes() || (wants_weights() && !shifts()); }
  static constexpr bool x_in_order() {
    for (int g = 0; g < G; ++g) {
      if (columns.x_gate[g] != g) return false;
    }
    return true;
  }
  // The sums of columns are made by about this many blocks.
  int64_t rows_a_part() const {
    const int64_t blocks = 512, across = (S * H_ + sum_columns - 1) / sum_columns;
    const int64_t parts = std::max<int64_t>(1, blocks / across);
    return std::max<int64_t>((q_.rows + parts - 1) / parts, 8 * sum_lines);
  }
  int64_t parts() const { return (q_.rows + rows_a_part() - 1) / rows_a_part(); }

  void gather_rows(int64_t first_row, int64_t rows, int64_t width, const Storage* steps,
                   const Storage* initial, Storage* to) {
    constexpr int N = vector_width<Storage>;
    this->spread_over("gather", gather<N, Storage>, gather<1, Storage>, rows, width,
                      Gather<Storage>{this->device_sequence(), first_row, rows, width, steps, initial, to});
  }

  // The slots, into the buffer that will take their gradients.
  void recompute_slots() {
    constexpr int N = vector_width<Storage>;
    const int64_t steps = this->chunk_steps();
    for (int64_t k0 = 0; k0 < T_; k0 += steps) {
      const typename Base::Chunk chunk = this->chunk(k0, std::min(T_, k0 + steps));
      const Storage* h_prev = h_prev_ + chunk.first * P_;
      this->project_input(a_.x + chunk.first * I_, chunk.rows, input_);
      this->multiply(chunk.rows, G * H_, P_, h_prev, P_, false, w_.w_hh, P_, true, recurrent_, G * H_);
      if (Cell::has_c) gather_rows(chunk.first, chunk.rows, H_, a_.c, a_.c0, c_prev_);
      this->spread_over(
          "recompute", recompute<N, Cell, Storage>, recompute<1, Cell, Storage>, chunk.rows, H_,
          Recompute<Storage>{chunk.rows, H_, input_, recurrent_, w_.b_ih, w_.b_hh,
                             this->projects() ? nullptr : h_prev, c_prev_, d_ + chunk.first * S * H_});
    }
  }

  const Storage* slots() const { return recomputes() ? d_ : a_.slots; }

  void outputs_again() {
    constexpr int N = vector_width<Storage>;
    if constexpr (Cell::has_c) {
      this->spread_over("outputs", outputs<N, Cell, Storage>, outputs<1, Cell, Storage>, q_.rows, H_,
                        Outputs<Storage>{q_.rows, H_, slots(), a_.c, output_});
    }
  }

  void input_gradient() {
    const Storage* w = w_.w_ih;
    if (!x_in_order()) {
      for (int i = 0; i < G; ++i) {
        copy_async(w_x_ + i * H_ * I_, w + columns.x_gate[i] * H_ * I_, H_ * I_ * sizeof(Storage),
                   this->stream_);
      }
      w = w_x_;
    }
    this->multiply(q_.rows, I_, G * H_, d_, S * H_, false, w, I_, false, a_.dx, I_);
  }

  void weight_gradients() {
    const int64_t rows = q_.rows, d_row = S * H_;
    for (int i = 0; i < G;) {  // runs of gates that are in order
      int end = i + 1;
      while (end < G && columns.x_gate[end] == columns.x_gate[end - 1] + 1) ++end;
      this->multiply((end - i) * H_, I_, rows, d_ + i * H_, d_row, true, a_.x, I_, false,
                     a_.dw_ih + columns.x_gate[i] * H_ * I_, I_);
      i = end;
    }
    const Storage* d_h = d_ + columns.h_start * H_;
    if (gathers()) {
      this->multiply(G * H_, P_, rows, d_h, d_row, true, h_prev_, P_, false, a_.dw_hh, P_);
    } else {
      // The first step's rows with h0, then the others with y; the small part first, which loses the
      // least where the sum is rounded in between.
      const Storage* first = d_h + this->first_row(0) * d_row;
      this->multiply(G * H_, P_, B_, first, d_row, true, a_.h0, P_, false, a_.dw_hh, P_);
      const Storage* rest = q_.reverse ? d_h : d_h + B_ * d_row;
      const Storage* y = q_.reverse ? a_.y + B_ * P_ : a_.y;
      if (T_ > 1) {
        this->multiply(G * H_, P_, rows - B_, rest, d_row, true, y, P_, false, a_.dw_hh, P_, true);
      }
    }
    if (a_.db_ih || a_.db_hh) bias_gradient();
    if (a_.dw_hr) {
      this->multiply(P_, H_, rows, dh_, P_, true, output_, H_, false, a_.dw_hr, H_);
    }
  }

  void bias_gradient() {
    const unsigned across = static_cast<unsigned>((S * H_ + sum_columns - 1) / sum_columns);
    const Shape shape{{across, static_cast<unsigned>(parts()), 1},
                      {sum_columns, sum_lines, 1},
                      int{sizeof(Number)} * sum_columns * sum_lines};
    launch("sum_rows", sum_rows<Storage>, shape, this->stream_,
           SumRows<Storage>{q_.rows, S * H_, rows_a_part(), d_, partial_});
    launch("bias_gradients", bias_gradients<Cell, Storage>, spread(G, H_, 1), this->stream_,
           BiasGradients<Storage>{parts(), H_, partial_, a_.db_ih, a_.db_hh});
  }

  const BackwardArgs<Storage> a_;
  Storage* d_;                   // [rows, S * H] gradients of the slots, by Columns
  Number* carry_h_;              // [B, P]
  Number* carry_c_ = nullptr;    // [B, H]
  Storage* dh_ = nullptr;        // [rows, P] gradient of a projected h
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

// The functions that make a driver of the classes Forward and Backward of its file, for one type.
#define FASTRNN_DRIVER(name, Storage)                                                                      \
  template <>                                                                                              \
  int64_t name##_forward_workspace(const ForwardArgs<Storage>& args) {                                     \
    return with_cell(args.cell, [&](auto cell) {                                                           \
      return Forward<decltype(cell), Storage>(args, nullptr, nullptr, {}).workspace_bytes();               \
    });                                                                                                    \
  }                                                                                                        \
  template <>                                                                                              \
  int64_t name##_backward_workspace(const BackwardArgs<Storage>& args) {                                   \
    return with_cell(args.cell, [&](auto cell) {                                                           \
      return Backward<decltype(cell), Storage>(args, nullptr, nullptr, {}).workspace_bytes();              \
    });                                                                                                    \
  }                                                                                                        \
  template <>                                                                                              \
  void name##_forward(const ForwardArgs<Storage>& args, void* workspace, Blas& blas,                       \
                      cudaStream_t stream) {                                                               \
    with_cell(args.cell,                                                                                   \
              [&](auto cell) { Forward<decltype(cell), Storage>(args, workspace, &blas, stream).run(); }); \
  }                                                                                                        \
  template <>                                                                                              \
  void name##_backward(const BackwardArgs<Storage>& args, void* workspace, Blas& blas,                     \
                       cudaStream_t stream) {                                                              \
    with_cell(args.cell, [&](auto cell) {                                                                  \
      Backward<decltype(cell), Storage>(args, workspace, &blas, stream).run();                             \
    });                                                                                                    \
  }

}  // namespace fastrnn::cuda
