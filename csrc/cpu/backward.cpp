// Backward over a whole sequence: the gradient of every pre-activation, and of the initial state.
//
// The steps run in the order opposite to forward's. Each begins with the product of the later step's
// pre-activation gradients with w_hh, a tile at a time; the cell's backward equations follow on the same
// tile. So a step is one phase of the team. Gradients of weights, biases and input are products over many
// steps at once: they are formed a chunk of steps at a time (weight_gradients.h) or, for mixed types, by
// the caller.
#include <cstring>
#include <memory>
#include <type_traits>

#include "cpu/chunk.h"
#include "cpu/passes.h"
#include "cpu/plugin.h"
#include "cpu/product.h"
#include "cpu/row_parts.h"
#include "cpu/threads/partition.h"
#include "cpu/threads/workspace.h"
#include "cpu/weight_gradients.h"

namespace fastrnn {
namespace {

template <class Kernels>
class Backward {
 public:
  using Storage = typename Kernels::Storage;
  using Operand = typename Kernels::Operand;
  using Compute = typename Kernels::Compute;
  using Product = GatedProduct<Kernels>;
  static constexpr bool one_type = Kernels::one_type;

  Backward(const BackwardArgs<Storage>& args, const ProductFactors<Storage>& factors,
           const Kernels& kernels)
      : a_(args),
        factors_(factors),
        k_(kernels),
        q_(args.sequence),
        cell_(cell_info(args.cell)),
        H_(args.weights.H),
        P_(args.weights.P),
        C_(cell_.own_states * H_),
        W_(cell_.unit_weights * H_),
        cell_backward_(backward_of(kernels, args.cell)),
        parts_(q_, workspace_),
        recurrent_(kernels, args.weights.w_hh, H_, P_, cell_.gates, cell_.h_slot, q_.T == 1),
        projection_(kernels, args.weights.w_hr, P_, projected() ? H_ : 0, 1, &first_slot, q_.T == 1),
        input_(kernels, args.weights.w_ih, H_, args.weights.I, cell_.gates, cell_.x_slot, false) {
    const double work = 2.0 * cell_.gates * H_ * P_ * sizeof(Operand) / sizeof(float);
    partition_ = choose_partition(q_.B, recurrent_.blocks(), cell_.gates * H_ * P_ * sizeof(Operand),
                                  work * q_.B, work * q_.rows);
    for (int i = 0; i < partition_.slices(); ++i) {
      Slice& slice = slices_.emplace_back(
          Slice{part_of(q_.B, i, partition_.slices()), recurrent_, projection_, input_});
      slice.recurrent.take_panels(workspace_);
      if (projected()) slice.projection.take_panels(workspace_);
      if (forms_input_gradient()) slice.input.take_panels(workspace_);
    }
    d_stride_ = operand_stride<Operand>(cell_.slots * recurrent_.slot_stride());
    dh_stride_ = operand_stride<Operand>(P_);
    for (Operand*& buffer : d_) buffer = workspace_.take<Operand>(q_.B * d_stride_);
    carry_h_ = workspace_.take<Compute>(q_.B * P_);
    if (cell_.has_c) carry_c_ = workspace_.take<Compute>(q_.B * C_);
    if (W_) d_unit_weights_ = workspace_.take<Compute>(q_.B * W_);
    const int64_t widest = std::max({H_, P_, C_});
    zeros_ = workspace_.take<Storage>(widest);
    std::fill_n(zeros_, widest, Storage{});
    if (projected()) {
      dh_ = workspace_.take<Operand>(q_.B * dh_stride_);
      no_carry_ = workspace_.take<Compute>(q_.B * H_);
    }
    if (forms_products()) take_chunk();
  }

  int threads() const { return partition_.threads; }

