"""One network computed by several processes: who they are, and what each of them computes."""
