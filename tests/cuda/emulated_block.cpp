// The block driver's own source, for the host.
#include "cuda/on_chip/block.cu"
