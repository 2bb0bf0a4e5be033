"""Names of the array types that modules exchange; shapes are given where the arrays are used."""

import numpy as np
from numpy.typing import NDArray

# Row numbers of items or users; -1 means none. Long arrays are int32, others int64: multiply none before a conversion.
Rows = NDArray[np.signedinteger]
Offsets = NDArray[np.int64]  # [n + 1] bounds of n segments of another array, ascending from 0
Mask = NDArray[np.bool_]
Vectors = NDArray[np.float32]
HalfVectors = NDArray[np.float16]
Scores = NDArray[np.float32]
