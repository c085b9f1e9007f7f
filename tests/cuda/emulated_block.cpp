// The block driver's own source, for the host.
#include "cuda/block.cu"
