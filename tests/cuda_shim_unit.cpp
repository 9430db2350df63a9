/* tests/cuda_shim_unit.cpp - one kernel source (SHIM_SOURCE), compiled for the CPU. */
#include "tests/cuda_shim.h"

#include SHIM_SOURCE