  void operator()(int id, ThreadTeam& team) {
    const auto share = [&](int64_t n, auto body) { team.phase(id, n, body); };
    for (int64_t end = q_.T; end > 0;) {
      const Range steps = chunk_d_ ? chunk_before(q_, all(), end, chunk_rows) : Range{0, end};
      run_slices(team, id, partition_,
                 [&](int64_t i, auto for_items) { run(slices_[i], steps, for_items); });
      if constexpr (one_type) {
        if (weight_gradients_) {
          weight_gradients_->add(steps, share, [&](int64_t k, int64_t b, int64_t count, auto body) {
            for_previous(k, b, count, body);
          });
        }
      }
      end = steps.begin;
    }
    if constexpr (one_type) {
      if (weight_gradients_) weight_gradients_->finish(share);
    }
  }

  // The gradients of the unit weights, of all sequences together; when the team is done.
  void finish() const {
    if (a_.d_unit_weights == nullptr) return;
    for (int64_t i = 0; i < W_; ++i) {
      double sum = 0;
      for (int64_t b = 0; b < q_.B; ++b) sum += d_unit_weights_[b * W_ + i];
      const Compute total = static_cast<Compute>(sum);
      k_.to_storage(1, &total, a_.d_unit_weights + i);
    }
  }

 private:
  static constexpr int first_slot = 0;
  static constexpr int64_t chunk_rows = 480;

  // Some sequences, and weights packed for the threads that compute them.
  struct Slice {
    Range batch;
    Product recurrent, projection, input;
  };

  // Gradients of the pre-activations of one step: that of row b, slot s and unit u is at
  // b * row + s * H + u.
  struct StepGradients {
    Storage* at;
    int64_t row;
  };

  bool projected() const { return a_.weights.w_hr != nullptr; }
  // Otherwise the caller does, from factors_.
  bool forms_products() const { return one_type && factors_.d_slots == nullptr; }
  bool forms_input_gradient() const { return forms_products() && a_.dx != nullptr; }

  Range all() const { return {0, q_.B}; }

  void take_chunk() {
    const int64_t rows = std::max(q_.B, std::min(q_.T * q_.B, chunk_rows));
    chunk_row_ = operand_stride<Storage>(cell_.slots * H_);
    chunk_d_ = workspace_.take<Storage>(rows * chunk_row_);
    if constexpr (one_type) {
      if (!a_.dw_ih) return;
      weight_gradients_ =
          std::make_unique<WeightGradients<Kernels>>(a_, k_, chunk_d_, chunk_row_, rows, workspace_);
    }
  }

  // Some steps of a slice, the last first; for_items(n, body) calls body(0) .. body(n - 1), or its share.
  template <class ForItems>
  void run(const Slice& slice, Range steps, ForItems for_items) {
    if (steps.end == q_.T) start(slice, for_items);
    for (int64_t k = steps.end - 1; k >= steps.begin; --k) {
      const StepGradients d = gradients_of(steps, k);
      if (projected()) {
        for_items(recurrent_.blocks(), [&](int64_t j) { gather_dh(slice, k, j); });
        for_items(projection_.blocks(), [&](int64_t j) { step_through_projection(slice, k, j, d); });
      } else {
        for_items(recurrent_.blocks(), [&](int64_t j) { step(slice, k, j, d); });
      }
    }
    if (forms_input_gradient()) form_input_gradient(slice, steps, for_items);
    if (steps.begin > 0) return;
    for_items(recurrent_.blocks(), [&](int64_t j) { finish_h(slice, j); });
    if (cell_.has_c) {
      for_items(slice.batch.size(), [&](int64_t i) { finish_c(slice.batch.begin + i); });
    }
  }

  template <class ForItems>
  void start(const Slice& slice, ForItems for_items) {
    if (slice.recurrent.packs()) {
      for_items(recurrent_.blocks(), [&](int64_t j) { slice.recurrent.pack(j); });
    }
    if (projected() && slice.projection.packs()) {
      for_items(projection_.blocks(), [&](int64_t j) { slice.projection.pack(j); });
    }
    if (forms_input_gradient()) {
      for_items(input_.blocks(), [&](int64_t j) { slice.input.pack(j); });
    }
    for_items(slice.batch.size(), [&](int64_t i) { start_row(slice.batch.begin + i); });
  }

