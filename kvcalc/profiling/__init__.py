"""Is it true here: real attention kernels on the machine at hand, proved right, timed, and set beside the prediction.

torch and triton are imported in this package alone, and neither by `case` nor by the kernel table.
"""
