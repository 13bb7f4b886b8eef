"""Forward passes: packing, attention, head, loss. Gradients, training, evaluation and diagnostics share them."""
