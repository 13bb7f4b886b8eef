"""The quadratic model of the paper's section 4, in float64: what its theorems say, and where they end."""