  StepGradients gradients_of(Range steps, int64_t k) const {
    if (chunk_d_) return {chunk_d_ + row_in_chunk(q_, all(), steps, k) * chunk_row_, chunk_row_};
    const int64_t width = cell_.slots * H_;
    return {factors_.d_slots + q_.first_row(q_.step(k)) * width, width};
  }

  // Calls body(first, count, rows, stride) for runs of the state before step k of sequences b .. b + count,
  // zero if a sequence has ended.
  template <class Body>
  void for_previous(int64_t k, int64_t b, int64_t count, Body body) const {
    parts_.for_runs(k, b, static_cast<int>(count), [&](int64_t first, int n, RowPart p) {
      if (!p.active) return body(first, n, zeros_, 0);
      int64_t stride;
      const Storage* rows = previous(k, first, p, a_.y, a_.h0, P_, stride);
      body(first, n, rows, stride);
    });
  }

  void start_row(int64_t b) {
    for (Operand* buffer : d_) {
      // Slots are padded to what products read at a time.
      std::fill(buffer + b * d_stride_, buffer + (b + 1) * d_stride_, Operand{});
    }
    load_row(a_.dh_n, b, P_, carry_h_);
    if (cell_.has_c) load_row(a_.dc_n, b, C_, carry_c_);
    if (W_) std::fill_n(d_unit_weights_ + b * W_, W_, Compute(0));
    if (!projected()) return;
    std::fill(dh_ + b * dh_stride_, dh_ + (b + 1) * dh_stride_, Operand{});
    std::fill(no_carry_ + b * H_, no_carry_ + (b + 1) * H_, Compute(0));
  }

  void load_row(const Storage* from, int64_t b, int64_t n, Compute* to) const {
    if (from) {
      k_.to_compute(n, from + b * n, to + b * n);
    } else {
      std::fill(to + b * n, to + (b + 1) * n, Compute(0));
    }
  }

  // The part of the gradient of h before step k + 1 that comes from its pre-activations.
  void multiply(const Slice& slice, int64_t k, int64_t j, int64_t b, int count, Compute* acc) const {
    const Operand* pointers[max_tile_rows];
    for (int m = 0; m < count; ++m) pointers[m] = d_[(k + 1) % 2] + (b + m) * d_stride_;
    slice.recurrent.multiply(j, count, pointers, acc);
  }

  // Only rows before this one have a product.
  int64_t product_rows(int64_t k) const { return k + 1 < q_.T ? q_.batch(q_.step(k + 1)) : 0; }

  void step(const Slice& slice, int64_t k, int64_t j, StepGradients d) {
    alignas(64) Compute acc[acc_size];
    const int64_t u0 = j * recurrent_.block(), units = recurrent_.units(j);
    for_tiles(slice.batch, recurrent_.tile_rows(), [&](int64_t b0, int rows) {
      const int64_t present = std::clamp<int64_t>(product_rows(k) - b0, 0, rows);
      if (present > 0) multiply(slice, k, j, b0, static_cast<int>(present), acc);
      parts_.for_runs(k, b0, rows, [&](int64_t b, int count, RowPart p) {
        const Compute* product = p.has_product ? acc + (b - b0) * recurrent_.columns() : nullptr;
        if (p.active) {
          cell(k, b, count, u0, units, p, product, recurrent_.columns(), d);
        } else {
          add_to_carry(b, count, u0, units, product);
          clear(k, b, count, u0, units, d);
        }
      });
    });
  }

