"""Names of the array types that modules exchange; shapes are given where the arrays are used."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # row numbers of items or users; -1 stands for "none"
Offsets = NDArray[np.int64]  # [n + 1] bounds of n segments of another array, ascending from 0
Mask = NDArray[np.bool_]
Vectors = NDArray[np.float32]
HalfVectors = NDArray[np.float16]
Scores = NDArray[np.float32]
