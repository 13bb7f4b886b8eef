"""Methods × budgets × seeds, on the same examples at the same tokens, with intervals."""
