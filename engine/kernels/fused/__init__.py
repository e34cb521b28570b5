"""The parts of a step as Triton kernels. Imported only where Triton is installed and asked for."""