  void cell(int64_t k, int64_t b, int count, int64_t u0, int64_t units, RowPart p, const Compute* product,
            int64_t product_row, StepGradients d) {
    const int64_t t = q_.step(k), row = q_.first_row(t) + b;
    CellBackward<Storage, Operand, Compute> c{};
    c.rows = count;
    c.units = units;
    c.H = H_;
    c.acc = product;
    c.acc_row = product_row;
    c.slots_row = cell_.slots * H_;
    if (projected()) {
      c.carry_h = no_carry_ + b * H_ + u0;
      c.carry_h_row = H_;
      c.h = c.h_prev = zeros_;
    } else {
      c.carry_h = carry_h_ + b * P_ + u0;
      c.carry_h_row = P_;
      if (a_.dy) c.dy = a_.dy + row * P_ + u0;
      c.dy_row = P_;
      c.h = a_.y + row * P_ + u0;
      c.h_row = P_;
      c.h_prev = previous(k, b, p, a_.y, a_.h0, P_, c.h_prev_row) + u0;
    }
    if (cell_.has_c) {
      c.carry_c = carry_c_ + b * C_ + u0;
      c.carry_c_row = C_;
      if (a_.dc) c.dc = a_.dc + row * C_ + u0;
      c.dc_row = C_;
      c.c = a_.c + row * C_ + u0;
      c.c_state_row = C_;
      c.c_prev = previous(k, b, p, a_.c, a_.c0, C_, c.c_prev_row) + u0;
    }
    if (cell_.keeps_slots) c.slots = a_.slots + row * cell_.slots * H_ + u0;
    if (factors_.output) c.output = factors_.output + row * H_ + u0;
    c.output_row = H_;
    c.d_slots = d.at + b * d.row + u0;
    c.d_slots_row = d.row;
    c.operand = d_[k % 2] + b * d_stride_ + u0;
    c.operand_row = d_stride_;
    c.operand_slot = recurrent_.slot_stride();
    if (W_) {
      c.unit_weights = a_.weights.unit_weights + u0;
      c.d_unit_weights = d_unit_weights_ + b * W_ + u0;
      c.d_unit_weights_row = W_;
    }
    if (cell_.step_inputs) {
      c.step_inputs = a_.step_inputs.at(q_, t, b) + u0;
      c.step_inputs_row = a_.step_inputs.row;
      if (a_.d_step_inputs) c.d_step_inputs = a_.d_step_inputs + row * cell_.step_inputs * H_ + u0;
    }
    cell_backward_(c);
    if (p.previous == Source::zero) clear_carry(b, count, u0, units);
  }

  // Row b of the state before step k; `row` is set to the stride from row to row.
  const Storage* previous(int64_t k, int64_t b, RowPart p, const Storage* sequence, const Storage* initial,
                          int64_t n, int64_t& row) const {
    row = n;
    if (p.previous == Source::sequence) return sequence + (q_.first_row(q_.step(k - 1)) + b) * n;
    if (p.previous == Source::initial) return initial + b * n;
    row = 0;
    return zeros_;
  }

  // The state before a step that resets it has no gradient.
  void clear_carry(int64_t b, int count, int64_t u0, int64_t units) {
    for (int64_t i = b; i < b + count; ++i) {
      if (!projected()) std::fill_n(carry_h_ + i * P_ + u0, units, Compute(0));
      for (int64_t at = i * C_ + u0; at < (i + 1) * C_; at += H_)
        std::fill_n(carry_c_ + at, units, Compute(0));
    }
  }

  void add_to_carry(int64_t b, int count, int64_t u0, int64_t units, const Compute* product) {
    if (product == nullptr) return;
    for (int m = 0; m < count; ++m) {
      Compute* carry = carry_h_ + (b + m) * P_ + u0;
      for (int64_t u = 0; u < units; ++u) carry[u] += product[m * recurrent_.columns() + u];
    }
  }

  // Zero for a padded row after its sequence's end, since products over all rows read it.
  void clear(int64_t k, int64_t b, int count, int64_t u0, int64_t units, StepGradients d) {
    for (int64_t i = b; i < std::min(b + count, q_.batch(q_.step(k))); ++i) {
      for (int s = 0; s < cell_.slots; ++s) std::fill_n(d.at + i * d.row + s * H_ + u0, units, Storage{});
      for (int n = 0; a_.d_step_inputs && n < cell_.step_inputs; ++n) {
        const int64_t row = q_.first_row(q_.step(k)) + i;
        std::fill_n(a_.d_step_inputs + (row * cell_.step_inputs + n) * H_ + u0, units, Storage{});
      }
      if (factors_.output) {
        std::fill_n(factors_.output + (q_.first_row(q_.step(k)) + i) * H_ + u0, units, Storage{});
      }
    }
  }

