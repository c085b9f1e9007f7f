// The grid driver's own source, for the host.
#include "cuda/on_chip/grid.cu"
