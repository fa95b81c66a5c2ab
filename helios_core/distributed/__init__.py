"""Many processors for one film, and many machines for many films."""