  // With a projection, the first part of a step: the whole gradient of h.
  void gather_dh(const Slice& slice, int64_t k, int64_t j) {
    alignas(64) Compute acc[acc_size];
    const int64_t t = q_.step(k);
    const int64_t u0 = j * recurrent_.block(), units = recurrent_.units(j);
    for_tiles(slice.batch, recurrent_.tile_rows(), [&](int64_t b0, int rows) {
      const int64_t present = std::clamp<int64_t>(product_rows(k) - b0, 0, rows);
      if (present > 0) multiply(slice, k, j, b0, static_cast<int>(present), acc);
      for (int64_t b = b0; b < b0 + rows; ++b) {
        const RowPart p = parts_.at(k, b);
        add_to_carry(b, 1, u0, units, p.has_product ? acc + (b - b0) * recurrent_.columns() : nullptr);
        if (b >= q_.batch(t)) continue;
        const int64_t at = (q_.first_row(t) + b) * P_ + u0;
        Operand* operand = dh_ + b * dh_stride_ + u0;
        if (!p.active) {
          std::fill_n(factors_.dh + at, units, Storage{});
          std::fill_n(operand, units, Operand{});
          continue;
        }
        Compute* carry = carry_h_ + b * P_ + u0;
        if (a_.dy) {
          Compute dy[max_tile_vectors * 16];
          k_.to_compute(units, a_.dy + at, dy);
          for (int64_t u = 0; u < units; ++u) carry[u] += dy[u];
        }
        k_.to_storage(units, carry, factors_.dh + at);
        k_.round_to_operand(units, carry, operand);
        std::fill_n(carry, units, Compute(0));
      }
    });
  }

  // The second part: through the projection to the cell.
  void step_through_projection(const Slice& slice, int64_t k, int64_t j, StepGradients d) {
    alignas(64) Compute acc[acc_size];
    const int64_t u0 = j * projection_.block(), units = projection_.units(j);
    for_tiles(slice.batch, projection_.tile_rows(), [&](int64_t b0, int rows) {
      const Operand* pointers[max_tile_rows];
      for (int m = 0; m < rows; ++m) pointers[m] = dh_ + (b0 + m) * dh_stride_;
      slice.projection.multiply(j, rows, pointers, acc);
      parts_.for_runs(k, b0, rows, [&](int64_t b, int count, RowPart p) {
        if (p.active) {
          cell(k, b, count, u0, units, p, acc + (b - b0) * projection_.columns(), projection_.columns(), d);
        } else {
          clear(k, b, count, u0, units, d);
        }
      });
    });
  }

  void finish_h(const Slice& slice, int64_t j) {
    alignas(64) Compute acc[acc_size];
    const int64_t u0 = j * recurrent_.block(), units = recurrent_.units(j);
    for_tiles(slice.batch, recurrent_.tile_rows(), [&](int64_t b0, int rows) {
      multiply(slice, -1, j, b0, rows, acc);
      for (int64_t b = b0; b < b0 + rows; ++b) {
        const bool has_product = parts_.has_product(-1, b);
        add_to_carry(b, 1, u0, units, has_product ? acc + (b - b0) * recurrent_.columns() : nullptr);
        k_.to_storage(units, carry_h_ + b * P_ + u0, a_.dh0 + b * P_ + u0);
      }
    });
  }

  // dx of a chunk's rows of a slice, in groups of rows.
  template <class ForItems>
  void form_input_gradient(const Slice& slice, Range steps, ForItems for_items) {
    if constexpr (one_type) {
      constexpr int64_t max_group = 128;
      const int64_t rows = rows_of(q_, slice.batch, steps);
      const int64_t threads = partition_.by_batch ? 1 : partition_.threads;
      const int64_t groups = round_up((rows + max_group - 1) / max_group, threads);
      for_items(groups, [&](int64_t i) { multiply_input(slice, steps, part_of(rows, i, groups)); });
    }
  }

