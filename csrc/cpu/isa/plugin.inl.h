// The cell that FASTRNN_PLUGIN has, Declared, exported with its kernels for this instruction set as a
// PluginCell (plugin.h).

template <class Storage, class Operand, class Compute>
void add_functions(PluginCell& plugin) {
  void (*forward)(const CellForward<Storage, Operand, Compute>&) = cell_forward<Declared>;
  void (*backward)(const CellBackward<Storage, Operand, Compute>&) = cell_backward<Declared>;
  const void** to = plugin.functions + 2 * plugin_types<Storage, Operand>();
  to[0] = reinterpret_cast<const void*>(forward);
  to[1] = reinterpret_cast<const void*>(backward);
}

static_assert(keeps_the_contract<Declared>());

extern "C" __attribute__((visibility("default"))) const PluginCell fastrnn_cell;
const PluginCell fastrnn_cell = [] {
  PluginCell plugin{};
  plugin.layout = PluginCell::current_layout;
  plugin.arguments_size = plugin_arguments_size;
  plugin.gates = Declared::gates;
  plugin.slots = Declared::slots;
  plugin.x_slot = Declared::x_slot;
  plugin.h_slot = Declared::h_slot;
  plugin.keeps_slots = Declared::keeps_slots;
  plugin.own_states = Declared::own_states;
  plugin.unit_weights = Declared::unit_weights;
  plugin.step_inputs = Declared::step_inputs;
  add_functions<float, float, float>(plugin);
  add_functions<double, double, double>(plugin);
  add_functions<BFloat16, float, float>(plugin);
  add_functions<Half, float, float>(plugin);
#ifdef FASTRNN_HAS_BF16_DOT
  add_functions<BFloat16, BFloat16, float>(plugin);
  add_functions<float, BFloat16, float>(plugin);
#endif
#ifdef FASTRNN_HAS_AMX
  add_functions<float, SplitFloat, float>(plugin);
#endif
  return plugin;
}();
