#include "cuda/pass.cuh"

#include "cuda/common/pass_kernels.cuh"
#include "cuda/common/reductions.cuh"

namespace fastrnn::cuda {

// A chunk is this many bytes of pre-activations: small beside an L2 cache, and large enough for a product
// at full speed. Tests set a smaller one, for several chunks.
#ifndef FASTRNN_CHUNK_BYTES
#define FASTRNN_CHUNK_BYTES (int64_t{32} << 20)
#endif

// ---- Pass ----

template <class Cell, class Storage>
PassBase<Cell, Storage>::PassBase(const Sequence& sequence, const Weights<Storage>& weights,
                                  void* workspace, Blas* blas, cudaStream_t stream)
    : q_(sequence),
      w_(weights),
      T_(sequence.T),
      B_(sequence.B),
      I_(weights.I),
      H_(weights.H),
      P_(weights.P),
      arena_(workspace),
      blas_(blas),
      stream_(stream),
      chunk_bytes_(FASTRNN_CHUNK_BYTES) {}

template <class Cell, class Storage>
int64_t PassBase<Cell, Storage>::chunk_steps() const {
  const int64_t step_bytes = std::max<int64_t>(1, B_ * G * H_ * int64_t{sizeof(Number)});
  return std::clamp<int64_t>(chunk_bytes_ / step_bytes, 1, std::max<int64_t>(1, T_));
}

template <class Cell, class Storage>
typename PassBase<Cell, Storage>::Chunk PassBase<Cell, Storage>::chunk(int64_t k0, int64_t k1) const {
  const int64_t t0 = q_.reverse ? T_ - k1 : k0, t1 = q_.reverse ? T_ - k0 : k1;
  return {q_.first_row(t0), q_.first_row(t1) - q_.first_row(t0)};
}

template <class Cell, class Storage>
void PassBase<Cell, Storage>::get_state(int64_t width, const Storage* from, const StepRows& next,
                                        Number* state, Storage* operand) {
  constexpr int N = vector_width<Storage>;
  spread_over("state_in", state_in<N, Storage>, state_in<1, Storage>, B_, width,
              StateIn<Storage>{B_, width, from, next, state, operand});
}

template <class Cell, class Storage>
void PassBase<Cell, Storage>::put_state(int64_t width, const Number* state, const Number* acc,
                                        int64_t acc_rows, const StepRows& after, Storage* to) {
  constexpr int N = vector_width<Storage>;
  spread_over("state_out", state_out<N, Storage>, state_out<1, Storage>, B_, width,
              StateOut<Storage>{B_, width, state, acc, acc_rows, after, to});
}

template <class Cell, class Storage>
void PassBase<Cell, Storage>::multiply_input(const Storage* x, int64_t rows, Number* to) {
  multiply(rows, G * H_, I_, x, I_, false, w_.w_ih, I_, true, to, G * H_);
}

template <class Cell, class Storage>
void PassBase<Cell, Storage>::allocate_first_rows() {
  if (q_.first) first_ = arena_.template take<int64_t>(T_ + 1);
}

template <class Cell, class Storage>
void PassBase<Cell, Storage>::upload_first_rows() {
  for (int64_t t = 0; first_ && t <= T_; t += Upload::most) {
    Upload part{std::min<int64_t>(Upload::most, T_ + 1 - t), first_ + t, {}};
    std::copy_n(q_.first + t, part.count, part.values);
    launch("upload", upload, {{1, 1, 1}, {Upload::most, 1, 1}}, stream_, part);
  }
}

// ---- Forward ----

template <class Cell, class Storage>
ForwardPass<Cell, Storage>::ForwardPass(const ForwardArgs<Storage>& args, void* workspace, Blas* blas,
                                        cudaStream_t stream, int64_t chunks)
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

template <class Cell, class Storage>
void ForwardPass<Cell, Storage>::run() {
  this->check_alignment(a_.h0, a_.c0, a_.y, a_.h_n, a_.c_n, a_.c, a_.slots, w_.b_ih, w_.b_hh);
  this->get_state(P_, a_.h0, this->rows_of(0), h_, operand_);
  if (Cell::has_c) this->get_state(H_, a_.c0, this->rows_of(0), c_, nullptr);
  const int64_t steps = this->chunk_steps();
  for (int64_t k0 = 0; k0 < T_; k0 += steps) {
    const int64_t k1 = std::min(T_, k0 + steps);
    const typename Base::Chunk chunk = this->chunk(k0, k1);
    this->multiply_input(a_.x + chunk.first * this->I_, chunk.rows, input_);
    recur(k0, k1, input_, chunk.first);
  }
  if constexpr (Base::widens) {
    this->put_state(P_, h_, nullptr, 0, this->rows_of(T_), a_.h_n);
    if (Cell::has_c) this->put_state(H_, c_, nullptr, 0, this->rows_of(T_), a_.c_n);
  }
}

// ---- Backward ----

template <class Cell, class Storage>
BackwardPass<Cell, Storage>::BackwardPass(const BackwardArgs<Storage>& args, void* workspace, Blas* blas,
                                          cudaStream_t stream, bool recurs_on_device)
    : Base(args.sequence, args.weights, workspace, blas, stream), a_(args) {
  const int64_t rows = q_.rows;
  d_ = take<Storage>(rows * S * H_);
  carry_h_ = take<Number>(B_ * P_);
  if (Cell::has_c) carry_c_ = take<Number>(B_ * H_);
  if (this->projects()) {
    dh_ = take<Storage>(rows * P_);
    if (wants_weights()) output_ = take<Storage>(rows * H_);
  }
  if (gathers()) h_prev_ = take<Storage>(rows * P_);
  if (gathers() || recurs_on_device) this->allocate_first_rows();
  if (recomputes()) {
    const int64_t chunk = this->chunk_steps() * B_;
    input_ = take<Number>(chunk * G * H_);
    recurrent_ = take<Number>(chunk * G * H_);
    if (Cell::has_c) c_prev_ = take<Storage>(chunk * H_);
  }
  if (a_.dx && !x_in_order()) w_x_ = take<Storage>(G * H_ * I_);
  if (wants_weights()) partial_ = take<Number>(parts() * S * H_);
}

template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::run() {
  this->check_alignment(a_.h0, a_.c0, a_.y, a_.c, a_.slots, a_.dy, a_.dh_n, a_.dc_n, a_.dc, a_.dh0, a_.dc0,
                        w_.b_ih, w_.b_hh);
  this->upload_first_rows();
  if (gathers()) gather_rows(0, q_.rows, P_, a_.y, a_.h0, h_prev_);
  if (recomputes()) recompute_slots();
  if (output_) recompute_outputs();
  this->get_state(P_, a_.dh_n, this->rows_of(T_), carry_h_, nullptr);
  if (Cell::has_c) this->get_state(H_, a_.dc_n, this->rows_of(T_), carry_c_, nullptr);
  const Number* acc = recur();
  const StepRows first = this->rows_of(0);
  this->put_state(P_, carry_h_, acc, first.batch, first, a_.dh0);
  if (Cell::has_c) this->put_state(H_, carry_c_, nullptr, 0, first, a_.dc0);
  if (a_.dx) input_gradient();
  if (wants_weights()) weight_gradients();
}

template <class Cell, class Storage>
int64_t BackwardPass<Cell, Storage>::rows_a_part() const {
  const int64_t blocks = 512, across = (S * H_ + sum_columns - 1) / sum_columns;
  const int64_t parts = std::max<int64_t>(1, blocks / across);
  return std::max<int64_t>((q_.rows + parts - 1) / parts, 8 * sum_lines);
}

template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::gather_rows(int64_t first_row, int64_t rows, int64_t width,
                                              const Storage* steps, const Storage* initial, Storage* to) {
  constexpr int N = vector_width<Storage>;
  this->spread_over("gather", gather<N, Storage>, gather<1, Storage>, rows, width,
                    Gather<Storage>{this->device_sequence(), first_row, rows, width, steps, initial, to});
}

// The slots, into the buffer that their gradients overwrite.
template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::recompute_slots() {
  constexpr int N = vector_width<Storage>;
  const int64_t steps = this->chunk_steps();
  for (int64_t k0 = 0; k0 < T_; k0 += steps) {
    const typename Base::Chunk chunk = this->chunk(k0, std::min(T_, k0 + steps));
    const Storage* h_prev = h_prev_ + chunk.first * P_;
    this->multiply_input(a_.x + chunk.first * I_, chunk.rows, input_);
    this->multiply(chunk.rows, G * H_, P_, h_prev, P_, false, w_.w_hh, P_, true, recurrent_, G * H_);
    if (Cell::has_c) gather_rows(chunk.first, chunk.rows, H_, a_.c, a_.c0, c_prev_);
    this->spread_over(
        "recompute", recompute<N, Cell, Storage>, recompute<1, Cell, Storage>, chunk.rows, H_,
        Recompute<Storage>{chunk.rows, H_, input_, recurrent_, w_.b_ih, w_.b_hh,
                           this->projects() ? nullptr : h_prev, c_prev_, d_ + chunk.first * S * H_});
  }
}

template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::recompute_outputs() {
  constexpr int N = vector_width<Storage>;
  if constexpr (Cell::has_c) {
    this->spread_over("outputs", outputs<N, Cell, Storage>, outputs<1, Cell, Storage>, q_.rows, H_,
                      Outputs<Storage>{q_.rows, H_, slots(), a_.c, output_});
  }
}

template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::input_gradient() {
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

template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::weight_gradients() {
  const int64_t rows = q_.rows, d_row = S * H_;
  for (int i = 0; i < G;) {  // one product for each run of gates in order
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
    // The first step's rows with h0, then the others with y. The small part comes first: less is lost if
    // the sum is rounded in between.
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

template <class Cell, class Storage>
void BackwardPass<Cell, Storage>::bias_gradient() {
  const unsigned across = static_cast<unsigned>((S * H_ + sum_columns - 1) / sum_columns);
  const Shape shape{{across, static_cast<unsigned>(parts()), 1},
                    {sum_columns, sum_lines, 1},
                    int{sizeof(Number)} * sum_columns * sum_lines};
  launch("sum_rows", sum_rows<Storage>, shape, this->stream_,
         SumRows<Storage>{q_.rows, S * H_, rows_a_part(), d_, partial_});
  launch("bias_gradients", bias_gradients<Cell, Storage>, spread(G, H_, 1), this->stream_,
         BiasGradients<Storage>{parts(), H_, partial_, a_.db_ih, a_.db_hh});
}

#define FASTRNN_INSTANTIATE_FOR(Cell, Storage) \
  template class PassBase<Cell, Storage>;      \
  template class ForwardPass<Cell, Storage>;   \
  template class BackwardPass<Cell, Storage>;
#define FASTRNN_INSTANTIATE(name, Cell)   \
  FASTRNN_INSTANTIATE_FOR(Cell, float)    \
  FASTRNN_INSTANTIATE_FOR(Cell, double)   \
  FASTRNN_INSTANTIATE_FOR(Cell, BFloat16) \
  FASTRNN_INSTANTIATE_FOR(Cell, Half)
FASTRNN_CELLS(FASTRNN_INSTANTIATE)

}  // namespace fastrnn::cuda