  void multiply_input(const Slice& slice, Range steps, Range rows) {
    alignas(64) Compute acc[acc_size];
    for (int64_t j = 0; j < input_.blocks(); ++j) {
      for_tiles(rows, input_.tile_rows(), [&](int64_t row, int count) {
        const Operand* a[max_tile_rows];
        Storage* to[max_tile_rows];
        for (int m = 0; m < count; ++m) {
          const auto [k, b] = find_row(slice.batch, steps, row + m);
          a[m] = chunk_d_ + (row_in_chunk(q_, all(), steps, k) + b) * chunk_row_;
          to[m] = a_.dx + (q_.first_row(q_.step(k)) + b) * a_.weights.I + j * input_.block();
        }
        slice.input.multiply(j, count, a, acc);
        for (int m = 0; m < count; ++m) k_.to_storage(input_.units(j), acc + m * input_.block(), to[m]);
      });
    }
  }

  // Step and sequence of a row of a slice in a chunk.
  std::pair<int64_t, int64_t> find_row(Range batch, Range steps, int64_t row) const {
    if (!q_.first) return {steps.begin + row / batch.size(), batch.begin + row % batch.size()};
    int64_t k = steps.begin;
    for (int64_t n; row >= (n = present(q_, batch, q_.step(k)).size()); ++k) row -= n;
    return {k, batch.begin + row};
  }

  void finish_c(int64_t b) { k_.to_storage(C_, carry_c_ + b * C_, a_.dc0 + b * C_); }

  const BackwardArgs<Storage>& a_;
  const ProductFactors<Storage>& factors_;
  const Kernels& k_;
  const Sequence& q_;
  const CellInfo& cell_;
  const int64_t H_, P_, C_, W_;  // C and W: all private states and unit weights of a row
  void (*const cell_backward_)(const CellBackward<Storage, typename Kernels::CellOperand, Compute>&);
  Workspace workspace_;
  const RowParts parts_;
  const Product recurrent_, projection_, input_;  // the panels are the slices'
  Partition partition_;
  std::vector<Slice> slices_;  // one, unless the batch is cut
  int64_t d_stride_, dh_stride_, chunk_row_ = 0;
  Operand* d_[2];                      // [B, d_stride] pre-activation gradients of a step, alternating
  Compute* carry_h_;                   // [B, P] part of the gradient of h that needs no product
  Compute* carry_c_ = nullptr;         // [B, C] gradient of c
  Compute* d_unit_weights_ = nullptr;  // [B, W] summed over the steps so far
  Operand* dh_ = nullptr;              // [B, dh_stride] whole gradient of h, if a projection follows
  Compute* no_carry_ = nullptr;        // [B, H] zeros: with a projection, all of dh is the product's
  Storage* zeros_;                     // a state of zeros
  // If this pass forms the products:
  Storage* chunk_d_ = nullptr;  // [chunk rows, chunk_row] pre-activation gradients of a chunk's steps
  std::unique_ptr<WeightGradients<Kernels>> weight_gradients_;
};

}  // namespace

template <class Kernels>
void run_backward(const BackwardArgs<typename Kernels::Storage>& args,
                  const ProductFactors<typename Kernels::Storage>& factors, const Kernels& kernels) {
  Backward<Kernels> backward(args, factors, kernels);
  run_thread_team(backward.threads(), backward);
  backward.finish();
}

#define FASTRNN_BACKWARD(...)                                           \
  template void run_backward(const BackwardArgs<__VA_ARGS__::Storage>&, \
                             const ProductFactors<__VA_ARGS__::Storage>&, const __VA_ARGS__&);
FASTRNN_BACKWARD(Kernels<float, float, float>)
FASTRNN_BACKWARD(Kernels<float, BFloat16, float>)
FASTRNN_BACKWARD(Kernels<float, SplitFloat, float>)
FASTRNN_BACKWARD(Kernels<double, double, double>)
FASTRNN_BACKWARD(Kernels<BFloat16, float, float>)
FASTRNN_BACKWARD(Kernels<Half, float, float>)
FASTRNN_BACKWARD(Kernels<BFloat16, BFloat16, float>)

}  // namespace fastrnn
