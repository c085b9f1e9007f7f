// Schemas of the operators that tests define too, over other cells or an emulated device. A schema and the
// function that implements it must agree: the arguments come on a stack, and nothing else tells their
// number.
#pragma once

namespace fastrnn {

inline constexpr const char* forward_schema =
    "forward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? "
    "b_hh, Tensor? w_hr, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, int keep, int"
    " precision=0, Tensor? unit_weights=None, Tensor? step_inputs=None) -> (Tensor y, Tensor h_n, Tensor "
    "c_n, Tensor c, Tensor slots)";

inline constexpr const char* backward_schema =
    "backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, Tensor x, Tensor h0, Tensor? "
    "c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, Tensor? batch_sizes, Tensor?"
    " lengths, Tensor? reset, bool reverse, Tensor y, Tensor c, Tensor slots, bool[2] needs, int "
    "precision=0, Tensor? unit_weights=None, Tensor? step_inputs=None) -> (Tensor dx, Tensor dh0, Tensor "
    "dc0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dw_hr, Tensor d_unit_weights, "
    "Tensor d_step_inputs)";

inline constexpr const char* prepack_schema =
    "prepack(str cell, Tensor w_ih, Tensor w_hh, Tensor? w_hr, str weights, int precision=0) -> Tensor";

inline constexpr const char* forward_prepacked_schema =
    "forward_prepacked(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor panels, Tensor? b_ih, Tensor? "
    "b_hh, int hidden_size, str weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool "
    "reverse, int keep, int precision=0, Tensor? unit_weights=None, Tensor? step_inputs=None) -> (Tensor "
    "y, Tensor h_n, Tensor c_n, Tensor c)";

}  // namespace fastrnn
