"""From a source to encoded examples: the one encoder that counting, gradients, training and evaluation share."""
