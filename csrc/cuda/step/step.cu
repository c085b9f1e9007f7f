// The step driver: one matrix product and one fused kernel a step.
//
// The input's product is computed for many steps at once, a chunk whose pre-activations stay in the L2
// cache. h and c are kept in the type that the cell computes in. Everything in backward that is not
// recurrent is products and sums over the whole sequence, in a fixed order (pass.cuh).
#include "cuda/pass.cuh"
#include "cuda/step/step_kernels.cuh"

namespace fastrnn::cuda {
// Named, since compilers merge the drivers' instantiations of driver_of() if all are of unnamed namespaces.
namespace step_driver {

template <class Cell, class Storage>
class Forward final : public ForwardPass<Cell, Storage> {
  using Base = ForwardPass<Cell, Storage>;
  using Base::a_, Base::B_, Base::G, Base::H_, Base::h_, Base::c_, Base::operand_, Base::P_, Base::S,
      Base::w_;
  using typename Base::Number;

 public:
  Forward(const ForwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : Base(args, workspace, blas, stream) {
    recurrent_ = this->template take<Number>(B_ * G * H_);
    if (this->projects()) {
      output_ = this->template take<Storage>(B_ * H_);
      projected_ = this->template take<Number>(B_ * P_);
    }
  }

 private:
  void recur(int64_t k0, int64_t k1, const Number* input, int64_t first_row) override {
    for (int64_t k = k0; k < k1; ++k) step(k, input + (this->first_row(k) - first_row) * G * H_);
  }

  const Storage* operand() const {
    if constexpr (Base::widens) {
      return operand_;
    } else {
      return h_;
    }
  }

  void step(int64_t k, const Number* input) {
    constexpr int N = vector_width<Storage>;
    const StepRows now = this->rows_of(k), next = this->rows_of(k + 1);
    const int64_t rows = std::max(now.batch, next.batch), row = this->first_row(k);
    this->multiply(now.batch, G * H_, P_, operand(), P_, false, w_.w_hh, P_, true, recurrent_, G * H_);
    const NewH<Storage> h{h_, operand_, a_.y + row * P_};
    CellForward<Storage> cell{rows,
                              H_,
                              now,
                              next,
                              input,
                              recurrent_,
                              w_.b_ih,
                              w_.b_hh,
                              h,
                              output_,
                              c_,
                              a_.c ? a_.c + row * H_ : nullptr,
                              a_.slots ? a_.slots + row * S * H_ : nullptr};
    this->spread_over("cell_forward", cell_forward<N, Cell, Storage>, cell_forward<1, Cell, Storage>, rows,
                      H_, cell);
    if (!this->projects()) return;
    this->multiply(now.batch, P_, H_, output_, H_, false, w_.w_hr, H_, true, projected_, P_);
    this->spread_over("projected_forward", projected_forward<N, Storage>, projected_forward<1, Storage>,
                      rows, P_, ProjectedForward<Storage>{rows, P_, now, next, projected_, h});
  }

  Number* recurrent_;            // [B, G * H]
  Storage* output_ = nullptr;    // [B, H] the cell's output, where it is projected
  Number* projected_ = nullptr;  // [B, P]
};

template <class Cell, class Storage>
class Backward final : public BackwardPass<Cell, Storage> {
  using Base = BackwardPass<Cell, Storage>;
  using Base::a_, Base::B_, Base::carry_c_, Base::carry_h_, Base::columns, Base::d_, Base::dh_, Base::G,
      Base::H_, Base::P_, Base::S, Base::T_, Base::w_;
  using typename Base::Number;

 public:
  Backward(const BackwardArgs<Storage>& args, void* workspace, Blas* blas, cudaStream_t stream)
      : Base(args, workspace, blas, stream, /*recurs_on_device=*/false) {
    acc_ = this->template take<Number>(B_ * P_);
    if (this->projects()) d_output_ = this->template take<Number>(B_ * H_);
  }

 private:
  const Number* recur() override {
    for (int64_t k = T_ - 1; k >= 0; --k) step(k);
    return acc_;
  }

  void step(int64_t k) {
    constexpr int N = vector_width<Storage>;
    const StepRows now = this->rows_of(k), after = this->rows_of(k + 1);
    const StepRows previous = this->rows_of(k - 1);
    const int64_t rows = std::max(now.batch, after.batch), row = this->first_row(k);
    const int64_t previous_row = k > 0 ? this->first_row(k - 1) : 0;
    const IncomingH<Storage> h{acc_, after.batch, after, carry_h_, a_.dy ? a_.dy + row * P_ : nullptr};
    if (this->projects()) {
      Storage* dh = dh_ + row * P_;
      this->spread_over("projected_backward", projected_backward<N, Storage>,
                        projected_backward<1, Storage>, rows, P_,
                        ProjectedBackward<Storage>{rows, P_, now, h, dh});
      this->multiply(now.batch, H_, P_, dh, P_, false, w_.w_hr, H_, false, d_output_, H_);
    }
    Storage* d = d_ + row * S * H_;
    CellBackward<Storage> cell{rows,
                               H_,
                               now,
                               previous,
                               h,
                               d_output_,
                               carry_c_,
                               a_.dc ? a_.dc + row * H_ : nullptr,
                               this->slots() ? this->slots() + row * S * H_ : nullptr,
                               a_.y + row * P_,
                               a_.c ? a_.c + row * H_ : nullptr,
                               a_.y + previous_row * P_,
                               a_.c ? a_.c + previous_row * H_ : nullptr,
                               a_.h0,
                               a_.c0,
                               d};
    this->spread_over("cell_backward", cell_backward<N, Cell, Storage>, cell_backward<1, Cell, Storage>,
                      rows, H_, cell);
    this->multiply(now.batch, P_, G * H_, d + columns.h_start * H_, S * H_, false, w_.w_hh, P_, false, acc_,
                   P_);
  }

  Number* acc_;                 // [B, P] recurrent product of the step computed after
  Number* d_output_ = nullptr;  // [B, H] gradient of the cell's output, where it is projected
};

bool serves(const Problem&) { return true; }

}  // namespace step_driver

template <class Storage>
const Driver<Storage> Drivers<Storage>::step =
    driver_of<step_driver::Forward, step_driver::Backward, Storage>("step", step_driver::serves);
template const Driver<float> Drivers<float>::step;
template const Driver<double> Drivers<double>::step;
template const Driver<BFloat16> Drivers<BFloat16>::step;
template const Driver<Half> Drivers<Half>::step;

}  // namespace fastrnn::cuda
