"""What a GPU needs and a CPU does not: decoding in tensors that keep their place and size, as CUDA graphs (the fast way only)."""
