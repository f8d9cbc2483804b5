"""How our C and CUDA kernels are compiled and loaded."""
