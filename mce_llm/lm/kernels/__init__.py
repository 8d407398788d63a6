"""The `token` loss on GPUs: kernels in Triton, which is imported where one of them runs and not before.

Each kernel has a module that says what it computes and starts it, and one that ends in `_program` and is all Triton.
"""
